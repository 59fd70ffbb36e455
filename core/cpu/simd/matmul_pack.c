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

/* `count` elements (at most 32) of one type to another, zeros up to `full`. */
static inline void convert(void *to, KnDtype to_type, const void *from, KnDtype from_type, int count, int full)
{
    if (to_type == KN_F32 && from_type == KN_F32) {
        float *out = to;
        for (int i = 0; i < count; i++)
            out[i] = ((const float *)from)[i];
        for (int i = count; i < full; i++)
            out[i] = 0;
    } else if (to_type == KN_F32) {
        float *out = to;
        for (int i = 0; i < count; i++)
            out[i] = kn_bf16_to_float(((const uint16_t *)from)[i]);
        for (int i = count; i < full; i++)
            out[i] = 0;
    } else if (from_type == KN_F32) {
        uint16_t *out = to;
        for (int i = 0; i < count; i++)
            out[i] = kn_bf16_from_float(((const float *)from)[i]);
        for (int i = count; i < full; i++)
            out[i] = 0;
    } else {
        uint16_t *out = to;
        for (int i = 0; i < count; i++)
            out[i] = ((const uint16_t *)from)[i];
        for (int i = count; i < full; i++)
            out[i] = 0;
    }
}

#if defined(__AVX2__)
static inline void transpose_8x8(const uint32_t *from, uint32_t *to)
{
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm256_loadu_ps((const float *)(from + i * CELL_WORDS));
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

static inline void transpose_16x16(const uint32_t *from, uint32_t *to)
{
    for (int i = 0; i < CELL_WORDS; i += 8)
        for (int j = 0; j < CELL_WORDS; j += 8)
            transpose_8x8(from + i * CELL_WORDS + j, to + j * CELL_WORDS + i);
}
#else
static inline void transpose_16x16(const uint32_t *from, uint32_t *to)
{
    for (int i = 0; i < CELL_WORDS; i++)
        for (int j = 0; j < CELL_WORDS; j++)
            to[j * CELL_WORDS + i] = from[i * CELL_WORDS + j];
}
#endif

/* Two rows of 16 bf16 to 16 pairs. */
static inline void interleave(const uint16_t *even, const uint16_t *odd, uint32_t *pairs)
{
    for (int i = 0; i < KN_PANEL; i += KN_LANES) {
        KnVh low, high;
        memcpy(&low, even + i, sizeof low);
        memcpy(&high, odd + i, sizeof high);
        KnVu pair = __builtin_convertvector(low, KnVu) | __builtin_convertvector(high, KnVu) << 16;
        memcpy(pairs + i, &pair, sizeof pair);
    }
}

/* Cell of a matrix stored plainly: rows k.. of columns n.., to `out` in the panel's layout. */
static void pack_plain_cell(const KnPackBlock *block, int64_t k, int k_count, int64_t n, int n_count, uint32_t *out)
{
    const size_t size = block->x_type == KN_F32 ? 4 : 2;
    const char *x = (const char *)block->x + ((size_t)k * (size_t)block->ldx + (size_t)n) * size;
    const size_t stride = (size_t)block->ldx * size;
    if (block->type == KN_F32) {
        for (int i = 0; i < k_count; i++, x += stride)
            convert(out + i * KN_PANEL, KN_F32, x, block->x_type, n_count, KN_PANEL);
        return;
    }
    uint32_t pairs[CELL_WORDS * KN_PANEL], *target = block->rows_packing ? pairs : out;
    const int in_place = block->x_type == KN_BF16 && n_count == KN_PANEL;
    for (int i = 0; i < CELL_WORDS; i++) {
        uint16_t rows[2][KN_PANEL];
        const uint16_t *halves[2];
        for (int half = 0; half < 2; half++) {
            int row = 2 * i + half;
            halves[half] = in_place && row < k_count ? (const uint16_t *)(x + (size_t)row * stride) : rows[half];
            if (halves[half] == rows[half])
                convert(rows[half], KN_BF16, x + (row < k_count ? (size_t)row * stride : 0), block->x_type,
                        row < k_count ? n_count : 0, KN_PANEL);
        }
        interleave(halves[0], halves[1], target + i * KN_PANEL);
    }
    if (block->rows_packing)
        transpose_16x16(pairs, out);
}

/* Cell of a matrix stored transposed: columns n.. lie as rows with K contiguous. */
static void pack_transposed_cell(const KnPackBlock *block, int64_t k, int k_count, int64_t n, int n_count,
                                 uint32_t *out)
{
    const int cell_k = block->type == KN_F32 ? CELL_WORDS : 2 * CELL_WORDS;
    const size_t size = block->x_type == KN_F32 ? 4 : 2;
    const char *x = (const char *)block->x + ((size_t)n * (size_t)block->ldx + (size_t)k) * size;
    uint32_t square[KN_PANEL * CELL_WORDS], turned[CELL_WORDS * KN_PANEL];
    for (int i = 0; i < KN_PANEL; i++)
        convert(square + i * CELL_WORDS, block->type, x + (i < n_count ? (size_t)i * (size_t)block->ldx * size : 0),
                block->x_type, i < n_count ? k_count : 0, cell_k);
    if (block->type == KN_BF16 || k_count == cell_k) {
        transpose_16x16(square, out);
    } else { /* packed f32 ends with the last row of K */
        transpose_16x16(square, turned);
        memcpy(out, turned, (size_t)k_count * sizeof(uint32_t) * KN_PANEL);
    }
}

void KN_ISA_NAME(kn_matmul_pack_block)(const KnPackBlock *block)
{
    const int cell_k = block->type == KN_F32 ? CELL_WORDS : 2 * CELL_WORDS;
    /* A few panels side by side: a plain matrix is then read whole cache lines at a time. */
    const int64_t group = block->transposed ? 1 : 4;
    for (int64_t first = block->first_panel; first < block->last_panel; first += group)
        for (int64_t k = block->first_k; k < block->last_k; k += cell_k)
            for (int64_t panel = first; panel < min64(first + group, block->last_panel); panel++) {
                int64_t n = panel * KN_PANEL;
                int n_count = (int)min64(KN_PANEL, block->n - n), k_count = (int)min64(cell_k, block->last_k - k);
                char *out = block->packed + panel * block->panel_bytes + (k - block->first_k) / cell_k * 1024;
                if (block->transposed)
                    pack_transposed_cell(block, k, k_count, n, n_count, (uint32_t *)out);
                else
                    pack_plain_cell(block, k, k_count, n, n_count, (uint32_t *)out);
            }
}
