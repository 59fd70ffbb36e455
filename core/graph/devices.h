/* Backends that are plugins. */
#ifndef KN_GRAPH_DEVICES_H
#define KN_GRAPH_DEVICES_H

#include "core/graph/executor.h"

/* The CUDA backend on the GPU with this index among those that the process sees, from the plugin at `path` (NULL:
 * kinora-cuda.so beside the program). The present thread's device is that one from then on. KN_EPEER where the plugin
 * is missing or there is no such GPU, with the sentence that says which. Release with kn_cuda_backend_close. */
int kn_cuda_backend_open(const char *path, int device, KnBackend **backend);
void kn_cuda_backend_close(KnBackend *backend);

#endif
