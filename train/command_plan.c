/* `kinora plan`: what a training step will need and take on a described device, for one layout or for all of them. */
#include "train/commands.h"

#include "core/base/args.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/cpu/backend.h"
#include "core/graph/devices.h"
#include "train/calibrate.h"
#include "train/plan_search.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Options {
    KnArgList set;
    const char *mesh, *device, *mode;
    int64_t nodes, ranks_per_node, clip_tokens, rows;
    int search, json, kernels;
} Options;

static const KnArg rows[] = {
    {.name = "mesh",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, mesh),
     .metavariable = "AXIS=N,...",
     .meaning = "the layout, as in data=2,ulysses=4,zero=3; otherwise that of the configuration"},
    {.name = "device",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, device),
     .metavariable = "NAME",
     .fallback = "cpu",
     .meaning = "h200, h100, a100, a FILE.yaml of `kinora bench calibrate`, or cpu: calibrates this machine now"},
    {.name = "nodes",
     .kind = KN_ARG_INT,
     .offset = offsetof(Options, nodes),
     .metavariable = "N",
     .meaning = "nodes of the job; otherwise as many as the layout needs",
     .low = 1,
     .high = 1 << 20},
    {.name = "gpus-per-node",
     .kind = KN_ARG_INT,
     .offset = offsetof(Options, ranks_per_node),
     .metavariable = "N",
     .meaning = "ranks of a node; otherwise what the device says",
     .low = 1,
     .high = 1024},
    {.name = "clip-tokens",
     .kind = KN_ARG_INT,
     .offset = offsetof(Options, clip_tokens),
     .metavariable = "N",
     .meaning = "tokens of one clip, which attend to each other; otherwise one clip fills the pack",
     .low = 1,
     .high = 1 << 30},
    {.name = "mode",
     .kind = KN_ARG_CHOICE,
     .offset = offsetof(Options, mode),
     .metavariable = "train|sample",
     .fallback = "train",
     .meaning = "a whole training step, or one forward of one pack"},
    {.name = "kernels",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, kernels),
     .meaning = "the kernels behind the step: how many of each shape, their time and share of the device's limit"},
    {.name = "search",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, search),
     .meaning = "all layouts, ZeRO stages and recomputation on all nodes' ranks, fastest first"},
    {.name = "rows",
     .kind = KN_ARG_INT,
     .offset = offsetof(Options, rows),
     .metavariable = "N",
     .fallback = "10",
     .meaning = "with --search: layouts that are printed",
     .low = 1,
     .high = 1e6},
    {.name = "set",
     .kind = KN_ARG_STRINGS,
     .offset = offsetof(Options, set),
     .metavariable = "KEY=VALUE",
     .meaning = "override one key of the configuration; may be repeated"},
    {.name = "json", .kind = KN_ARG_FLAG, .offset = offsetof(Options, json), .meaning = "print one JSON object"},
};

static const KnArgSpec spec = {
    .command = "plan",
    .usage = "CONFIG.yaml [--mesh data=2,ulysses=4] [--device NAME] [--nodes N] [--kernels | --search] "
             "[--set key=value ...]",
    .description = "Says what memory a rank will need and how long a step will take, by walking the graphs that would\n"
                   "run. Nothing is allocated, no data set is read. Time is simulated; what was assumed is printed.",
    .examples = "kinora plan configs/demo.yaml\n"
                "kinora plan configs/plan-14b.yaml --device h200 --mesh shard=8,ulysses=8\n"
                "kinora plan configs/plan-14b.yaml --device h200 --nodes 128 --search\n"
                "kinora plan configs/wan-1.3b.yaml --device h100 --kernels --set data.tokens=4096",
    .args = rows,
    .arg_count = sizeof rows / sizeof rows[0],
    .least_positionals = 1,
    .most_positionals = 1,
};

enum { MOST_RANKS = 1 << 30 };

/* --- What is asked ------------------------------------------------------------------------------------------------ */

static int load_config(KnConfig *config, const char *path, const Options *o)
{
    if (o->search && o->mesh)
        return kn_fail(KN_EINPUT, "--search tries every layout: leave --mesh out; --nodes says for how many ranks");
    if (o->search && (o->kernels || strcmp(o->mode, "train")))
        return kn_fail(KN_EINPUT, "--search ranks training steps: leave --kernels and --mode out, or plan one layout");
    KN_TRY(kn_config_load(config, path, o->set.items, o->set.count));
    return o->mesh ? kn_mesh_parse(o->mesh, &config->parallel) : KN_OK;
}

/* As training does: workspaces have a part for each thread. */
static void set_threads(const KnConfig *c, int ranks, const KnDevice *device)
{
    int64_t neighbours = ranks < device->ranks_per_node ? ranks : device->ranks_per_node;
    int share = (int)(kn_cpu_threads() / neighbours);
    kn_cpu_set_threads(c->train.threads > 0 ? (int)c->train.threads : share > 1 ? share : 1);
}

static int load_device(KnDevice *device, const Options *o)
{
    if (strcmp(o->device, "cpu") == 0)
        KN_TRY(kn_calibrate(device, NULL));
    else
        KN_TRY(kn_device_load(device, o->device));
    if (o->ranks_per_node)
        device->ranks_per_node = o->ranks_per_node;
    return KN_OK;
}

static void note(KnDevice *device, char *text)
{
    for (char *c = text; *c; c++)
        *c = strchr("\"\\\n", *c) ? '\'' : *c;
    kn_string_list_add(&device->notes, text);
    free(text);
}

/* The backend whose form of the graph a device runs, as far as it is here; a note says which. */
static KnBackend *find_backend(KnDevice *device)
{
    KnBackend *cuda = NULL;
    if (strcmp(device->backend, "cpu") == 0)
        return NULL;
    if (kn_cuda_backend_plan(kn_cuda_plugin_path(), &cuda) == KN_OK)
        note(device, kn_format("the graph is that of the CUDA backend, with its workspaces (but cuDNN's, up to "
                               "KINORA_CUDNN_MIB) and the passes of its kernels over memory; products and attention "
                               "by their curves, those of 8 bits by that of bf16"));
    else
        note(device, kn_format("the graph is that of no backend, without workspaces, and each node moves its operands "
                               "once: %s",
                               kn_error_message()));
    return cuda;
}

/* All ranks of the nodes, or what the layout multiplies to. */
static int count_ranks(const KnConfig *c, const Options *o, const KnDevice *device, int *ranks)
{
    const KnParallelConfig *p = &c->parallel;
    const int64_t axes[] = {p->data ? p->data : 1, p->shard, p->cfg, p->ring, p->ulysses, p->tensor};
    double product = 1;
    for (size_t i = 0; i < sizeof axes / sizeof *axes; i++)
        product *= (double)axes[i];
    if (o->nodes)
        product = (double)(o->nodes * device->ranks_per_node);
    if (product > MOST_RANKS)
        return kn_fail(KN_EINPUT, "a job of %.0f ranks is more than the %d that a plan can be made for", product,
                       MOST_RANKS);
    *ranks = (int)product;
    return KN_OK;
}

/* --- What is printed ---------------------------------------------------------------------------------------------- */

static const char *const kind_names[KN_TIME_KINDS] = {
    [KN_TIME_MATMUL] = "matmul", [KN_TIME_ATTENTION] = "attention", [KN_TIME_MEMORY] = "memory-bound"};

/* Where a plan needs so many bytes too much. */
static void print_advice(const KnStepPlan *plan, const KnStepPlanOptions *o, double excess)
{
    double state = plan->memory[KN_STEP_OPTIMIZER];
    printf("  %.1f MiB too much: ", excess / 1048576.0);
    if (strcmp(o->device->backend, "cpu") != 0 && state >= excess)
        printf("train.offload=optimizer keeps %.1f in the host's memory, and fits\n", state / 1048576.0);
    else
        printf("try model.recompute=block, fewer data.tokens or more ranks; --search lists what fits\n");
}

static void print_memory(const KnStepPlan *plan, const KnStepPlanOptions *o)
{
    double room = o->device->memory - o->device->reserved, excess = plan->memory[KN_STEP_PEAK] - room;
    printf("memory of a rank, MiB\n");
    for (int row = 0; row < KN_STEP_MEMORY_ROWS; row++)
        if (plan->memory[row] > 0)
            printf("  %-22s %12.1f%s\n", kn_step_memory_name((KnStepMemory)row), plan->memory[row] / 1048576.0,
                   row == KN_STEP_PEAK && excess > 0 ? "  does not fit" : "");
    if (plan->offloaded > 0)
        printf("  %-22s %12.1f\n", "of the host, pinned", plan->offloaded / 1048576.0);
    if (excess > 0)
        print_advice(plan, o, excess);
}

static void print_time(const KnStepPlan *plan)
{
    const KnTimeline *t = &plan->time;
    printf("time of a step, ms\n");
    for (int i = 0; i < KN_TIME_KINDS; i++)
        printf("  %-22s %12.3f\n", kind_names[i], 1e3 * t->by_kind[i]);
    if (plan->host > 0)
        printf("  %-22s %12.3f\n", "host", 1e3 * plan->host);
    if (t->exchange_count)
        printf("  %-22s %12.3f\n  %-48s %12s %12s %12s %8s\n", "exposed exchanges", 1e3 * t->exposed, "exchanges",
               "MiB", "ms", "exposed", "hidden");
    for (int i = 0; i < t->exchange_count; i++) {
        const KnExchangeTime *e = &t->exchanges[i];
        char label[96];
        snprintf(label, sizeof label, "%s: %.0f x %s of %s", e->name, e->count, e->kind, e->group);
        printf("  %-48s %12.1f %12.3f %12.3f %7.0f%%\n", label, e->bytes / 1048576.0, 1e3 * e->seconds,
               1e3 * e->exposed, e->exposed < e->seconds ? 100 * (1 - e->exposed / e->seconds) : 0);
    }
    printf("  %-22s %12.3f\n", "step", 1e3 * plan->seconds);
}

static KnDtype compute_dtype(const KnConfig *c)
{
    return c->train.precision == KN_PRECISION_F32 ? KN_F32 : KN_BF16;
}

static void print_kernels(KnKernelTimes *k, const KnDevice *device, double step)
{
    static const double least_share = 5e-4; /* of the step: rows below are added up */
    KnKernelTime rest = {0};
    double sum = 0;
    kn_kernel_times_sort(k);
    printf("kernels\n  %-26s %-48s %7s %10s %7s %15s %6s\n", "name", "shape", "count", "ms", "step", "a second",
           "limit");
    for (int i = 0; i < k->count; i++) {
        const KnKernelTime *row = &k->rows[i];
        int moves = row->time == KN_TIME_MEMORY;
        double rate = row->work / row->seconds;
        char share[16] = "";
        sum += row->seconds;
        if (row->seconds < least_share * step) {
            rest.count += row->count;
            rest.seconds += row->seconds;
            continue;
        }
        if (row->fastest > 0)
            snprintf(share, sizeof share, "%.0f%%", 100 * row->fastest / row->seconds);
        printf("  %-26s %-48s %7.0f %10.3f %6.1f%% %7.0f %s %6s\n", row->name, row->shape, row->count,
               1e3 * row->seconds, 100 * row->seconds / step, rate * (moves ? 1e-9 : 1e-12),
               moves ? "GB/s   " : "TFLOP/s", share);
    }
    printf("  %-26s %-48s %7.0f %10.3f %6.1f%%\n", "others", "", rest.count, 1e3 * rest.seconds,
           100 * rest.seconds / step);
    printf("  %-26s %-48s %7s %10.3f %6.1f%%\n", "sum", "", "", 1e3 * sum, 100 * sum / step);
    if (k->least > 0)
        printf("  kernels bound by memory move %.2f times what their operands hold\n", k->moved / k->least);
    if (device->limit[KN_BF16] > 0)
        printf("  limits: %.0f TFLOP/s of bf16, %.0f of f32, %.0f GB/s\n", 1e-12 * device->limit[KN_BF16],
               1e-12 * device->limit[KN_F32], 1e-9 * device->memory_limit);
}

static void print_json_kernels(KnKernelTimes *k)
{
    kn_kernel_times_sort(k);
    printf("\"kernels\": [");
    for (int i = 0; i < k->count; i++) {
        const KnKernelTime *row = &k->rows[i];
        printf("%s{\"name\": \"%s\", \"shape\": \"%s\", \"class\": \"%s\", \"count\": %.0f, \"seconds\": %.6g, "
               "\"work\": %.6g, \"limit_share\": %.4f}",
               i ? ", " : "", row->name, row->shape, kind_names[row->time], row->count, row->seconds, row->work,
               row->fastest / row->seconds);
    }
    printf("], \"moved_bytes\": %.0f, \"least_bytes\": %.0f, ", k->moved, k->least);
}

static void print_assumptions(const KnStepPlanOptions *o)
{
    int64_t clip = o->clip_tokens ? o->clip_tokens : o->config->data.tokens;
    printf("assumed\n");
    printf("  - one rank stands for all (one with most heads); ranks are equally fast; a "
           "clip has %lld tokens; the vocabulary is full\n",
           (long long)clip);
    printf("  - %s; ring algorithms over a group's slowest link\n",
           strcmp(o->device->backend, "cpu") ? "exchanges run one after another, in the order of their starts"
                                             : "exchanges of different groups do not slow each other");
    for (int i = 0; i < o->device->notes.count; i++)
        printf("  - %s\n", o->device->notes.items[i]);
}

static void print_json_assumptions(const KnDevice *device)
{
    printf("\"assumed\": [");
    for (int i = 0; i < device->notes.count; i++)
        printf("%s\"%s\"", i ? ", " : "", device->notes.items[i]);
    printf("]");
}

static void print_json_plan(const KnStepPlan *plan, const KnStepPlanOptions *o)
{
    printf("\"memory_bytes\": {");
    for (int row = 0; row < KN_STEP_MEMORY_ROWS; row++)
        printf("%s\"%s\": %.0f", row ? ", " : "", kn_step_memory_name((KnStepMemory)row), plan->memory[row]);
    printf("}, \"offloaded_bytes\": %.0f, \"seconds\": {", plan->offloaded);
    for (int i = 0; i < KN_TIME_KINDS; i++)
        printf("\"%s\": %.6g, ", kind_names[i], plan->time.by_kind[i]);
    printf("\"host\": %.6g, \"exposed\": %.6g, \"step\": %.6g}, \"exchanges\": [", plan->host, plan->time.exposed,
           plan->seconds);
    for (int i = 0; i < plan->time.exchange_count; i++) {
        const KnExchangeTime *e = &plan->time.exchanges[i];
        printf("%s{\"name\": \"%s\", \"kind\": \"%s\", \"group\": \"%s\", \"count\": %.0f, \"bytes\": %.0f, "
               "\"seconds\": %.6g, \"exposed\": %.6g}",
               i ? ", " : "", e->name, e->kind, e->group, e->count, e->bytes, e->seconds, e->exposed);
    }
    printf("], \"tokens_per_second\": %.6g, \"peak_share\": %.4f, \"three_forwards_flops\": %.6g, "
           "\"recomputed_blocks\": %d, \"blocks\": %d",
           plan->tokens / plan->seconds, kn_step_plan_peak_share(plan, o), kn_step_plan_rate(plan, o), plan->recomputed,
           plan->blocks);
}

static void print_rate(double flops, const char *counted, double limit)
{
    printf("%.4g TFLOP/s a rank%s", 1e-12 * flops, counted);
    if (limit > 0)
        printf(": %.1f%% of %.0f", 100 * flops / limit, 1e-12 * limit);
    printf("\n");
}

static void print_rates(const KnStepPlan *plan, const KnStepPlanOptions *o)
{
    double limit = o->device->limit[compute_dtype(o->config)];
    print_rate(plan->flops / plan->seconds / o->ranks, "", limit);
    print_rate(kn_step_plan_rate(plan, o), ", a training step counted as three forwards", limit);
}

static int plan_one(const Options *options, const KnStepPlanOptions *o)
{
    KnStepPlan plan;
    KnMesh mesh;
    KN_TRY(kn_step_plan(&plan, o));
    KN_TRY(kn_mesh_create(&mesh, &o->config->parallel, 0, o->ranks));
    char *layout = kn_mesh_describe(&mesh);
    if (options->json) {
        printf("{\"device\": \"%s\", \"ranks\": %d, \"layout\": \"%s\", ", o->device->name, o->ranks, layout);
        print_json_plan(&plan, o);
        printf(", ");
        if (o->kernels)
            print_json_kernels(o->kernels);
        print_json_assumptions(o->device);
        printf("}\n");
    } else {
        printf("%d x %s: %s, zero %lld, %d of %d blocks recomputed\n", o->ranks, o->device->name, layout,
               (long long)o->config->parallel.zero, plan.recomputed, plan.blocks);
        print_memory(&plan, o);
        print_time(&plan);
        if (o->kernels)
            print_kernels(o->kernels, o->device, plan.seconds);
        printf("%.0f tokens/s, %.0f a rank, %.1f%% of peak\n", plan.tokens / plan.seconds,
               plan.tokens / plan.seconds / o->ranks, 100 * kn_step_plan_peak_share(&plan, o));
        print_rates(&plan, o);
        print_assumptions(o);
    }
    free(layout);
    return KN_OK;
}

static void print_found(const KnFoundLayout *f, const KnStepPlanOptions *o)
{
    printf("%12.0f %10.0f %6.1f%% %9.1f %9.3f %6.1f%%  %s, zero %d%s\n", f->plan.tokens / f->plan.seconds,
           f->plan.tokens / f->plan.seconds / o->ranks, 100 * kn_step_plan_peak_share(&f->plan, o),
           f->plan.memory[KN_STEP_PEAK] / 0x1p30, f->plan.seconds, 100 * f->plan.time.exposed / f->plan.seconds,
           f->name, (int)f->parallel.zero, f->recompute ? ", recompute" : "");
}

static void print_json_found(const KnFoundLayout *f, const KnStepPlanOptions *o, int index)
{
    printf("%s{\"layout\": \"%s\", \"zero\": %d, \"recompute\": %s, ", index ? ", " : "", f->name,
           (int)f->parallel.zero, f->recompute ? "true" : "false");
    print_json_plan(&f->plan, o);
    printf("}");
}

static int plan_all(const Options *options, const KnStepPlanOptions *o)
{
    KnLayoutSearch search;
    KN_TRY(kn_layout_search(&search, o));
    int shown = search.count < (int)options->rows ? search.count : (int)options->rows;
    if (options->json)
        printf("{\"device\": \"%s\", \"ranks\": %d, \"layouts\": [", o->device->name, o->ranks);
    else
        printf("%d x %s, %d layouts fit\n%12s %10s %7s %9s %9s %7s  %s\n", o->ranks, o->device->name, search.count,
               "tokens/s", "a rank", "peak", "GiB", "s a step", "exposed", "layout");
    for (int i = 0; i < shown; i++)
        if (options->json)
            print_json_found(&search.found[i], o, i);
        else
            print_found(&search.found[i], o);
    printf(options->json ? "], \"refused\": {" : "refused\n");
    for (int i = 0; i < KN_REFUSALS; i++)
        if (options->json)
            printf("%s\"%s\": %d", i ? ", " : "", kn_refusal_text((KnRefusal)i), search.refused[i]);
        else if (search.refused[i])
            printf("  %6d %s%s%s\n", search.refused[i], kn_refusal_text((KnRefusal)i),
                   search.examples[i] ? ": as " : "", search.examples[i] ? search.examples[i] : "");
    if (options->json) {
        printf("}, ");
        print_json_assumptions(o->device);
        printf("}\n");
    } else {
        print_assumptions(o);
    }
    kn_layout_search_clear(&search);
    return KN_OK;
}

int kn_command_plan(int argc, char **argv)
{
    Options options = {0};
    KnArgList files = {0};
    KnConfig config;
    KnDevice device = {0};
    KnKernelTimes kernels = {0};
    KN_TRY(kn_args_parse(&spec, argc, argv, &options, &files));
    kn_config_init(&config);
    kn_log_set_quiet(options.json);
    int code = load_config(&config, files.items[0], &options);
    kn_cpu_set_threads((int)config.train.threads);
    if (code == KN_OK)
        code = load_device(&device, &options);
    int ranks = 0;
    if (code == KN_OK)
        code = count_ranks(&config, &options, &device, &ranks);
    if (code == KN_OK) {
        KnStepPlanOptions step = {.config = &config,
                                  .device = &device,
                                  .cpu = kn_cpu_backend(),
                                  .cuda = find_backend(&device),
                                  .ranks = ranks,
                                  .clip_tokens = options.clip_tokens,
                                  .sampling = strcmp(options.mode, "train") != 0,
                                  .kernels = options.kernels ? &kernels : NULL};
        set_threads(&config, step.ranks, &device);
        code = options.search ? plan_all(&options, &step) : plan_one(&options, &step);
    }
    kn_kernel_times_clear(&kernels);
    kn_device_clear(&device);
    kn_config_clear(&config);
    kn_args_clear(&spec, &options, &files);
    return code;
}
