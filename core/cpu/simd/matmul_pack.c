/* Packing of matrix operands into panels of 16 columns, with conversion between f32 and bf16 (layouts: matmul.h).
 *
 * Everything is done in cells of 16 columns x 64 bytes: 16 elements of K in f32, 32 in bf16. A stored-plain cell is
 * read row by row; a stored-transposed one is read column by column into a 16x16 square of 32-bit words (one f32 or one
 * bf16 pair each), which is then transposed. Cells at the matrix's edges are filled up with zeros. */
#include "core/base/bf16.h"
#include "core/cpu/matmul_kernel.h"
#include "core/cpu/simd/isa.h"
#include "core/cpu/simd/vector.h"

enum { CELL_WORDS = 16 };

static inline int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* `count` elements of one type to another; constants, but for cells at the edges. */
KN_V_INLINE void convert(void *to, KnDtype to_type, const void *from, KnDtype from_type, int count)
{
    int i = 0;
    for (; i + KN_LANES <= count; i += KN_LANES) {
        if (to_type == from_type) {
            memcpy((char *)to + i * (to_type == KN_F32 ? 4 : 2), (const char *)from + i * (to_type == KN_F32 ? 4 : 2),
                   KN_LANES * (to_type == KN_F32 ? 4 : 2));
        } else if (to_type == KN_F32) {
            kn_v_store((float *)to + i, kn_v_load_bf16((const uint16_t *)from + i));
        } else {
            kn_v_store_bf16((uint16_t *)to + i, kn_v_load((const float *)from + i));
        }
    }
    for (; i < count; i++) {
        if (to_type == KN_F32)
            ((float *)to)[i] =
                from_type == KN_F32 ? ((const float *)from)[i] : kn_bf16_to_float(((const uint16_t *)from)[i]);
        else
            ((uint16_t *)to)[i] =
                from_type == KN_BF16 ? ((const uint16_t *)from)[i] : kn_bf16_from_float(((const float *)from)[i]);
    }
}

/* Turns 16 rows of 16 words, from_stride bytes apart, into 16 lines of 64 bytes. */
#if defined(__AVX2__)
KN_V_INLINE void transpose_8x8(const char *from, size_t from_stride, uint32_t *to)
{
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm256_loadu_ps((const float *)(const void *)(from + (size_t)i * from_stride));
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps((float *)(to + i * CELL_WORDS), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps((float *)(to + (i + 4) * CELL_WORDS), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

static inline void transpose_16x16(const char *from, size_t from_stride, uint32_t *to)
{
    for (int i = 0; i < CELL_WORDS; i += 8)
        for (int j = 0; j < CELL_WORDS; j += 8)
            transpose_8x8(from + (size_t)i * from_stride + j * 4, from_stride, to + j * CELL_WORDS + i);
}
#else
static inline void transpose_16x16(const char *from, size_t from_stride, uint32_t *to)
{
    for (int i = 0; i < CELL_WORDS; i++)
        for (int j = 0; j < CELL_WORDS; j++)
            memcpy(to + j * CELL_WORDS + i, from + (size_t)i * from_stride + j * 4, 4);
}
#endif

/* Two rows of 16 bf16 to 16 pairs. */
KN_V_INLINE void interleave(const void *even, const void *odd, uint32_t *pairs)
{
    for (int i = 0; i < KN_PANEL; i += KN_LANES) {
        KnVh low, high;
        memcpy(&low, (const uint16_t *)even + i, sizeof low);
        memcpy(&high, (const uint16_t *)odd + i, sizeof high);
        KnVu pair = __builtin_convertvector(low, KnVu) | __builtin_convertvector(high, KnVu) << 16;
        memcpy(pairs + i, &pair, sizeof pair);
    }
}

/* A cell in the making: `x` is its first element, rows of the stored matrix are `stride` bytes apart. */
typedef struct Cell {
    const char *x;
    size_t stride;
    int rows, columns; /* as stored; 16 x 16, 32 x 16, 16 x 32 or less at an edge */
    uint32_t *out;
    int rows_packing;
} Cell;

/* Cells with K along the rows. Types, and `full` for a cell not at an edge, are constants where this is inlined. */
KN_V_INLINE void plain_cell(const Cell *cell, KnDtype type, KnDtype x_type, int full)
{
    if (type == KN_F32) {
        const int rows = full ? CELL_WORDS : cell->rows;
        for (int i = 0; i < rows; i++) {
            float *line = (float *)(void *)(cell->out + i * KN_PANEL);
            if (!full)
                memset(line, 0, 64);
            convert(line, KN_F32, cell->x + (size_t)i * cell->stride, x_type, full ? KN_PANEL : cell->columns);
        }
        return;
    }
    uint32_t pairs[CELL_WORDS * KN_PANEL], *target = cell->rows_packing ? pairs : cell->out;
    for (int i = 0; i < CELL_WORDS; i++) {
        const char *even = cell->x + (size_t)(2 * i) * cell->stride, *odd = even + cell->stride;
        uint16_t rows[2][KN_PANEL];
        if (!full) {
            memset(rows, 0, sizeof rows);
            if (2 * i < cell->rows)
                convert(rows[0], KN_BF16, even, x_type, cell->columns);
            if (2 * i + 1 < cell->rows)
                convert(rows[1], KN_BF16, odd, x_type, cell->columns);
            interleave(rows[0], rows[1], target + i * KN_PANEL);
        } else if (x_type == KN_F32) {
            convert(rows[0], KN_BF16, even, KN_F32, KN_PANEL);
            convert(rows[1], KN_BF16, odd, KN_F32, KN_PANEL);
            interleave(rows[0], rows[1], target + i * KN_PANEL);
        } else {
            interleave(even, odd, target + i * KN_PANEL);
        }
    }
    if (cell->rows_packing)
        transpose_16x16((const char *)pairs, 64, cell->out);
}

/* Cells with K along the columns: a square of words, turned. */
KN_V_INLINE void transposed_cell(const Cell *cell, KnDtype type, KnDtype x_type, int full)
{
    const int columns = type == KN_F32 ? CELL_WORDS : 2 * CELL_WORDS;
    if (full && type == x_type) {
        transpose_16x16(cell->x, cell->stride, cell->out);
        return;
    }
    uint32_t square[KN_PANEL * CELL_WORDS], turned[CELL_WORDS * KN_PANEL];
    const int rows = full ? KN_PANEL : cell->rows;
    if (!full)
        memset(square, 0, sizeof square);
    for (int i = 0; i < rows; i++)
        convert(square + i * CELL_WORDS, type, cell->x + (size_t)i * cell->stride, x_type,
                full ? columns : cell->columns);
    if (type == KN_BF16 || full) {
        transpose_16x16((const char *)square, 64, cell->out);
    } else { /* packed f32 ends with the last row of K */
        transpose_16x16((const char *)square, 64, turned);
        memcpy(cell->out, turned, (size_t)cell->columns * sizeof(uint32_t) * KN_PANEL);
    }
}

#define CELL_FUNCTION(form, type, x_type)                                                                              \
    static void form##_##type##_from_##x_type(const Cell *cell, int full)                                              \
    {                                                                                                                  \
        if (full)                                                                                                      \
            form##_cell(cell, type, x_type, 1);                                                                        \
        else                                                                                                           \
            form##_cell(cell, type, x_type, 0);                                                                        \
    }
CELL_FUNCTION(plain, KN_F32, KN_F32)
CELL_FUNCTION(plain, KN_F32, KN_BF16)
CELL_FUNCTION(plain, KN_BF16, KN_F32)
CELL_FUNCTION(plain, KN_BF16, KN_BF16)
CELL_FUNCTION(transposed, KN_F32, KN_F32)
CELL_FUNCTION(transposed, KN_F32, KN_BF16)
CELL_FUNCTION(transposed, KN_BF16, KN_F32)
CELL_FUNCTION(transposed, KN_BF16, KN_BF16)

/* By: transposed, type is bf16, x_type is bf16. */
static void (*const cell_functions[2][2][2])(const Cell *cell, int full) = {
    {{plain_KN_F32_from_KN_F32, plain_KN_F32_from_KN_BF16}, {plain_KN_BF16_from_KN_F32, plain_KN_BF16_from_KN_BF16}},
    {{transposed_KN_F32_from_KN_F32, transposed_KN_F32_from_KN_BF16},
     {transposed_KN_BF16_from_KN_F32, transposed_KN_BF16_from_KN_BF16}}};

static void pack_cell(const KnPackBlock *block, int64_t k, int64_t panel)
{
    const int cell_k = block->type == KN_F32 ? CELL_WORDS : 2 * CELL_WORDS;
    const size_t size = block->x_type == KN_F32 ? 4 : 2;
    const int64_t n = panel * KN_PANEL;
    const int k_count = (int)min64(cell_k, block->last_k - k), n_count = (int)min64(KN_PANEL, block->n - n);
    const int64_t first = block->transposed ? n * block->ldx + k : k * block->ldx + n;
    const Cell cell = {.x = (const char *)block->x + (size_t)first * size,
                       .stride = (size_t)block->ldx * size,
                       .rows = block->transposed ? n_count : k_count,
                       .columns = block->transposed ? k_count : n_count,
                       .out = (uint32_t *)(void *)(block->packed + panel * block->panel_bytes +
                                                   (k - block->first_k) / cell_k * CELL_WORDS * 64),
                       .rows_packing = block->rows_packing};
    cell_functions[block->transposed][block->type == KN_BF16][block->x_type == KN_BF16](&cell, k_count == cell_k &&
                                                                                                   n_count == KN_PANEL);
}

/* In the order in which the matrix is stored. */
void KN_ISA_NAME(kn_matmul_pack_block)(const KnPackBlock *block)
{
    const int cell_k = block->type == KN_F32 ? CELL_WORDS : 2 * CELL_WORDS;
    if (block->transposed) {
        for (int64_t panel = block->first_panel; panel < block->last_panel; panel++)
            for (int64_t k = block->first_k; k < block->last_k; k += cell_k)
                pack_cell(block, k, panel);
    } else {
        for (int64_t k = block->first_k; k < block->last_k; k += cell_k)
            for (int64_t panel = block->first_panel; panel < block->last_panel; panel++)
                pack_cell(block, k, panel);
    }
}
