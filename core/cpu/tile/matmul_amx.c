/* The bf16 matrix product on AMX tiles: 32 x 32 elements of C in four tiles, two tiles of A and two of B per 32 of K.
 *
 * A in place is loaded with its own stride; where K is no multiple of 32 the rest of each row is first copied beside
 * zeros, since a tile load would run past the row. K is cut so that the two panels of B in use stay in the first-level
 * cache while the rows of A pass; sums wait in a scratch of 32 columns meanwhile. KN_MATMUL_AMX_BLOCK names the
 * function, so that the tests can build it a second time over emulated tiles. */
#include "core/cpu/simd/matmul_finish.h"
#include "core/cpu/tile/amx.h"

#ifndef KN_MATMUL_AMX_BLOCK
#define KN_MATMUL_AMX_BLOCK kn_matmul_block_bf16_amx
#endif
void KN_MATMUL_AMX_BLOCK(const KnMatmulBlock *block);

enum { TILE = 16, PAIR = 2 * TILE, TILE_K = 32, TILE_BYTES = 1024, CHUNK_ROWS = 128, CACHED_STEPS = 16 };

typedef struct Chunk {
    const char *a;                                   /* row `row` of the chunk at K = 0 */
    int64_t a_tile_bytes, a_row_bytes, a_step_bytes; /* from tile to tile downwards, row to row, and along K */
    const char *tail;                                /* [CHUNK_ROWS][32] bf16 after the whole steps, or NULL */
    const char *b[2];
    float *sums; /* [CHUNK_ROWS][32] */
} Chunk;

/* Tiles: 0-3 C, 4-5 A, 6-7 B. The second row of tiles is left out when bottom_rows is 0. */
static void configure(int top_rows, int bottom_rows)
{
    KnAmxConfig config = {.palette = 1};
    const int rows[8] = {top_rows, top_rows, bottom_rows, bottom_rows, top_rows, bottom_rows, TILE, TILE};
    for (int i = 0; i < 8; i++) {
        config.rows[i] = (uint8_t)rows[i];
        config.row_bytes[i] = rows[i] ? 64 : 0;
    }
    kn_amx_config(&config);
}

static inline __attribute__((always_inline)) void step(int two_rows, int two_columns, const char *a, const char *a2,
                                                       int64_t a_row_bytes, const char *b, const char *b2)
{
    kn_amx_load(4, a, a_row_bytes);
    kn_amx_load(6, b, 64);
    kn_amx_dpbf16(0, 4, 6);
    if (two_columns) {
        kn_amx_load(7, b2, 64);
        kn_amx_dpbf16(1, 4, 7);
    }
    if (two_rows) {
        kn_amx_load(5, a2, a_row_bytes);
        kn_amx_dpbf16(2, 5, 6);
        if (two_columns)
            kn_amx_dpbf16(3, 5, 7);
    }
}

/* sums[rows of two tiles][32] (+)= A B over steps [first, last) of K, and the tail after them. */
static inline __attribute__((always_inline)) void product(int two_rows, int two_columns, const Chunk *chunk,
                                                          int64_t row, int64_t first, int64_t last, int with_tail,
                                                          int fresh)
{
    float *sums = chunk->sums + row * PAIR, *lower = sums + TILE * PAIR;
    const char *a = chunk->a + row / TILE * chunk->a_tile_bytes + first * chunk->a_step_bytes;
    const char *b = chunk->b[0] + first * TILE_BYTES, *b2 = chunk->b[1] + first * TILE_BYTES;
    if (fresh) {
        kn_amx_zero(0);
        if (two_columns)
            kn_amx_zero(1);
        if (two_rows)
            kn_amx_zero(2);
        if (two_rows && two_columns)
            kn_amx_zero(3);
    } else {
        kn_amx_load(0, sums, 4 * PAIR);
        if (two_columns)
            kn_amx_load(1, sums + TILE, 4 * PAIR);
        if (two_rows)
            kn_amx_load(2, lower, 4 * PAIR);
        if (two_rows && two_columns)
            kn_amx_load(3, lower + TILE, 4 * PAIR);
    }
    for (int64_t k = first; k < last; k++) {
        step(two_rows, two_columns, a, a + chunk->a_tile_bytes, chunk->a_row_bytes, b, b2);
        a += chunk->a_step_bytes;
        b += TILE_BYTES;
        b2 += TILE_BYTES;
    }
    if (with_tail) {
        const char *tail = chunk->tail + row * 2 * TILE_K;
        step(two_rows, two_columns, tail, tail + TILE * 2 * TILE_K, 2 * TILE_K, b, b2);
    }
    kn_amx_store(0, sums, 4 * PAIR);
    if (two_columns)
        kn_amx_store(1, sums + TILE, 4 * PAIR);
    if (two_rows)
        kn_amx_store(2, lower, 4 * PAIR);
    if (two_rows && two_columns)
        kn_amx_store(3, lower + TILE, 4 * PAIR);
}

/* All rows of a chunk against one pair of panels. */
static void rows_product(const Chunk *chunk, int rows, int two_columns, int64_t first, int64_t last, int with_tail,
                         int fresh)
{
    int row = 0;
    if (rows >= PAIR)
        configure(TILE, TILE);
    for (; row + PAIR <= rows; row += PAIR)
        if (two_columns)
            product(1, 1, chunk, row, first, last, with_tail, fresh);
        else
            product(1, 0, chunk, row, first, last, with_tail, fresh);
    if (row == rows)
        return;
    int left = rows - row;
    configure(left < TILE ? left : TILE, left > TILE ? left - TILE : 0);
    if (left > TILE && two_columns)
        product(1, 1, chunk, row, first, last, with_tail, fresh);
    else if (left > TILE)
        product(1, 0, chunk, row, first, last, with_tail, fresh);
    else if (two_columns)
        product(0, 1, chunk, row, first, last, with_tail, fresh);
    else
        product(0, 0, chunk, row, first, last, with_tail, fresh);
}

static void chunk_product(const KnMatmulBlock *block, int64_t row, int rows)
{
    _Alignas(64) KnV sums[CHUNK_ROWS * PAIR / KN_LANES];
    _Alignas(64) uint16_t tail[CHUNK_ROWS][TILE_K];
    const int vectors = PAIR / KN_LANES;
    const int64_t tail_k = block->a_packed ? 0 : block->k % TILE_K;
    const int64_t steps = block->a_packed ? (block->k + TILE_K - 1) / TILE_K : block->k / TILE_K;
    Chunk chunk = {.a = block->a_packed ? block->a + row / TILE * block->a_stride : block->a + row * block->a_stride,
                   .a_tile_bytes = block->a_packed ? block->a_stride : TILE * block->a_stride,
                   .a_row_bytes = block->a_packed ? 64 : block->a_stride,
                   .a_step_bytes = block->a_packed ? TILE_BYTES : 64,
                   .sums = (float *)sums};
    if (tail_k) {
        chunk.tail = (const char *)tail;
        for (int r = 0; r < rows; r++) {
            memset(tail[r], 0, sizeof tail[r]);
            memcpy(tail[r], chunk.a + r * block->a_stride + steps * 64, (size_t)tail_k * sizeof(uint16_t));
        }
    }
    int64_t cuts = (steps + CACHED_STEPS / 2) / CACHED_STEPS;
    cuts = cuts > 1 ? cuts : 1;
    for (int64_t column = 0; column < block->columns; column += PAIR) {
        const int two_columns = block->columns - column > TILE;
        chunk.b[0] = block->b + column / KN_PANEL * block->b_stride;
        chunk.b[1] = two_columns ? chunk.b[0] + block->b_stride : chunk.b[0];
        if (block->start)
            kn_tile_start(block, row, column, rows, vectors, sums);
        for (int64_t cut = 0; cut < cuts; cut++)
            rows_product(&chunk, rows, two_columns, steps * cut / cuts, steps * (cut + 1) / cuts,
                         tail_k && cut == cuts - 1, cut == 0 && !block->start);
        kn_tile_finish(block, row, column, rows, vectors, sums);
    }
}

void KN_MATMUL_AMX_BLOCK(const KnMatmulBlock *block)
{
    for (int64_t row = 0; row < block->rows; row += CHUNK_ROWS)
        chunk_product(block, row, (int)(block->rows - row < CHUNK_ROWS ? block->rows - row : CHUNK_ROWS));
    kn_amx_release();
}
