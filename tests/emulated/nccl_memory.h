/* What tests/emulated/nccl_memory.c tells nccl.c. */
#ifndef KN_TESTS_EMULATED_NCCL_MEMORY_H
#define KN_TESTS_EMULATED_NCCL_MEMORY_H

#include <nccl.h>
#include <stddef.h>

/* Whether [memory, memory + bytes) is registered with the communicator; nothing is. */
int emulated_is_registered(ncclComm_t comm, const void *memory, size_t bytes);

/* How many registrations a communicator still has. */
int emulated_registrations(ncclComm_t comm);

#endif
