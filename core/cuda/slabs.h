/* How tokens are cut into slabs whose sums are added up afterwards: what launches, workspaces and plans share. Only the
 * shapes count, so that the sums' bits depend on them alone. */
#ifndef KN_CUDA_SLABS_H
#define KN_CUDA_SLABS_H

#include <stdint.h>

enum {
    KN_VECTOR_BYTES = 16, /* that a thread reads at a time */
    KN_SUMS_AT_ONCE = 4,  /* so many loads of a thread are under way together in sums */
    KN_SLAB_WARPS = 16,   /* each adds every sixteenth slab of a sum */
    /* core/cuda/row_pass.h: */
    KN_PASS_COLUMNS = 8,        /* of a row, that a thread has */
    KN_PASS_MOST_THREADS = 768, /* of a block: 80 registers each */
    KN_PASS_TILE_THREADS = 256, /* of a block that need not have the whole row */
    KN_PASS_BYTES_AT_ONCE = 32, /* of each operand, that a thread has under way */
};

/* Slabs of `usual` tokens at least; where these would be few, of four, so that a few dozen tokens (a rank's captions)
 * are not the work of a few multiprocessors, token after token. */
static inline int64_t kn_cuda_most_slabs(int64_t tokens, int64_t usual)
{
    const int64_t few = 64, least = tokens / 4 < few ? tokens / 4 : few;
    return tokens / usual > least ? tokens / usual : least;
}

/* core/cuda/row_sum.h. Of 32 tokens, so that a few thousand tokens give every multiprocessor some; of those of one row
 * (the tokens of a clip lie together) only one row's blocks are at work. */
static inline int kn_cuda_row_sum_slabs(int64_t tokens, int64_t rows, int64_t columns)
{
    const int64_t blocks = 1024, tile = 1024, taken = rows * ((columns + tile - 1) / tile), most = 256;
    int64_t slabs = taken ? blocks / taken : 1;
    slabs = slabs < most ? slabs : most;
    slabs = slabs < kn_cuda_most_slabs(tokens, 32) ? slabs : kn_cuda_most_slabs(tokens, 32);
    return (int)(slabs > 1 ? slabs : 1);
}

/* core/cuda/row_pass.h. A slab is one block's, whatever rows its tokens belong to: four of 1536 columns for each of an
 * H200's multiprocessors, more where a row is shorter; fewer for many rows, so that a result's sums take 64 MiB at
 * most. */
static inline int kn_cuda_row_pass_slabs(int64_t tokens, int64_t rows, int64_t columns)
{
    const int64_t blocks = 512, usual = 1536, most = 4096, room = (int64_t)1 << 24, size = rows * columns;
    int64_t slabs = columns > 0 && columns < usual ? blocks * usual / columns : blocks;
    slabs = slabs < most ? slabs : most;
    slabs = slabs < kn_cuda_most_slabs(tokens, 16) ? slabs : kn_cuda_most_slabs(tokens, 16);
    slabs = size == 0 || slabs < room / size ? slabs : room / size;
    return (int)(slabs > 1 ? slabs : 1);
}

/* Floats of its workspace: two results of each slab, and which rows it has. */
static inline int64_t kn_cuda_row_pass_floats(int64_t tokens, int64_t rows, int64_t columns)
{
    return 2 * (int64_t)kn_cuda_row_pass_slabs(tokens, rows, columns) * (rows * columns + 1);
}

#endif
