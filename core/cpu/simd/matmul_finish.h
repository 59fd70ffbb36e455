/* The end of a matrix product: from sums in registers' order to C, with scale, bias, accumulation and activation.
 *
 * A tile is rows x vectors of sums; the last vectors may hang over the block's right edge. */
#ifndef KN_CPU_SIMD_MATMUL_FINISH_H
#define KN_CPU_SIMD_MATMUL_FINISH_H

#include "core/cpu/matmul_kernel.h"
#include "core/cpu/simd/vector.h"

/* Lanes of vector `v` of a tile at `column` that lie inside the block: 0..KN_LANES. */
KN_V_INLINE int kn_tile_lanes(const KnMatmulBlock *block, int64_t column, int v)
{
    int64_t left = block->columns - column - v * KN_LANES;
    return left >= KN_LANES ? KN_LANES : left > 0 ? (int)left : 0;
}

KN_V_INLINE KnV kn_tile_load(const float *from, int lanes)
{
    return lanes == KN_LANES ? kn_v_load(from) : kn_v_load_part(from, lanes);
}

KN_V_INLINE void kn_tile_store(const KnMatmulBlock *block, char *base, int64_t element, KnV v, int lanes)
{
    if (block->c_type == KN_BF16) {
        uint16_t *to = (uint16_t *)base + element;
        if (lanes == KN_LANES)
            kn_v_store_bf16(to, v);
        else
            kn_v_store_bf16_part(to, v, lanes);
    } else {
        float *to = (float *)base + element;
        if (lanes == KN_LANES)
            kn_v_store(to, v);
        else
            kn_v_store_part(to, v, lanes);
    }
}

/* What a tile's sums start from: `vectors` per row. */
static __attribute__((noinline)) void kn_tile_start(const KnMatmulBlock *block, int64_t row, int64_t column, int rows,
                                                    int vectors, KnV *tile)
{
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            const float *from = block->start + (row + r) * block->ld_start + column + v * KN_LANES;
            tile[r * vectors + v] = kn_tile_load(from, kn_tile_lanes(block, column, v));
        }
}

/* Sums of one vector of a row to C. What the ends have in common is constant where this is inlined. */
KN_V_INLINE void kn_tile_end(const KnMatmulBlock *block, int64_t element, KnV value, int lanes, KnEpilogue activation)
{
    if (block->accumulate)
        value += kn_tile_load((const float *)(const void *)block->c + element, lanes);
    if (block->preactivation)
        kn_tile_store(block, block->preactivation, element, value, lanes);
    if (activation == KN_EPILOGUE_GELU_TANH)
        value = kn_v_gelu_tanh(value);
    else if (activation == KN_EPILOGUE_SILU)
        value = kn_v_silu(value);
    kn_tile_store(block, block->c, element, value, lanes);
}

/* One column of vectors. */
KN_V_INLINE void kn_tile_end_column(const KnMatmulBlock *block, int64_t row, int64_t first, int rows, int vectors,
                                    const KnV *tile, int lanes, KnEpilogue activation)
{
    const KnV bias = block->bias ? kn_tile_load(block->bias + first, lanes) : kn_v_set(-0.0f); /* x + -0 is x */
    int64_t element = row * block->ldc + first;
    for (int r = 0; r < rows; r++, element += block->ldc)
        kn_tile_end(block, element, tile[r * vectors] * block->alpha + bias, lanes, activation);
}

static __attribute__((noinline)) void kn_tile_finish(const KnMatmulBlock *whole, int64_t row, int64_t column, int rows,
                                                     int vectors, const KnV *tile)
{
    const KnMatmulBlock own = *whole, *block = &own; /* a copy, which no store to C can have changed */
    for (int v = 0; v < vectors; v++) {
        const int lanes = kn_tile_lanes(block, column, v);
        const int64_t first = column + v * KN_LANES;
        if (lanes == 0)
            break;
        if (block->sums) {
            for (int r = 0; r < rows; r++) {
                float *to = block->sums + (row + r) * block->ld_sums + first;
                if (lanes == KN_LANES)
                    kn_v_store(to, tile[r * vectors + v]);
                else
                    kn_v_store_part(to, tile[r * vectors + v], lanes);
            }
            continue;
        }
#define KN_END(lanes)                                                                                                  \
    if (block->activation == KN_EPILOGUE_NONE)                                                                         \
        kn_tile_end_column(block, row, first, rows, vectors, tile + v, lanes, KN_EPILOGUE_NONE);                       \
    else                                                                                                               \
        kn_tile_end_column(block, row, first, rows, vectors, tile + v, lanes, block->activation)
        if (lanes == KN_LANES) {
            KN_END(KN_LANES);
        } else {
            KN_END(lanes);
        }
#undef KN_END
    }
}

#endif
