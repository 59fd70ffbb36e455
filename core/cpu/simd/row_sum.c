/* Sums over tokens by row; see row_sum.h.
 *
 * Tokens are sorted by row (a stable counting sort) and cut into runs of equal row. A task is one run times one chunk
 * of columns, whose sums stay in registers. The sums of a row with one run go straight to the result; those of longer
 * rows go to slots that a second pass adds in order. */
#include "core/cpu/simd/row_sum.h"

#include <string.h>

enum { RUN_TOKENS = 128, CHUNK_VECTORS = KN_LANES == 16 ? 8 : 4, CHUNK = CHUNK_VECTORS * KN_LANES };

typedef struct Run {
    int32_t row, slot; /* slot -1: the row's only run */
    int64_t first, count;
} Run;

typedef struct Long { /* a row of several runs */
    int32_t row, first_slot, slots;
} Long;

typedef struct Sorted {
    const KnRowSum *sum;
    int64_t *start; /* [rows + 1]: where each row's tokens start in order */
    int64_t *order; /* tokens by row; NULL: as they come */
    Run *runs;
    Long *longs;
    float *slots; /* [slots][outputs][columns] */
    int64_t run_count, long_count, chunks;
} Sorted;

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static int64_t most_slots(int64_t tokens)
{
    return 2 * (tokens / RUN_TOKENS) + 1;
}

static int64_t most_runs(int64_t tokens, int64_t rows)
{
    return (rows < tokens ? rows : tokens) + tokens / RUN_TOKENS + 1;
}

size_t KN_ISA_NAME(kn_row_sum_bytes)(int64_t tokens, int64_t columns, int64_t rows, int outputs)
{
    size_t per_slot = (size_t)(columns * outputs) * sizeof(float);
    return aligned((size_t)(rows + 1) * sizeof(int64_t)) + aligned((size_t)tokens * sizeof(int64_t)) +
           aligned((size_t)most_runs(tokens, rows) * sizeof(Run)) + aligned((size_t)most_slots(tokens) * sizeof(Long)) +
           (size_t)most_slots(tokens) * per_slot;
}

static void lay_out(Sorted *sorted, const KnRowSum *sum, char *workspace)
{
    sorted->start = (int64_t *)workspace;
    workspace += aligned((size_t)(sum->rows + 1) * sizeof(int64_t));
    sorted->order = (int64_t *)workspace;
    workspace += aligned((size_t)sum->tokens * sizeof(int64_t));
    sorted->runs = (Run *)workspace;
    workspace += aligned((size_t)most_runs(sum->tokens, sum->rows) * sizeof(Run));
    sorted->longs = (Long *)workspace;
    workspace += aligned((size_t)most_slots(sum->tokens) * sizeof(Long));
    sorted->slots = (float *)workspace;
    sorted->chunks = (sum->columns + CHUNK - 1) / CHUNK;
}

static void sort_tokens(Sorted *sorted)
{
    const KnRowSum *sum = sorted->sum;
    int64_t *start = sorted->start, total = 0;
    memset(start, 0, (size_t)(sum->rows + 1) * sizeof *start);
    if (!sum->row_of) {
        sorted->order = NULL;
        start[1] = sum->tokens;
        return;
    }
    for (int64_t l = 0; l < sum->tokens; l++)
        if (sum->row_of[l] >= 0)
            start[sum->row_of[l] + 1]++;
    for (int64_t r = 0; r <= sum->rows; r++)
        start[r] = total += start[r];
    for (int64_t l = 0; l < sum->tokens; l++) /* start[r] runs ahead to its end, the next row's start */
        if (sum->row_of[l] >= 0)
            sorted->order[start[sum->row_of[l]]++] = l;
    memmove(start + 1, start, (size_t)sum->rows * sizeof *start);
    start[0] = 0;
}

static void cut_runs(Sorted *sorted)
{
    int32_t slots = 0;
    for (int32_t r = 0; r < sorted->sum->rows; r++) {
        int64_t first = sorted->start[r], last = sorted->start[r + 1];
        int several = last - first > RUN_TOKENS, first_slot = slots;
        for (; first < last; first += RUN_TOKENS) {
            int64_t count = last - first < RUN_TOKENS ? last - first : RUN_TOKENS;
            sorted->runs[sorted->run_count++] =
                (Run){.row = r, .slot = several ? slots++ : -1, .first = first, .count = count};
        }
        if (several)
            sorted->longs[sorted->long_count++] =
                (Long){.row = r, .first_slot = first_slot, .slots = slots - first_slot};
    }
}

/* One run times the columns [column, column + CHUNK), or fewer where the width ends: `vectors` vectors, of which the
 * last has `lanes` elements. */
KN_V_INLINE void sum_chunk(const Sorted *sorted, const Run *run, int64_t column, const int vectors, int lanes,
                           const int bf16, const int has_x, const int has_out1)
{
    const KnRowSum *sum = sorted->sum;
    KnV sum0[CHUNK_VECTORS] = {0}, sum1[CHUNK_VECTORS] = {0};
    for (int64_t i = run->first; i < run->first + run->count; i++) {
        int64_t l = sorted->order ? sorted->order[i] : i, at = l * sum->columns + column;
        KnV mean = kn_v_set(sum->mean ? sum->mean[l * sum->stride] : 0);
        KnV rstd = kn_v_set(sum->rstd ? sum->rstd[l * sum->stride] : 1);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            int here = v + 1 < vectors ? KN_LANES : lanes;
            KnV g = kn_v_read(sum->g, at + v * KN_LANES, here, bf16);
            if (has_x) {
                KnV x = kn_v_read(sum->x, at + v * KN_LANES, here, bf16);
                sum0[v] = kn_v_fma(g, (x - mean) * rstd, sum0[v]);
            } else {
                sum0[v] += g;
            }
            if (has_out1)
                sum1[v] += g;
        }
    }
    int outputs = sum->out1 ? 2 : 1;
    float *slot = run->slot >= 0 ? sorted->slots + (int64_t)run->slot * outputs * sum->columns : NULL;
    int64_t row = run->row * sum->columns;
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
        int here = v + 1 < vectors ? KN_LANES : lanes;
        int64_t c = column + v * KN_LANES;
        if (slot)
            kn_v_write(slot, c, sum0[v], here, 0);
        else
            kn_v_write(sum->out0, row + c, sum0[v], here, sum->out0_bf16);
        if (has_out1)
            kn_v_write(slot ? slot + sum->columns : sum->out1 + row, c, sum1[v], here, 0);
    }
}

KN_V_INLINE void sum_tasks(const Sorted *sorted, int64_t first, int64_t last, const int bf16, const int has_x,
                           const int has_out1)
{
    for (int64_t i = first; i < last; i++) {
        const Run *run = &sorted->runs[i / sorted->chunks];
        int64_t column = i % sorted->chunks * CHUNK, left = sorted->sum->columns - column;
        if (left >= CHUNK) {
            sum_chunk(sorted, run, column, CHUNK_VECTORS, KN_LANES, bf16, has_x, has_out1);
            continue;
        }
        if (left >= CHUNK / 2) {
            sum_chunk(sorted, run, column, CHUNK_VECTORS / 2, KN_LANES, bf16, has_x, has_out1);
            left -= CHUNK / 2;
            column += CHUNK / 2;
        }
        for (; left > 0; left -= KN_LANES, column += KN_LANES)
            sum_chunk(sorted, run, column, 1, left < KN_LANES ? (int)left : KN_LANES, bf16, has_x, has_out1);
    }
}

KN_V_INLINE void sum_g(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    sum_tasks(arguments, first, last, bf16, 0, 0);
}
KN_FOR_BOTH_DTYPES(sum_g);

KN_V_INLINE void sum_products(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    sum_tasks(arguments, first, last, bf16, 1, 0);
}
KN_FOR_BOTH_DTYPES(sum_products);

KN_V_INLINE void sum_both(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    sum_tasks(arguments, first, last, bf16, 1, 1);
}
KN_FOR_BOTH_DTYPES(sum_both);

/* Adds a long row's slots in order. */
static void add_slots(const void *arguments, int64_t first, int64_t last)
{
    const Sorted *sorted = arguments;
    const KnRowSum *sum = sorted->sum;
    int64_t columns = sum->columns, outputs = sum->out1 ? 2 : 1;
    for (int64_t i = first; i < last; i++) {
        const Long *row = &sorted->longs[i / sorted->chunks];
        int64_t column = i % sorted->chunks * CHUNK, end = column + CHUNK < columns ? column + CHUNK : columns;
        const float *slots = sorted->slots + row->first_slot * outputs * columns;
        for (int64_t k = 0; k < outputs; k++)
            KN_VECTORS(column, end, c, lanes, {
                KnV total = kn_v_read(slots + k * columns, c, lanes, 0);
                for (int32_t s = 1; s < row->slots; s++)
                    total += kn_v_read(slots + (s * outputs + k) * columns, c, lanes, 0);
                kn_v_write(k ? sum->out1 : sum->out0, row->row * columns + c, total, lanes, k ? 0 : sum->out0_bf16);
            });
    }
}

static void clear_unused_rows(const Sorted *sorted)
{
    const KnRowSum *sum = sorted->sum;
    size_t bytes0 = (size_t)sum->columns * (sum->out0_bf16 ? 2 : 4), bytes1 = (size_t)sum->columns * 4;
    for (int64_t r = 0; r < sum->rows; r++) {
        if (sorted->start[r] != sorted->start[r + 1])
            continue;
        memset((char *)sum->out0 + (size_t)r * bytes0, 0, bytes0);
        if (sum->out1)
            memset((char *)sum->out1 + (size_t)r * bytes1, 0, bytes1);
    }
}

int KN_ISA_NAME(kn_row_sum)(const KnRowSum *sum, void *workspace)
{
    Sorted sorted = {.sum = sum};
    if (sum->row_of)
        KN_TRY(kn_check_index(sum->node, sum->row_of, sum->tokens, sum->allow_negative ? INT32_MIN : 0, sum->rows));
    lay_out(&sorted, sum, workspace);
    sort_tokens(&sorted);
    cut_runs(&sorted);
    clear_unused_rows(&sorted);
    const KnRange *ranges = sum->out1 ? sum_both_ranges : sum->x ? sum_products_ranges : sum_g_ranges;
    int64_t tasks = sorted.run_count * sorted.chunks;
    int64_t work = tasks ? sum->tokens * sum->columns / tasks : 0;
    KN_ASSERT(!sum->out1 || sum->x);
    kn_parallel_for((KnLoop){.count = tasks, .block = 1, .work = work}, ranges[sum->bf16], &sorted);
    kn_parallel_for((KnLoop){.count = sorted.long_count * sorted.chunks, .block = 1, .work = CHUNK}, add_slots,
                    &sorted);
    return KN_OK;
}
