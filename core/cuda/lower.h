/* The passes behind kn_cuda_lower. */
#ifndef KN_CUDA_LOWER_H
#define KN_CUDA_LOWER_H

#include "core/graph/graph.h"
#include "core/ops/ops.h"

/* Sums that backward nodes make beside their results (lower_sums.c). */
void kn_cuda_lower_sums(KnGraph *graph);

/* Products in 8 bits (lower_fp8.c), where the graph has the leaf KN_FP8_LEAF; else all of it does nothing. */
struct KnCudaFp8 *kn_cuda_fp8_begin(KnGraph *graph); /* before its nodes are taken */
/* Right before the product, whatever has become part of it, is put back. */
void kn_cuda_fp8_lower(struct KnCudaFp8 *fp8, KnGraph *graph, KnNode *product);
void kn_cuda_fp8_end(struct KnCudaFp8 *fp8);

#endif
