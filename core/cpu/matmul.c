/* The matrix product's driver: choosing a kernel, packing what must be packed, cutting C into blocks for threads.
 *
 * A plain A is read in place and a packed B as it is. Anything else is packed into the workspace in steps that stay in
 * the caches: with a transposed A (weight gradients, whose K is the number of tokens) steps of K, sums waiting in C or
 * in the workspace between them; with only B to pack, steps of N. Where C is so small that its tiles cannot occupy the
 * threads of a machine and K is long, K is cut into a fixed number of splits, summed in order at the end. Steps and
 * splits follow from the shape alone; blocks follow from the number of threads too, which no bit depends on. */
#include "core/cpu/matmul.h"

#include "core/base/error.h"
#include "core/cpu/backend.h"
#include "core/cpu/matmul_kernel.h"
#include "core/cpu/team.h"

#include <string.h>

static const KnMatmulKernel kernels[] = {
    {"generic 2x16", KN_ISA_GENERIC, KN_F32, 2, 16, 0, kn_matmul_block_f32_generic},
    {"generic 2x16", KN_ISA_GENERIC, KN_BF16, 2, 16, 0, kn_matmul_block_bf16_generic},
#if defined(KN_HAVE_avx2)
    {"avx2 6x16", KN_ISA_AVX2, KN_F32, 6, 16, 0, kn_matmul_block_f32_avx2},
    {"avx2 6x16", KN_ISA_AVX2, KN_BF16, 6, 16, 0, kn_matmul_block_bf16_avx2},
#endif
#if defined(KN_HAVE_avx512)
    {"avx512 8x48", KN_ISA_AVX512, KN_F32, 8, 48, 0, kn_matmul_block_f32_avx512},
    {"avx512 8x48", KN_ISA_AVX512, KN_BF16, 8, 48, 0, kn_matmul_block_bf16_avx512},
#endif
#if defined(KN_HAVE_avx512bf16)
    {"avx512bf16 8x48", KN_ISA_AVX512BF16, KN_BF16, 8, 48, 0, kn_matmul_block_bf16_avx512bf16},
#endif
#if defined(KN_HAVE_amx)
    {"amx 32x32", KN_ISA_AMX, KN_BF16, 32, 32, 1, kn_matmul_block_bf16_amx},
#endif
};

static const KnMatmulKernel *forced_kernel;

enum {
    UNIT_K = 32, /* all cuts of K are multiples of it */
    UNIT_N = 96, /* and of N of this: whole tiles of every kernel */
    UNIT_M = 32,
    PACK_K = 256,     /* a packing task: so many rows of K ... */
    PACK_PANELS = 16, /* ... of so many panels */
    STEP_BYTES = 6 << 20,
    CACHED_BYTES = 256 << 10,
    BLOCK_PRODUCT = 1 << 20,  /* m n k of the smallest block for a thread that has others to do */
    SERIAL_PRODUCT = 1 << 19, /* m n k below which starting threads costs more than it gives */
    SPLIT_K = 4096,
    MAX_SPLITS = 16
};

typedef struct Plan {
    KnMatmul product; /* with leading dimensions and alpha filled in */
    const KnMatmulKernel *kernel;
    int pack_a, pack_b;
    int64_t splits, split_k; /* K range of a split */
    int64_t steps_k, step_k; /* K range of a step within a split */
    int64_t step_n;
    size_t element_bytes;
    int64_t a_panel_bytes, b_panel_bytes; /* of what is packed here */
    int64_t a_panels, b_panels;           /* in one split of one step */
    int sums_in_c;
    int64_t ld_sums;
    size_t b_offset, sums_offset, workspace_bytes; /* A's panels come first */
} Plan;

/* One pass of packing and computing. */
typedef struct Step {
    const Plan *plan;
    char *workspace;
    int64_t index_k, first_n, last_n;
    int64_t block_m, block_n, blocks_m, blocks_n;
    int shared_a, shared_b; /* packed before the blocks, since several of them read the same panels */
} Step;

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t round_up(int64_t a, int64_t unit)
{
    return ceil_div(a, unit) * unit;
}

static int64_t panel_bytes(int64_t k, KnDtype type)
{
    return type == KN_F32 ? k * KN_PANEL * 4 : round_up(k, UNIT_K) * KN_PANEL * 2;
}

const KnMatmulKernel *kn_matmul_kernel(KnDtype type, KnIsa highest)
{
    const KnMatmulKernel *best = NULL;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (kernels[i].type == type && kernels[i].isa <= highest)
            best = &kernels[i];
    return best;
}

const KnMatmulKernel *kn_matmul_kernel_in_use(KnDtype type)
{
    if (forced_kernel && forced_kernel->type == type)
        return forced_kernel;
    return kn_matmul_kernel(type, kn_cpu_isa());
}

void kn_matmul_use_kernel(const KnMatmulKernel *kernel)
{
    forced_kernel = kernel;
}

const char *kn_matmul_kernel_name(KnDtype type)
{
    return kn_matmul_kernel_in_use(type)->name;
}

/* --- The plan ---------------------------------------------------------------------------------------------------- */

static void check(const KnMatmul *p)
{
    KN_ASSERT(p->m >= 0 && p->n >= 0 && p->k >= 0);
    KN_ASSERT(p->type == KN_F32 || p->type == KN_BF16);
    KN_ASSERT(p->c_type == KN_F32 || p->c_type == KN_BF16);
    KN_ASSERT(p->a_form == KN_PLAIN || p->a_form == KN_TRANSPOSED);
    KN_ASSERT(!p->accumulate || (p->c_type == KN_F32 && p->activation == KN_EPILOGUE_NONE && !p->preactivation));
}

/* How K and N are cut: by the shape and the forms alone. */
static void plan_cuts(Plan *plan)
{
    const KnMatmul *p = &plan->product;
    int64_t tiles = ceil_div(p->m, 32) * ceil_div(p->n, 48);
    plan->splits = 1;
    if (tiles > 0 && p->k >= 2 * SPLIT_K)
        plan->splits = max64(1, min64(MAX_SPLITS / tiles, p->k / SPLIT_K));
    plan->split_k = max64(UNIT_K, round_up(ceil_div(p->k, plan->splits), UNIT_K));
    plan->splits = max64(1, ceil_div(p->k, plan->split_k));
    plan->step_k = plan->split_k;
    plan->step_n = max64(UNIT_N, round_up(p->n, UNIT_N));
    int64_t columns = plan->pack_a * p->m + plan->pack_b * p->n, bytes = (int64_t)plan->element_bytes;
    if (plan->pack_a) {
        int64_t step = STEP_BYTES / (max64(columns, 1) * bytes * plan->splits);
        step = max64(512, step / 256 * 256);
        plan->step_k = min64(plan->split_k, step);
    } else if (plan->pack_b) {
        int64_t step = STEP_BYTES / (max64(p->k, 1) * bytes);
        plan->step_n = min64(plan->step_n, max64(4 * UNIT_N, step / UNIT_N * UNIT_N));
    }
    plan->steps_k = max64(1, ceil_div(plan->split_k, plan->step_k));
}

static void plan_make(Plan *plan, const KnMatmul *product)
{
    check(product);
    *plan = (Plan){.product = *product, .kernel = kn_matmul_kernel_in_use(product->type)};
    KnMatmul *p = &plan->product;
    p->alpha = p->alpha == 0 ? 1 : p->alpha;
    p->lda = p->lda ? p->lda : p->a_form == KN_PLAIN ? p->k : p->m;
    p->ldb = p->ldb ? p->ldb : p->b_form == KN_TRANSPOSED ? p->k : p->n;
    p->ldc = p->ldc ? p->ldc : p->n;
    plan->element_bytes = p->type == KN_F32 ? 4 : 2;
    plan->pack_a = p->a_form == KN_TRANSPOSED;
    plan->pack_b = p->b_form != KN_PACKED;
    plan_cuts(plan);
    plan->a_panel_bytes = panel_bytes(plan->step_k, p->type);
    plan->b_panel_bytes = plan->pack_b ? plan->a_panel_bytes : panel_bytes(p->k, p->type);
    plan->a_panels = ceil_div(p->m, KN_PANEL);
    plan->b_panels = ceil_div(min64(plan->step_n, p->n), KN_PANEL);
    if (plan->pack_a)
        plan->b_offset = (size_t)(plan->a_panel_bytes * plan->a_panels * plan->splits);
    plan->sums_offset = plan->b_offset;
    if (plan->pack_b)
        plan->sums_offset += (size_t)(plan->b_panel_bytes * plan->b_panels * plan->splits);
    plan->workspace_bytes = plan->sums_offset;
    int carried = plan->steps_k > 1 || plan->splits > 1;
    plan->sums_in_c = carried && plan->splits == 1 && p->c_type == KN_F32 && (!p->accumulate || p->alpha == 1);
    plan->ld_sums = plan->sums_in_c ? p->ldc : round_up(p->n, KN_PANEL);
    if (carried && !plan->sums_in_c)
        plan->workspace_bytes += (size_t)(plan->splits * p->m * plan->ld_sums) * sizeof(float);
}

/* --- Tasks -------------------------------------------------------------------------------------------------------- */

typedef void (*Task)(const Step *step, int64_t index);

typedef struct Tasks {
    Task task;
    const Step *step;
} Tasks;

static void do_task(void *argument, int64_t index, int slot)
{
    const Tasks *tasks = argument;
    (void)slot;
    tasks->task(tasks->step, index);
}

static void for_tasks(int threads, Task task, const Step *step, int64_t count)
{
    Tasks tasks = {task, step};
    kn_team_run_on(threads, count, do_task, &tasks);
}

static int64_t split_first_k(const Step *step, int64_t split)
{
    return split * step->plan->split_k + step->index_k * step->plan->step_k;
}

/* End of the step's K range within a split; no less than its start (the last split may be shorter). */
static int64_t split_last_k(const Step *step, int64_t split)
{
    const Plan *plan = step->plan;
    int64_t first = split_first_k(step, split), end = min64((split + 1) * plan->split_k, plan->product.k);
    return max64(first, min64(first + plan->step_k, end));
}

/* A range of panels of A (is_a) or B for K in [first_k, last_k), counted from the start of this split and step. */
static void pack_panels(const Step *step, int is_a, int64_t split, int64_t first_panel, int64_t last_panel,
                        int64_t first_k, int64_t last_k)
{
    const Plan *plan = step->plan;
    const KnMatmul *p = &plan->product;
    const int64_t bytes = (int64_t)plan->element_bytes, origin = split_first_k(step, split);
    KnPackBlock block = {.k = p->k,
                         .type = p->type,
                         .x_type = p->type,
                         .first_panel = first_panel,
                         .last_panel = last_panel,
                         .first_k = origin + first_k,
                         .last_k = min64(origin + last_k, split_last_k(step, split))};
    if (is_a) {
        block.n = p->m;
        block.x = p->a;
        block.ldx = p->lda;
        block.rows_packing = plan->kernel->rows_packing;
        block.panel_bytes = plan->a_panel_bytes;
        block.packed = step->workspace + split * plan->a_panels * plan->a_panel_bytes;
    } else {
        block.n = step->last_n - step->first_n;
        block.transposed = p->b_form == KN_TRANSPOSED;
        block.x = (const char *)p->b + step->first_n * (block.transposed ? p->ldb : 1) * bytes;
        block.ldx = p->ldb;
        block.panel_bytes = plan->b_panel_bytes;
        block.packed = step->workspace + plan->b_offset + split * plan->b_panels * plan->b_panel_bytes;
    }
    block.packed += first_k * KN_PANEL * bytes;
    KN_ISA_PICK(kn_matmul_pack_block)(&block);
}

static int64_t packing_groups(const Step *step, int is_a)
{
    if (is_a)
        return step->shared_a ? ceil_div(step->plan->a_panels, PACK_PANELS) : 0;
    return step->shared_b ? ceil_div(ceil_div(step->last_n - step->first_n, KN_PANEL), PACK_PANELS) : 0;
}

/* Tasks in the order: A's panel groups, B's panel groups; in each, splits; in each, pieces of K. */
static int64_t packing_tasks(const Step *step)
{
    return (packing_groups(step, 1) + packing_groups(step, 0)) * step->plan->splits *
           ceil_div(step->plan->step_k, PACK_K);
}

static void packing_task(const Step *step, int64_t index)
{
    const Plan *plan = step->plan;
    const int64_t pieces = ceil_div(plan->step_k, PACK_K), a_groups = packing_groups(step, 1);
    int64_t piece = index % pieces, split = index / pieces % plan->splits, group = index / pieces / plan->splits;
    const int is_a = group < a_groups;
    const int64_t columns = is_a ? plan->product.m : step->last_n - step->first_n;
    const int64_t first = (is_a ? group : group - a_groups) * PACK_PANELS;
    pack_panels(step, is_a, split, first, min64(first + PACK_PANELS, ceil_div(columns, KN_PANEL)), piece * PACK_K,
                min64((piece + 1) * PACK_K, plan->step_k));
}

static float *sums_at(const Step *step, int64_t split, int64_t row, int64_t column)
{
    const Plan *plan = step->plan;
    float *base = plan->sums_in_c ? plan->product.c : (float *)(void *)(step->workspace + plan->sums_offset);
    return base + (split * plan->product.m + row) * plan->ld_sums + column;
}

/* What of a block does not depend on K: where and how it ends. */
static KnMatmulBlock block_of(const Step *step, int64_t row, int64_t column, int64_t rows, int64_t columns)
{
    const KnMatmul *p = &step->plan->product;
    const size_t offset = (size_t)(row * p->ldc + column) * (p->c_type == KN_F32 ? 4 : 2);
    return (KnMatmulBlock){.rows = rows,
                           .columns = columns,
                           .c = (char *)p->c + offset,
                           .preactivation = p->preactivation ? (char *)p->preactivation + offset : NULL,
                           .ldc = p->ldc,
                           .c_type = p->c_type,
                           .alpha = p->alpha,
                           .bias = p->bias ? p->bias + column : NULL,
                           .accumulate = p->accumulate && !step->plan->sums_in_c,
                           .activation = p->activation};
}

/* One block of rows and columns of one split in this step. */
static void product_task(const Step *step, int64_t index)
{
    const Plan *plan = step->plan;
    const KnMatmul *p = &plan->product;
    const int64_t bytes = (int64_t)plan->element_bytes;
    int64_t column = step->first_n + index % step->blocks_n * step->block_n;
    int64_t row = index / step->blocks_n % step->blocks_m * step->block_m;
    int64_t split = index / step->blocks_n / step->blocks_m;
    int64_t first_k = split_first_k(step, split), last_k = split_last_k(step, split);
    KnMatmulBlock block =
        block_of(step, row, column, min64(step->block_m, p->m - row), min64(step->block_n, step->last_n - column));
    block.k = last_k - first_k;
    block.a_packed = plan->pack_a;
    if (plan->pack_a && !step->shared_a)
        pack_panels(step, 1, split, row / KN_PANEL, ceil_div(row + block.rows, KN_PANEL), 0, plan->step_k);
    if (plan->pack_b && !step->shared_b)
        pack_panels(step, 0, split, (column - step->first_n) / KN_PANEL,
                    ceil_div(column - step->first_n + block.columns, KN_PANEL), 0, plan->step_k);
    if (plan->pack_a) {
        block.a_stride = plan->a_panel_bytes;
        block.a = step->workspace + (split * plan->a_panels + row / KN_PANEL) * plan->a_panel_bytes;
    } else {
        block.a_stride = p->lda * bytes;
        block.a = (const char *)p->a + row * block.a_stride + first_k * bytes;
    }
    block.b_stride = plan->b_panel_bytes;
    if (plan->pack_b)
        block.b = step->workspace + plan->b_offset +
                  (split * plan->b_panels + (column - step->first_n) / KN_PANEL) * plan->b_panel_bytes;
    else
        block.b = (const char *)p->b + column / KN_PANEL * plan->b_panel_bytes + first_k * KN_PANEL * bytes;
    if (step->index_k > 0 || (plan->sums_in_c && p->accumulate)) {
        block.start = sums_at(step, split, row, column);
        block.ld_start = plan->ld_sums;
    }
    if (step->index_k < plan->steps_k - 1 || plan->splits > 1) {
        block.sums = sums_at(step, split, row, column);
        block.ld_sums = plan->ld_sums;
    }
    plan->kernel->block(&block);
}

/* Adds the splits of a band of rows in order and finishes it: a product without K that starts from the sum. */
static void splits_task(const Step *step, int64_t index)
{
    const Plan *plan = step->plan;
    int64_t row = index * UNIT_M, rows = min64(UNIT_M, plan->product.m - row);
    float *total = sums_at(step, 0, row, 0);
    for (int64_t split = 1; split < plan->splits; split++) {
        const float *part = sums_at(step, split, row, 0);
        for (int64_t i = 0; i < rows * plan->ld_sums; i++)
            total[i] += part[i];
    }
    KnMatmulBlock block = block_of(step, row, 0, rows, plan->product.n);
    block.start = total;
    block.ld_start = plan->ld_sums;
    plan->kernel->block(&block);
}

/* Blocks as large as the caches like, but several for each thread as long as they are worth the trouble. */
static void step_cut(Step *step, int threads)
{
    const Plan *plan = step->plan;
    const int64_t m = plan->product.m, n = step->last_n - step->first_n, unit_n = plan->kernel->tile_columns;
    const int64_t worthwhile = m * n * max64(1, plan->step_k) * plan->splits / BLOCK_PRODUCT;
    const int64_t wanted = threads == 1 ? 1 : max64(threads, min64(4 * threads, worthwhile));
    step->block_m = 128;
    step->block_n = 4 * UNIT_N;
    if (plan->pack_b && m <= step->block_m) { /* each block packs its part of B and multiplies it from the cache */
        int64_t columns = CACHED_BYTES / ((int64_t)plan->element_bytes * max64(1, plan->step_k)) / unit_n * unit_n;
        step->block_n = max64(unit_n, min64(step->block_n, columns));
    }
    for (;;) {
        step->blocks_m = ceil_div(m, step->block_m);
        step->blocks_n = ceil_div(n, step->block_n);
        if (step->blocks_m * step->blocks_n * plan->splits >= wanted)
            break;
        if (step->block_m > UNIT_M && m > UNIT_M && (m >= n || step->block_n <= 2 * unit_n))
            step->block_m /= 2;
        else if (step->block_n > unit_n && n > unit_n)
            step->block_n = round_up(min64(step->block_n, n) / 2, unit_n);
        else
            break;
    }
    /* Panels that one block alone reads are packed by that block: they are in its core's cache then. */
    step->shared_a = plan->pack_a && step->blocks_n > 1;
    step->shared_b = plan->pack_b && step->blocks_m > 1;
}

static void execute(const Plan *plan, char *workspace, int threads)
{
    const KnMatmul *p = &plan->product;
    Step step = {.plan = plan, .workspace = workspace};
    for (; step.first_n < p->n; step.first_n = step.last_n) {
        step.last_n = min64(step.first_n + plan->step_n, p->n);
        step_cut(&step, threads);
        for (step.index_k = 0; step.index_k < plan->steps_k; step.index_k++) {
            if (step.shared_a || step.shared_b)
                for_tasks(threads, packing_task, &step, packing_tasks(&step));
            for_tasks(threads, product_task, &step, step.blocks_m * step.blocks_n * plan->splits);
        }
    }
    if (plan->splits > 1)
        for_tasks(threads, splits_task, &step, ceil_div(p->m, UNIT_M));
}

void kn_matmul_run(const KnMatmul *product, void *workspace)
{
    Plan plan;
    plan_make(&plan, product);
    int small = product->m * product->n * max64(1, product->k) <= SERIAL_PRODUCT;
    execute(&plan, workspace, small ? 1 : kn_cpu_threads());
}

void kn_matmul_serial(const KnMatmul *product, void *workspace)
{
    Plan plan;
    plan_make(&plan, product);
    execute(&plan, workspace, 1);
}

size_t kn_matmul_workspace_bytes(const KnMatmul *product)
{
    Plan plan;
    plan_make(&plan, product);
    return plan.workspace_bytes;
}

/* --- Packing ahead ------------------------------------------------------------------------------------------------ */

size_t kn_matmul_packed_bytes(int64_t k, int64_t n, KnDtype type)
{
    return (size_t)(panel_bytes(k, type) * ceil_div(n, KN_PANEL));
}

static int64_t pack_tasks(const KnMatmulPack *pack)
{
    KN_ASSERT(pack->b_form != KN_PACKED);
    return ceil_div(pack->k, PACK_K) * ceil_div(ceil_div(pack->n, KN_PANEL), PACK_PANELS);
}

static void pack_task(void *argument, int64_t index, int slot)
{
    const KnMatmulPack *pack = argument;
    (void)slot;
    const int64_t pieces = ceil_div(pack->k, PACK_K), piece = index % pieces, group = index / pieces;
    const int transposed = pack->b_form == KN_TRANSPOSED;
    KnPackBlock block = {.k = pack->k,
                         .n = pack->n,
                         .x = pack->b,
                         .ldx = pack->ldb    ? pack->ldb
                                : transposed ? pack->k
                                             : pack->n,
                         .x_type = pack->b_type,
                         .type = pack->type,
                         .transposed = transposed,
                         .panel_bytes = panel_bytes(pack->k, pack->type),
                         .first_k = piece * PACK_K,
                         .last_k = min64((piece + 1) * PACK_K, pack->k),
                         .first_panel = group * PACK_PANELS,
                         .last_panel = min64((group + 1) * PACK_PANELS, ceil_div(pack->n, KN_PANEL))};
    block.packed = (char *)pack->packed + piece * PACK_K * KN_PANEL * (pack->type == KN_F32 ? 4 : 2);
    KN_ISA_PICK(kn_matmul_pack_block)(&block);
}

void kn_matmul_pack(const KnMatmulPack *pack)
{
    KnMatmulPack copy = *pack;
    kn_team_run(pack_tasks(pack), pack_task, &copy);
}

void kn_matmul_pack_serial(const KnMatmulPack *pack)
{
    KnMatmulPack copy = *pack;
    kn_team_run_on(1, pack_tasks(pack), pack_task, &copy);
}
