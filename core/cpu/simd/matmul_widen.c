/* The bf16 matrix product without a bf16 unit: operands are widened to f32, a piece at a time that stays in the
 * second-level cache, and multiplied by the f32 tiles.
 *
 * Widening in the tile's own loop would cost it as many instructions as the products; here an element is widened once
 * for a whole block. Sums between pieces of K are carried unrounded, so that an element is still summed in order. */
#include "core/base/bf16.h"
#include "core/cpu/matmul_kernel.h"
#include "core/cpu/simd/isa.h"
#include "core/cpu/simd/vector.h"

enum {
    ROWS = 128,
    COLUMNS = 384, /* whole tiles of every kernel; the sums of ROWS x COLUMNS are carried */
    GROUP = 96,    /* columns of B that are widened at a time */
    DEPTH = 256,
    A_STRIDE = DEPTH + 16 /* elements between rows: not a power of two, which would be one cache set */
};

typedef struct Widened {
    _Alignas(64) float a[ROWS * A_STRIDE];
    _Alignas(64) float b[GROUP * DEPTH];
    _Alignas(64) float sums[ROWS * COLUMNS];
} Widened;

static inline int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void widen_row(float *to, const char *from, int64_t count)
{
    int64_t i = 0;
    for (; i + KN_LANES <= count; i += KN_LANES)
        kn_v_store(to + i, kn_v_load_bf16(from + 2 * i));
    for (; i < count; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, sizeof half);
        to[i] = kn_bf16_to_float(half);
    }
}

/* A packed panel from pairs [depth/2][16][2] to rows [depth][16]. */
static void widen_panel(float *to, const char *from, int64_t depth)
{
    for (int64_t k = 0; k < depth; k += 2, to += 2 * KN_PANEL, from += 4 * KN_PANEL)
        for (int i = 0; i < KN_PANEL; i += KN_LANES) {
            KnVu pairs = (KnVu)kn_v_load(from + 4 * i);
            kn_v_store(to + i, (KnV)(pairs << 16));
            kn_v_store(to + KN_PANEL + i, (KnV)(pairs & 0xffff0000));
        }
}

static void widen_a(Widened *w, const KnMatmulBlock *block, int64_t row, int64_t rows, int64_t k, int64_t depth)
{
    if (block->a_packed)
        for (int64_t r = 0; r < rows; r += KN_PANEL)
            widen_panel(w->a + r * DEPTH, block->a + (row + r) / KN_PANEL * block->a_stride + k * KN_PANEL * 2, depth);
    else
        for (int64_t r = 0; r < rows; r++)
            widen_row(w->a + r * A_STRIDE, block->a + (row + r) * block->a_stride + k * 2, depth);
}

/* Up to COLUMNS columns from `first` on, for one piece of K of the rows that are in w->a. */
static void multiply(Widened *w, const KnMatmulBlock *block, int64_t row, int64_t rows, int64_t first, int64_t k,
                     int64_t depth)
{
    const int64_t last = min64(first + COLUMNS, block->columns);
    for (int64_t column = first; column < last; column += GROUP) {
        const int64_t columns = min64(GROUP, last - column);
        float *carried = w->sums + column - first;
        KnMatmulBlock piece = *block;
        for (int64_t i = 0; i < columns; i += KN_PANEL)
            widen_panel(w->b + i * DEPTH, block->b + (column + i) / KN_PANEL * block->b_stride + k * KN_PANEL * 2,
                        depth);
        piece.rows = rows;
        piece.columns = columns;
        piece.k = depth;
        piece.a = (const char *)w->a;
        piece.a_stride = (block->a_packed ? KN_PANEL * DEPTH : A_STRIDE) * (int64_t)sizeof(float);
        piece.b = (const char *)w->b;
        piece.b_stride = KN_PANEL * DEPTH * (int64_t)sizeof(float);
        if (k > 0) {
            piece.start = carried;
            piece.ld_start = COLUMNS;
        } else if (block->start) {
            piece.start = block->start + row * block->ld_start + column;
        }
        if (k + depth < block->k) {
            piece.sums = carried;
            piece.ld_sums = COLUMNS;
        } else if (block->sums) {
            piece.sums = block->sums + row * block->ld_sums + column;
        } else {
            const int64_t offset = (row * block->ldc + column) * (block->c_type == KN_F32 ? 4 : 2);
            piece.c = block->c + offset;
            piece.preactivation = block->preactivation ? block->preactivation + offset : NULL;
            piece.bias = block->bias ? block->bias + column : NULL;
        }
        KN_ISA_NAME(kn_matmul_block_f32)(&piece);
    }
}

void KN_ISA_NAME(kn_matmul_block_bf16)(const KnMatmulBlock *block)
{
    Widened w;
    for (int64_t row = 0; row < block->rows; row += ROWS)
        for (int64_t first = 0; first < block->columns; first += COLUMNS) {
            const int64_t rows = min64(ROWS, block->rows - row);
            int64_t k = 0;
            do { /* once for K = 0 too: sums may start from somewhere */
                const int64_t depth = min64(DEPTH, block->k - k);
                widen_a(&w, block, row, rows, k, depth);
                multiply(&w, block, row, rows, first, k, depth);
                k += depth;
            } while (k < block->k);
        }
}
