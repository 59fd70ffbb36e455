/* The register-tiled matrix product, for every vector width: a tile of C stays in registers while K runs.
 *
 * Per step of K (one element of f32, a pair of bf16) the tile reads one panel row of packed B per 16 columns and
 * broadcasts one element or pair of A per row. Sizes are compile-time constants of always-inlined functions, so that
 * the sums are registers. Including files choose between two inner steps: f32, and bf16 by vdpbf16ps. */
#ifndef KN_CPU_SIMD_MATMUL_TILE_H
#define KN_CPU_SIMD_MATMUL_TILE_H

#include "core/cpu/simd/matmul_finish.h"

/* The largest tile: 8 rows x 48 columns leaves 8 of 32 registers for B and A, 6 x 16 leaves 4 of 16. */
#if KN_LANES == 16
enum { KN_TILE_ROWS = 8, KN_TILE_PANELS = 3 };
#elif KN_LANES == 8
enum { KN_TILE_ROWS = 6, KN_TILE_PANELS = 1 };
#else
enum { KN_TILE_ROWS = 2, KN_TILE_PANELS = 1 };
#endif

typedef enum KnTileStep { KN_STEP_F32, KN_STEP_DOT } KnTileStep;

enum { KN_PANEL_VECTORS = KN_PANEL / KN_LANES, KN_TILE_VECTORS = KN_TILE_ROWS * KN_TILE_PANELS * KN_PANEL_VECTORS };

/* A pair of bf16 of A; `single`: K is odd and this is the last element of a row in place, with nothing after it. */
KN_V_INLINE KnVu kn_tile_pair(const char *a, int single)
{
    uint32_t pair = 0;
    memcpy(&pair, a, single ? 2 : 4);
    return pair - (KnVu){0};
}

/* sums[rows][vectors] += A(rows, this step) B(this step, vectors) */
KN_V_INLINE void kn_tile_step(KnTileStep step, int rows, int panels, const char *a, int64_t a_row, const char *b,
                              int64_t b_panel, int single, KnV *sums)
{
    const int vectors = panels * KN_PANEL_VECTORS;
    KnV bv[KN_TILE_PANELS * KN_PANEL_VECTORS];
    (void)single; /* f32 has no pairs */
#define KN_B_VECTOR(v) kn_v_load(b + (v) / KN_PANEL_VECTORS * b_panel + (v) % KN_PANEL_VECTORS * (4 * KN_LANES))
    if (step == KN_STEP_F32) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            bv[v] = KN_B_VECTOR(v);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            float element;
            memcpy(&element, a + r * a_row, sizeof element);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sums[r * vectors + v] = kn_v_fma(kn_v_set(element), bv[v], sums[r * vectors + v]);
        }
    } else {
#if defined(__AVX512BF16__)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            bv[v] = KN_B_VECTOR(v);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            __m512bh pair = (__m512bh)kn_tile_pair(a + r * a_row, single);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sums[r * vectors + v] = (KnV)_mm512_dpbf16_ps((__m512)sums[r * vectors + v], pair, (__m512bh)bv[v]);
        }
#endif
    }
#undef KN_B_VECTOR
}

/* Ends that need no detour through memory: all but activations. */
KN_V_INLINE int kn_tile_is_lean(const KnMatmulBlock *block)
{
    return block->sums || (!block->activation && !block->preactivation);
}

/* kn_tile_finish for a lean block and a tile inside it, on registers. */
KN_V_INLINE void kn_tile_finish_lean(const KnMatmulBlock *block, int64_t row, int64_t column, int rows, int vectors,
                                     KnV *sums)
{
    if (!block->sums && block->alpha != 1) {
#pragma GCC unroll 24
        for (int i = 0; i < rows * vectors; i++)
            sums[i] *= block->alpha;
    }
    if (!block->sums && block->bias) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            KnV bias = kn_v_load(block->bias + column + v * KN_LANES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                sums[r * vectors + v] += bias;
        }
    }
    if (!block->sums && block->accumulate) {
        const float *from = (const float *)(void *)block->c + row * block->ldc + column;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++, from += block->ldc)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sums[r * vectors + v] += kn_v_load(from + v * KN_LANES);
    }
    if (!block->sums && block->c_type == KN_BF16) {
        uint16_t *to = (uint16_t *)(void *)block->c + row * block->ldc + column;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++, to += block->ldc)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                kn_v_store_bf16(to + v * KN_LANES, sums[r * vectors + v]);
    } else {
        const int64_t ld = block->sums ? block->ld_sums : block->ldc;
        float *to = (block->sums ? block->sums : (float *)(void *)block->c) + row * ld + column;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++, to += ld)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                kn_v_store(to + v * KN_LANES, sums[r * vectors + v]);
    }
}

/* One tile from start to finish. */
KN_V_INLINE void kn_tile(KnTileStep step, int rows, int panels, int packed, const KnMatmulBlock *block, int64_t row,
                         int64_t column)
{
    const int vectors = panels * KN_PANEL_VECTORS, count = rows * vectors;
    const char *a =
        packed ? block->a + row / KN_PANEL * block->a_stride + row % KN_PANEL * 4 : block->a + row * block->a_stride;
    const char *b = block->b + column / KN_PANEL * block->b_stride;
    const int64_t a_row = packed ? 4 : block->a_stride, b_panel = block->b_stride;
    const int64_t single = step != KN_STEP_F32 && !packed && block->k % 2;
    const int64_t steps = step == KN_STEP_F32 ? block->k : (block->k + 1) / 2 - single;
    /* Indexed by constants alone, `sums` are registers; `tile` is their image in memory. */
    KnV tile[KN_TILE_VECTORS], sums[KN_TILE_VECTORS];
    if (block->start) {
        kn_tile_start(block, row, column, rows, vectors, tile);
#pragma GCC unroll 24
        for (int i = 0; i < count; i++)
            sums[i] = tile[i];
    } else {
#pragma GCC unroll 24
        for (int i = 0; i < count; i++)
            sums[i] = (KnV){0};
    }
    for (int64_t k = 0; k < steps; k++) {
        kn_tile_step(step, rows, panels, a, a_row, b, b_panel, 0, sums);
        a += packed ? 64 : 4;
        b += 64;
    }
    if (single)
        kn_tile_step(step, rows, panels, a, a_row, b, b_panel, 1, sums);
    if (kn_tile_is_lean(block) && block->columns - column >= panels * KN_PANEL) {
        kn_tile_finish_lean(block, row, column, rows, vectors, sums);
        return;
    }
#pragma GCC unroll 24
    for (int i = 0; i < count; i++)
        tile[i] = sums[i];
    kn_tile_finish(block, row, column, rows, vectors, tile);
}

typedef void (*KnTileFunction)(const KnMatmulBlock *block, int64_t row, int64_t column);

/* Walks a block: columns outside, so that a panel group of B stays in the nearest cache while the rows pass. */
static inline void kn_tile_walk(const KnMatmulBlock *block, const int *row_sizes,
                                const KnTileFunction (*functions)[KN_TILE_PANELS])
{
    for (int64_t column = 0; column < block->columns; column += KN_TILE_PANELS * KN_PANEL) {
        int64_t panels = (block->columns - column + KN_PANEL - 1) / KN_PANEL;
        panels = panels < KN_TILE_PANELS ? panels : KN_TILE_PANELS;
        for (int64_t row = 0; row < block->rows;) {
            int64_t left = block->rows - row;
            if (block->a_packed && left > KN_PANEL - row % KN_PANEL)
                left = KN_PANEL - row % KN_PANEL; /* a tile does not cross panels of A */
            int size = 0;
            while (row_sizes[size] > left)
                size++;
            functions[size][panels - 1](block, row, column);
            row += row_sizes[size];
        }
    }
}

#define KN_TILE_NAME(name, rows, panels, packed) name##_##rows##_##panels##_##packed
#define KN_TILE_FUNCTION(name, step, rows, panels, packed)                                                             \
    static void KN_TILE_NAME(name, rows, panels, packed)(const KnMatmulBlock *block, int64_t row, int64_t column)      \
    {                                                                                                                  \
        kn_tile(step, rows, panels, packed, block, row, column);                                                       \
    }
#if KN_LANES == 16
#define KN_TILE_SIZES 8, 4, 2, 1
#define KN_TILE_PANEL_FUNCTIONS(name, step, rows, packed)                                                              \
    KN_TILE_FUNCTION(name, step, rows, 1, packed)                                                                      \
    KN_TILE_FUNCTION(name, step, rows, 2, packed)                                                                      \
    KN_TILE_FUNCTION(name, step, rows, 3, packed)
#define KN_TILE_FUNCTIONS(name, step, packed)                                                                          \
    KN_TILE_PANEL_FUNCTIONS(name, step, 8, packed)                                                                     \
    KN_TILE_PANEL_FUNCTIONS(name, step, 4, packed)                                                                     \
    KN_TILE_PANEL_FUNCTIONS(name, step, 2, packed)                                                                     \
    KN_TILE_PANEL_FUNCTIONS(name, step, 1, packed)
#define KN_TILE_ROW(name, rows, packed)                                                                                \
    {                                                                                                                  \
        KN_TILE_NAME(name, rows, 1, packed), KN_TILE_NAME(name, rows, 2, packed), KN_TILE_NAME(name, rows, 3, packed)  \
    }
#define KN_TILE_TABLE(name, packed)                                                                                    \
    KN_TILE_ROW(name, 8, packed), KN_TILE_ROW(name, 4, packed), KN_TILE_ROW(name, 2, packed),                          \
        KN_TILE_ROW(name, 1, packed)
#elif KN_LANES == 8
#define KN_TILE_SIZES 6, 4, 2, 1
#define KN_TILE_FUNCTIONS(name, step, packed)                                                                          \
    KN_TILE_FUNCTION(name, step, 6, 1, packed)                                                                         \
    KN_TILE_FUNCTION(name, step, 4, 1, packed)                                                                         \
    KN_TILE_FUNCTION(name, step, 2, 1, packed)                                                                         \
    KN_TILE_FUNCTION(name, step, 1, 1, packed)
#define KN_TILE_TABLE(name, packed)                                                                                    \
    {KN_TILE_NAME(name, 6, 1, packed)}, {KN_TILE_NAME(name, 4, 1, packed)}, {KN_TILE_NAME(name, 2, 1, packed)},        \
    {                                                                                                                  \
        KN_TILE_NAME(name, 1, 1, packed)                                                                               \
    }
#else
#define KN_TILE_SIZES 2, 1
#define KN_TILE_FUNCTIONS(name, step, packed)                                                                          \
    KN_TILE_FUNCTION(name, step, 2, 1, packed)                                                                         \
    KN_TILE_FUNCTION(name, step, 1, 1, packed)
#define KN_TILE_TABLE(name, packed)                                                                                    \
    {KN_TILE_NAME(name, 2, 1, packed)},                                                                                \
    {                                                                                                                  \
        KN_TILE_NAME(name, 1, 1, packed)                                                                               \
    }
#endif

/* Defines `function`, a KnMatmulKernel's block function, with its tiles. */
#define KN_TILE_BLOCK(function, name, step)                                                                            \
    KN_TILE_FUNCTIONS(name, step, 0)                                                                                   \
    KN_TILE_FUNCTIONS(name, step, 1)                                                                                   \
    void function(const KnMatmulBlock *block)                                                                          \
    {                                                                                                                  \
        static const int sizes[] = {KN_TILE_SIZES};                                                                    \
        static const KnTileFunction in_place[][KN_TILE_PANELS] = {KN_TILE_TABLE(name, 0)};                             \
        static const KnTileFunction packed[][KN_TILE_PANELS] = {KN_TILE_TABLE(name, 1)};                               \
        kn_tile_walk(block, sizes, block->a_packed ? packed : in_place);                                               \
    }

#endif
