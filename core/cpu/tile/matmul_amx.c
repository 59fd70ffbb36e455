/* The bf16 matrix product on AMX tiles: 32 x 32 elements of C in four tiles, two tiles of A and two of B per 32 of K.
 *
 * A in place is loaded with its own stride; where K is no multiple of 32 the rest of each row is first copied beside
 * zeros, since a tile load would run past the row. K is cut so that the two panels of B in use stay in the first-level
 * cache while the rows of A pass; sums wait in a scratch of 32 columns meanwhile. Tiles read sums to start from, and
 * write sums to leave, where they are: only what hangs over the right edge and what must be finished takes the scratch.
 * Configuring tiles costs as much as a dozen products, so it is done only where the number of rows changes.
 * KN_MATMUL_AMX_BLOCK names the function, so that the tests can build it a second time over emulated tiles. */
#include "core/cpu/simd/matmul_finish.h"
#include "core/cpu/tile/amx.h"

#ifndef KN_MATMUL_AMX_BLOCK
#define KN_MATMUL_AMX_BLOCK kn_matmul_block_bf16_amx
#endif
void KN_MATMUL_AMX_BLOCK(const KnMatmulBlock *block);

enum { TILE = 16, PAIR = 2 * TILE, TILE_K = 32, TILE_ROW = 64, TILE_BYTES = 1024, CHUNK_ROWS = 128, CACHED_STEPS = 16 };

typedef struct Chunk {
    const char *a;                                   /* row `row` of the chunk at K = 0 */
    int64_t a_tile_bytes, a_row_bytes, a_step_bytes; /* from tile to tile downwards, row to row, and along K */
    const char *tail;                                /* [CHUNK_ROWS][32] bf16 after the whole steps, or NULL */
    const char *b[2];
    const float *start;              /* sums so far of the chunk's rows and these two columns of tiles; NULL: 0 */
    float *sums;                     /* where to leave them */
    int64_t start_bytes, sums_bytes; /* from row to row */
    int configured;                  /* rows that the tiles are configured for: bottom x 32 + top; 0: not yet */
} Chunk;

/* Tiles: 0-3 C, 4-5 A, 6-7 B. */
static void configure(Chunk *chunk, int top_rows, int bottom_rows)
{
    KnAmxConfig config = {.palette = 1};
    if (chunk->configured == bottom_rows * PAIR + top_rows)
        return;
    chunk->configured = bottom_rows * PAIR + top_rows;
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

static inline __attribute__((always_inline)) void load_sums(int two_rows, int two_columns, const float *from,
                                                            int64_t row_bytes)
{
    const char *lower = (const char *)from + TILE * row_bytes;
    kn_amx_load(0, from, row_bytes);
    if (two_columns)
        kn_amx_load(1, from + TILE, row_bytes);
    if (two_rows)
        kn_amx_load(2, lower, row_bytes);
    if (two_rows && two_columns)
        kn_amx_load(3, lower + TILE_ROW, row_bytes);
}

static inline __attribute__((always_inline)) void zero_sums(int two_rows, int two_columns)
{
    kn_amx_zero(0);
    if (two_columns)
        kn_amx_zero(1);
    if (two_rows)
        kn_amx_zero(2);
    if (two_rows && two_columns)
        kn_amx_zero(3);
}

static inline __attribute__((always_inline)) void store_sums(int two_rows, int two_columns, float *to,
                                                             int64_t row_bytes)
{
    char *lower = (char *)to + TILE * row_bytes;
    kn_amx_store(0, to, row_bytes);
    if (two_columns)
        kn_amx_store(1, to + TILE, row_bytes);
    if (two_rows)
        kn_amx_store(2, lower, row_bytes);
    if (two_rows && two_columns)
        kn_amx_store(3, lower + TILE_ROW, row_bytes);
}

/* Two rows of tiles: sums = start + A B over steps [first, last) of K, and the tail after them. */
static inline __attribute__((always_inline)) void product(int two_rows, int two_columns, const Chunk *chunk,
                                                          int64_t row, int64_t first, int64_t last, int with_tail)
{
    const char *a = chunk->a + row / TILE * chunk->a_tile_bytes + first * chunk->a_step_bytes;
    const char *b = chunk->b[0] + first * TILE_BYTES, *b2 = chunk->b[1] + first * TILE_BYTES;
    if (chunk->start)
        load_sums(two_rows, two_columns, (const float *)((const char *)chunk->start + row * chunk->start_bytes),
                  chunk->start_bytes);
    else
        zero_sums(two_rows, two_columns);
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
    store_sums(two_rows, two_columns, (float *)((char *)chunk->sums + row * chunk->sums_bytes), chunk->sums_bytes);
}

/* All rows of a chunk against one pair of panels. */
static void rows_product(Chunk *chunk, int rows, int two_columns, int64_t first, int64_t last, int with_tail)
{
    int row = 0;
    if (rows >= PAIR)
        configure(chunk, TILE, TILE);
    for (; row + PAIR <= rows; row += PAIR)
        if (two_columns)
            product(1, 1, chunk, row, first, last, with_tail);
        else
            product(1, 0, chunk, row, first, last, with_tail);
    if (row == rows)
        return;
    int left = rows - row;
    configure(chunk, left < TILE ? left : TILE, left > TILE ? left - TILE : TILE);
    if (left > TILE && two_columns)
        product(1, 1, chunk, row, first, last, with_tail);
    else if (left > TILE)
        product(1, 0, chunk, row, first, last, with_tail);
    else if (two_columns)
        product(0, 1, chunk, row, first, last, with_tail);
    else
        product(0, 0, chunk, row, first, last, with_tail);
}

/* One pair of panels: K in cuts, then the end. */
static void columns_product(Chunk *chunk, const KnMatmulBlock *block, int64_t row, int rows, int64_t column,
                            int64_t steps)
{
    _Alignas(64) KnV scratch[CHUNK_ROWS * PAIR / KN_LANES];
    const int vectors = PAIR / KN_LANES, two_columns = block->columns - column > TILE;
    const int whole = block->columns - column >= (two_columns ? PAIR : TILE);
    const int64_t cuts = steps < CACHED_STEPS ? 1 : (steps + CACHED_STEPS / 2) / CACHED_STEPS;
    chunk->b[0] = block->b + column / KN_PANEL * block->b_stride;
    chunk->b[1] = two_columns ? chunk->b[0] + block->b_stride : chunk->b[0];
    chunk->sums = (float *)scratch;
    chunk->sums_bytes = PAIR * (int64_t)sizeof(float);
    if (block->sums && whole) {
        chunk->sums = block->sums + row * block->ld_sums + column;
        chunk->sums_bytes = block->ld_sums * (int64_t)sizeof(float);
    }
    chunk->start = NULL;
    if (block->start && whole) {
        chunk->start = block->start + row * block->ld_start + column;
        chunk->start_bytes = block->ld_start * (int64_t)sizeof(float);
    } else if (block->start) {
        kn_tile_start(block, row, column, rows, vectors, scratch);
        chunk->start = (float *)scratch;
        chunk->start_bytes = PAIR * (int64_t)sizeof(float);
    }
    for (int64_t cut = 0; cut < cuts; cut++) {
        rows_product(chunk, rows, two_columns, steps * cut / cuts, steps * (cut + 1) / cuts,
                     chunk->tail && cut == cuts - 1);
        chunk->start = chunk->sums;
        chunk->start_bytes = chunk->sums_bytes;
    }
    if (chunk->sums == (float *)scratch)
        kn_tile_finish(block, row, column, rows, vectors, scratch);
}

static void chunk_product(const KnMatmulBlock *block, int64_t row, int rows)
{
    _Alignas(64) uint16_t tail[CHUNK_ROWS][TILE_K];
    const int64_t tail_k = block->a_packed ? 0 : block->k % TILE_K;
    const int64_t steps = block->a_packed ? (block->k + TILE_K - 1) / TILE_K : block->k / TILE_K;
    Chunk chunk = {.a = block->a_packed ? block->a + row / TILE * block->a_stride : block->a + row * block->a_stride,
                   .a_tile_bytes = block->a_packed ? block->a_stride : TILE * block->a_stride,
                   .a_row_bytes = block->a_packed ? 64 : block->a_stride,
                   .a_step_bytes = block->a_packed ? TILE_BYTES : 64};
    if (tail_k) {
        chunk.tail = (const char *)tail;
        for (int r = 0; r < rows; r++) {
            memset(tail[r], 0, sizeof tail[r]);
            memcpy(tail[r], chunk.a + r * block->a_stride + steps * 64, (size_t)tail_k * sizeof(uint16_t));
        }
    }
    for (int64_t column = 0; column < block->columns; column += PAIR)
        columns_product(&chunk, block, row, rows, column, steps);
}

void KN_MATMUL_AMX_BLOCK(const KnMatmulBlock *block)
{
    for (int64_t row = 0; row < block->rows; row += CHUNK_ROWS)
        chunk_product(block, row, (int)(block->rows - row < CHUNK_ROWS ? block->rows - row : CHUNK_ROWS));
    kn_amx_release();
}
