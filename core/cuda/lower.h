/* The passes behind kn_cuda_lower. */
#ifndef KN_CUDA_LOWER_H
#define KN_CUDA_LOWER_H

#include "core/graph/edit.h"
#include "core/ops/ops.h"

/* All nodes of the graph, taken out of it: ids are places in the list. `readers` is per tensor how many operands it is,
 * or lends its memory to, and `gone` per node that it is part of another, or comes later. */

/* Whether a node between those two places changes the tensor's memory, or gives it away. */
int kn_cuda_is_changed(const KnNodeList *nodes, const KnTensor *tensor, int after, int before);

/* Additions by products (lower_add.c): product[place of an addition] is the one that makes it, which is then gone from
 * its own place; else NULL. */
void kn_cuda_find_additions(const KnNodeList *nodes, const int *readers, KnNode **product, char *gone);
/* The product as it stands in the addition's place. */
KnNode *kn_cuda_add_to(KnNode *product, const KnNode *addition);

/* Rotary positions in the passes of RMS norms (lower_rope.c): those nodes are then gone. */
void kn_cuda_turn_in_norms(const KnNodeList *nodes, const int *readers, char *gone);
/* Then, in those that turn: columns laid in groups of one width (lower_rope.c). */
void kn_cuda_group_in_norms(const KnNodeList *nodes, const int *readers, char *gone);

/* Gated residuals in the passes of layer norms (lower_residual.c), forward; and backward, after the next pass. */
void kn_cuda_lower_residuals(KnGraph *graph);
void kn_cuda_lower_residual_gradients(KnGraph *graph);

/* Sums that backward nodes make beside their results (lower_sums.c). */
void kn_cuda_lower_sums(KnGraph *graph);

/* Biases in the products' results' type (lower_biases.c). */
struct KnCudaBiases *kn_cuda_biases_begin(const KnGraph *graph); /* before its nodes are taken */
/* Right before the product is put back. */
void kn_cuda_round_bias(struct KnCudaBiases *biases, KnGraph *graph, KnNode *product);
void kn_cuda_biases_end(struct KnCudaBiases *biases);

/* Products in 8 bits (lower_fp8.c), where the graph has the leaf KN_FP8_LEAF; else all of it does nothing. */
struct KnCudaFp8 *kn_cuda_fp8_begin(KnGraph *graph); /* before its nodes are taken */
/* Right before the product, whatever has become part of it, is put back. */
void kn_cuda_fp8_lower(struct KnCudaFp8 *fp8, KnGraph *graph, KnNode *product);
void kn_cuda_fp8_end(struct KnCudaFp8 *fp8);

#endif
