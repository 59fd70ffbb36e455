/* Backends that are plugins. */
#ifndef KN_GRAPH_DEVICES_H
#define KN_GRAPH_DEVICES_H

#include "core/graph/executor.h"

/* Where the plugin is: the environment's KINORA_CUDA_PLUGIN, for tests; NULL: kinora-cuda.so beside the program. */
const char *kn_cuda_plugin_path(void);

/* The CUDA backend on the GPU with this index among those that the process sees, which are counted round: where it sees
 * its own alone, that one. From the plugin at `path` (NULL: beside the program), built from the same headers as the
 * program. The present thread's device is that GPU from then on. KN_EPEER where the plugin is missing or does not fit,
 * or there is no GPU that it has kernels for, with the sentence that says which. Release with kn_backend_close. */
int kn_cuda_backend_open(const char *path, int device, KnBackend **backend);
/* The same plugin's backend without a GPU, for plans: what it supports, its workspaces, its form of the graph and its
 * kernels; it computes nothing. Not to be closed. KN_EPEER where the plugin is missing. */
int kn_cuda_backend_plan(const char *path, KnBackend **backend);
void kn_backend_close(KnBackend *backend); /* any backend, or NULL */

#endif
