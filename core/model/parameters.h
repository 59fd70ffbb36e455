/* Parameters: which tensors a model has, how they begin, and the block buffers that hold them.
 *
 * A model declares its parameters once, into a set. Those of one block lie in one contiguous float32 buffer, matrices
 * of one shape next to each other: the block is the unit of sharding, reducing, optimizing and saving. Values,
 * gradients, moments and averages are all KnParameterValues over the same set, so that one offset finds a parameter in
 * each. */
#ifndef KN_MODEL_PARAMETERS_H
#define KN_MODEL_PARAMETERS_H

#include "core/graph/executor.h"

typedef enum KnInit {
    KN_INIT_ZEROS,
    KN_INIT_ONES,
    KN_INIT_NORMAL, /* standard deviation `init_scale` */
    KN_INIT_UNIFORM /* between -init_scale and init_scale */
} KnInit;

typedef struct KnParameter {
    char *name; /* exactly as in the published layout */
    int dims;
    int64_t shape[KN_MAX_DIMS];
    int64_t elements;
    int block;
    int64_t offset; /* elements from the start of the block's buffer */
    KnInit init;
    float init_scale;
    int matrix; /* a matrix of a repeated block: what Muon takes */
} KnParameter;

typedef struct KnParameterSet {
    int count, capacity;
    KnParameter *list;
    int block_count;
    int64_t *block_elements; /* set by kn_parameter_set_finish */
} KnParameterSet;

void kn_parameter_set_clear(KnParameterSet *set);

/* Declares one; `block` numbers begin at 0 and leave no gaps. Returns it for the caller to set init and matrix; the
 * pointer is valid until the next call. */
KnParameter *kn_parameter_add(KnParameterSet *set, int block, const char *name, int dims, const int64_t *shape);

/* Orders each block (matrices by shape, then the rest; stable) and assigns offsets. Call once, after the last add. */
void kn_parameter_set_finish(KnParameterSet *set);
/* The same for parts of a set, added in its order, which they keep: so index and order are those of the whole. */
void kn_parameter_set_finish_parts(KnParameterSet *set);

const KnParameter *kn_parameter_find(const KnParameterSet *set, const char *name); /* NULL if there is none */
int64_t kn_parameter_count(const KnParameterSet *set);                             /* elements of all */

/* The leaf for a parameter, made at first use. Leaves have two dimensions, [first, rest] for convolution kernels and
 * [all but last, last] for others of more than two. Asserts that the name exists. */
KnTensor *kn_parameter_leaf(KnGraph *graph, const KnParameterSet *set, const char *name);

/* One float32 buffer for each block, or for a range of it. */
typedef struct KnParameterValues {
    const KnParameterSet *set;
    float **blocks;
    int64_t *first, *count; /* blocks[b] holds elements [first[b], first[b] + count[b]) of block b */
} KnParameterValues;

/* Zeroed buffers; `what` is for the sentence when memory is short. */
int kn_parameter_values_create(KnParameterValues *values, const KnParameterSet *set, const char *what);
int kn_parameter_values_create_part(KnParameterValues *values, const KnParameterSet *set, const int64_t *first,
                                    const int64_t *count, const char *what);
size_t kn_parameter_values_bytes(const KnParameterSet *set); /* of the buffers that it makes */
void kn_parameter_values_clear(KnParameterValues *values);
/* Asserts that the whole parameter is held. */
float *kn_parameter_data(const KnParameterValues *values, const KnParameter *parameter);

/* Draws elements [first, first + count) of a parameter by its init rule; a function of (seed, name, element) alone. */
void kn_parameter_init(const KnParameter *parameter, uint64_t seed, int64_t first, int64_t count, float *data);
/* All of whole buffers. */
void kn_parameter_values_init(KnParameterValues *values, uint64_t seed);
/* Zeros where nodes see them. */
int kn_parameter_values_zero(KnParameterValues *values, KnBackend *backend);
/* Twins of the buffers on the backend's device (core/graph/twin.h), alike at first; no-ops without a device, or where
 * there are no buffers. A push copies to the device, a pull from it. Withdraw before clearing. */
int kn_parameter_values_place(KnParameterValues *values, KnBackend *backend, const char *what);
int kn_parameter_values_place_pinned(KnParameterValues *values, KnBackend *backend, const char *what);
void kn_parameter_values_withdraw(KnParameterValues *values, KnBackend *backend);
int kn_parameter_values_push(KnParameterValues *values, KnBackend *backend);
int kn_parameter_values_pull(KnParameterValues *values, KnBackend *backend);

/* `from` holds at least what `to` does. */
void kn_parameter_values_copy(KnParameterValues *to, const KnParameterValues *from);

#endif
