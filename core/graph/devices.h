/* Backends that are plugins. */
#ifndef KN_GRAPH_DEVICES_H
#define KN_GRAPH_DEVICES_H

#include "core/graph/executor.h"

/* Where the plugin is: the environment's KINORA_CUDA_PLUGIN, for tests; NULL: kinora-cuda.so beside the program. */
const char *kn_cuda_plugin_path(void);

/* The CUDA backend on the GPU with this index among those that the process sees, from the plugin at `path`. The present
 * thread's device is that one from then on. KN_EPEER where the plugin is missing or there is no such GPU, with the
 * sentence that says which. Release with kn_backend_close. */
int kn_cuda_backend_open(const char *path, int device, KnBackend **backend);
/* The same plugin's backend without a GPU, for plans: what it supports, its workspaces, its form of the graph and its
 * kernels; it computes nothing. Not to be closed. KN_EPEER where the plugin is missing. */
int kn_cuda_backend_plan(const char *path, KnBackend **backend);
void kn_backend_close(KnBackend *backend); /* any backend, or NULL */

#endif
