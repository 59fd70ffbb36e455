/* Memory of two places: what lives in the host's memory under an address, and its twin on the backend's device.
 *
 * Parameters, gradients and optimizer state are named by their address in the host's memory, by everybody. A backend
 * that computes there (the CPU) has no twins, and everything here costs nothing. On a device the twin is what nodes
 * read and write; the two are alike only where the owner says so: it pushes what the host has written and pulls what it
 * wants to read. Host memory that nobody touches takes no pages, so a twin costs the host nothing until it is pulled.
 *
 * An address may be anywhere within the range that a twin was created for. Codes are negative with a sentence. */
#ifndef KN_GRAPH_TWIN_H
#define KN_GRAPH_TWIN_H

#include "core/graph/executor.h"

/* Gives [host, host + bytes) a twin whose bytes are not set yet. Ranges do not overlap. `what` is for sentences. */
int kn_twin_create(KnBackend *backend, void *host, size_t bytes, const char *what);
/* The same in pinned memory of the host's, which nodes read and write across the bus: for what is used once a step. */
int kn_twin_create_pinned(KnBackend *backend, void *host, size_t bytes, const char *what);
/* No-op where there is none. Before the host's memory is freed. */
void kn_twin_destroy(KnBackend *backend, const void *host);

/* Host to device, device to host; a pull waits for all that the device was given. */
int kn_twin_push(KnBackend *backend, const void *host, size_t bytes);
int kn_twin_pull(KnBackend *backend, void *host, size_t bytes);
/* Zeros in the place where nodes see them; the host's own bytes are then stale. */
int kn_twin_zero(KnBackend *backend, void *host, size_t bytes);

/* Where nodes find it: the device's address, or `host` itself without a device. NULL where it has no twin. */
void *kn_twin_address(const KnBackend *backend, const void *host);

#endif
