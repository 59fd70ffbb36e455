/* The graph: a model is written once, as a static forward graph; everything else is a pass over it.
 *
 * Building code calls ops (core/ops/ops.h), each of which appends one node. A node has an op, up to KN_MAX_INPUTS
 * input tensors, up to KN_MAX_OUTPUTS output tensors, and a small block of attributes whose type the op defines.
 * A tensor is the output of one node or a leaf: a parameter, an input (bound before a run), or state (memory that
 * lives from run to run and that nodes may change in place). Nodes are kept in an order in which they can be run.
 *
 * There is no batch dimension: clips lie end to end as `tokens [L, D]`, and attention takes a span table.
 *
 * Shapes are checked while building: a mismatch is a bug of the building code, hence KN_ASSERT with the op's name.
 * All nodes and tensors belong to the graph and die with it. */
#ifndef KN_GRAPH_GRAPH_H
#define KN_GRAPH_GRAPH_H

#include "core/base/memory.h"

#include <stdint.h>

enum { KN_MAX_DIMS = 5, KN_MAX_INPUTS = 9, KN_MAX_OUTPUTS = 6, KN_ATTRIBUTE_BYTES = 64 };

typedef enum KnDtype { KN_F32, KN_BF16, KN_I32, KN_U8, KN_DTYPE_COUNT } KnDtype;
size_t kn_dtype_bytes(KnDtype dtype);
const char *kn_dtype_name(KnDtype dtype); /* "f32", "bf16", "i32", "u8" */

typedef enum KnRole {
    KN_ROLE_VALUE,     /* output of a node */
    KN_ROLE_PARAMETER, /* leaf: trained, float32 master */
    KN_ROLE_INPUT,     /* leaf: bound before every run */
    KN_ROLE_STATE      /* leaf: lives between runs; nodes may write it (gradients, optimizer moments) */
} KnRole;

/* What a tensor's bytes are counted as in the memory report. */
typedef enum KnCategory {
    KN_MEMORY_PARAMETERS, /* masters, bound from outside */
    KN_MEMORY_STATE,      /* gradients and optimizer state, bound from outside */
    KN_MEMORY_INPUTS,
    KN_MEMORY_WEIGHTS,     /* compute copies: casts and packed forms of parameters (prologue values) */
    KN_MEMORY_ACTIVATIONS, /* forward values that the backward needs */
    KN_MEMORY_EXCHANGED,   /* what arrives from other ranks */
    KN_MEMORY_TEMPORARY,   /* all other values */
    KN_MEMORY_WORKSPACE,   /* scratch of single nodes */
    KN_MEMORY_CATEGORIES
} KnCategory;

typedef struct KnNode KnNode;
typedef struct KnGraph KnGraph;

typedef struct KnTensor {
    int id; /* index in graph->tensors */
    KnDtype dtype;
    KnRole role;
    int dims; /* 0 is a scalar */
    int64_t shape[KN_MAX_DIMS];
    const char *name;      /* parameters: the exact name of the published layout; else may be "" */
    KnNode *producer;      /* NULL for leaves */
    int block;             /* parameters: which block buffer it lives in (the unit of sharding and saving) */
    struct KnTensor *base; /* NULL, or the tensor in whose memory this one lies ... */
    size_t base_offset;    /* ... so many bytes from its start */
} KnTensor;

int64_t kn_tensor_elements(const KnTensor *tensor);
size_t kn_tensor_bytes(const KnTensor *tensor);
int64_t kn_tensor_rows(const KnTensor *tensor);    /* product of all but the last dimension; 1 for a scalar */
int64_t kn_tensor_columns(const KnTensor *tensor); /* the last dimension; 1 for a scalar */

/* Work that one node does, for the cost pass and for shares of peak. */
typedef struct KnCost {
    double matmul_flops, attention_flops, pointwise_flops; /* 2 per multiply-add */
    double bytes;                                          /* read + written, each operand once */
} KnCost;

/* One row of the op table. All functions are required; an op without a gradient says so with kn_no_gradient. */
typedef struct KnOp {
    int id; /* index in every backend's kernel table */
    const char *name;
    /* Appends the nodes of the gradient rule. grad_outputs[i] is NULL where no gradient arrives; the rule sets
     * grad_inputs[i] for each input with wanted[i] != 0 (others stay NULL). */
    void (*gradient)(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                     KnTensor **grad_inputs);
    void (*cost)(const KnNode *node, KnCost *cost);
    int has_effect; /* changes an input in place, or takes part in an exchange: never removed as dead */
} KnOp;

struct KnNode {
    const KnOp *op;
    int id; /* position in graph->nodes */
    int input_count, output_count;
    KnTensor *inputs[KN_MAX_INPUTS]; /* NULL = an optional input left out */
    KnTensor *outputs[KN_MAX_OUTPUTS];
    int block;    /* which recompute block the node belongs to; -1 = none */
    int backward; /* appended by the gradient pass */
    int again;    /* what a forward node does, once more (kn_recompute_blocks) */
    int exchange; /* what it makes comes from other ranks */
    int prologue; /* depends on parameters alone: run once per parameter change (set by kn_graph_finish) */
    _Alignas(16) unsigned char attributes[KN_ATTRIBUTE_BYTES];
};

struct KnGraph {
    KnArena *arena;
    int node_count, node_capacity;
    KnNode **nodes;
    int tensor_count, tensor_capacity;
    KnTensor **tensors;
    int block; /* stamped on nodes appended now; -1 outside of blocks */
    int in_backward;
};

KnGraph *kn_graph_create(void);
void kn_graph_destroy(KnGraph *graph);

/* Leaves. `shape` has `dims` entries. */
KnTensor *kn_leaf(KnGraph *graph, KnRole role, KnDtype dtype, int dims, const int64_t *shape, const char *name);
KnTensor *kn_leaf_find(const KnGraph *graph, const char *name); /* NULL if there is none */

/* A value that no node makes: memory for what several nodes make, each its own bytes (kn_lay). It lives from the first
 * of these nodes to its last use. */
KnTensor *kn_room(KnGraph *graph, KnDtype dtype, int dims, const int64_t *shape);
/* What its node makes lies in the memory of a room, or of state, from element `first` on. */
void kn_lay(KnTensor *made, KnTensor *place, int64_t first);

/* The tensor that owns the memory: `tensor` itself unless it is a view, and how many bytes into it the view begins. */
const KnTensor *kn_tensor_root(const KnTensor *tensor, size_t *offset);

/* Appends a node; used by ops only. `attributes` may be NULL. */
KnNode *kn_node_append(KnGraph *graph, const KnOp *op, const void *attributes, size_t attribute_bytes,
                       KnTensor *const *inputs, int input_count);
/* Adds an output to the node just appended. */
KnTensor *kn_node_output(KnGraph *graph, KnNode *node, KnDtype dtype, int dims, const int64_t *shape);

/* Nodes appended between begin and end belong to one recompute block (blocks do not nest). */
void kn_block_begin(KnGraph *graph);
void kn_block_end(KnGraph *graph);

/* --- Passes ------------------------------------------------------------------------------------------------------ */

/* The op that sums two gradients of one tensor: kn_add of core/ops, which this floor cannot name. */
typedef KnTensor *(*KnAddRule)(KnGraph *graph, KnTensor *a, KnTensor *b);

/* Appends the backward of the scalar `loss` (f32) for `wanted` (parameters, inputs); gradients[i] receives the tensor
 * that holds d loss / d wanted[i], in f32 for parameters and in the tensor's own dtype for others, or NULL where the
 * loss does not depend on it. The op that makes `loss` is given NULL as its output's gradient, which means 1. */
void kn_gradient(KnGraph *graph, KnTensor *loss, KnTensor *const *wanted, int wanted_count, KnTensor **gradients,
                 KnAddRule add);

/* How many recompute blocks there are: they are numbered in the order in which they were begun. */
int kn_graph_blocks(const KnGraph *graph);

/* Recomputes the blocks with chosen[block] != 0: between forward and backward only the values that enter a block stay;
 * the block's forward nodes are emitted again right before its backward. Call after kn_gradient. */
void kn_recompute_blocks(KnGraph *graph, const char *chosen);

/* Removes nodes whose outputs nobody needs (`keep` and in-place nodes are needed), marks the prologue (what depends on
 * parameters alone), moves it to the front and renumbers. */
void kn_graph_finish(KnGraph *graph, KnTensor *const *keep, int keep_count);

/* Sum over nodes; the prologue and what is recomputed are left out. */
KnCost kn_graph_cost(const KnGraph *graph);

/* Prints every node on its own line, for people. free() it. */
char *kn_graph_describe(const KnGraph *graph);

#endif
