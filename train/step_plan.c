/* Building a rank's graphs for a plan, and adding up what they say. */
#include "train/step_plan.h"

#include "core/base/error.h"
#include "core/ops/ops.h"
#include "train/update_graph.h"

#include <stdlib.h>
#include <string.h>

static const char *const memory_names[KN_STEP_MEMORY_ROWS] = {
    [KN_STEP_PARAMETERS] = "parameters",
    [KN_STEP_GRADIENTS] = "gradients",
    [KN_STEP_OPTIMIZER] = "optimizer",
    [KN_STEP_INPUTS] = "inputs",
    [KN_STEP_WEIGHTS] = "weights for compute",
    [KN_STEP_ACTIVATIONS] = "activations",
    [KN_STEP_EXCHANGED] = "exchanged",
    [KN_STEP_TEMPORARY] = "temporary",
    [KN_STEP_WORKSPACE] = "workspace",
    [KN_STEP_GAPS] = "gaps",
    [KN_STEP_UPDATE] = "update",
    [KN_STEP_PEAK] = "peak",
    [KN_STEP_ARENA] = "arena",
};

const char *kn_step_memory_name(KnStepMemory row)
{
    return memory_names[row];
}

static size_t no_workspace(KnBackend *backend, const KnNode *node)
{
    (void)backend;
    (void)node;
    return 0;
}

/* Of a backend that takes the graph as it is. */
static KnBackend plain_backend = {.name = "gpu", .workspace_bytes = no_workspace, .exchanges_in_order = 1};

typedef struct Planner {
    const KnStepPlanOptions *options;
    const KnConfig *config;
    KnBackend *backend;
    KnModel model;
    KnLayout layout;
    KnPackParts parts; /* packs alone, for the layout-invariant mode's graphs */
    KnStepPlan *plan;
} Planner;

/* --- Memory ------------------------------------------------------------------------------------------------------- */

static KnStreamShape stream_shape(const KnConfig *c)
{
    int64_t text = c->data.text_tokens ? c->data.text_tokens : c->data.clips * c->text.max_tokens;
    return (KnStreamShape){c->data.tokens, c->data.clips, text};
}

/* The layout-invariant mode keeps what each pack and chunk gives to each parameter. */
static double invariant_parts(const Planner *p)
{
    KnSharding sharding = {.mesh = &p->layout.mesh, .shape = stream_shape(p->config), .invariant = 1};
    int64_t parts = p->parts.packs * kn_invariant_chunks(&sharding).count;
    return (double)parts * (double)kn_parameter_values_bytes(&p->layout.part);
}

int kn_step_plan_offloads(const KnStepPlanOptions *options)
{
    return options->config->train.offload == KN_OFFLOAD_OPTIMIZER && strcmp(options->device->backend, "cpu") != 0;
}

static void count_state(Planner *p)
{
    const KnZero *zero = &p->layout.zero;
    double *memory = p->plan->memory;
    int moments = p->config->optimizer.ema > 0 ? 3 : 2;
    memory[KN_STEP_PARAMETERS] = (double)kn_zero_bytes(zero, 3);
    memory[KN_STEP_GRADIENTS] = (double)kn_zero_bytes(zero, 2);
    *(kn_step_plan_offloads(p->options) ? &p->plan->offloaded : &memory[KN_STEP_OPTIMIZER]) =
        (double)kn_zero_bytes(zero, 1) * moments;
    if (p->layout.invariant)
        memory[KN_STEP_GRADIENTS] += invariant_parts(p);
}

static void count_arena(const Planner *p, KnPassMemo *memo)
{
    static const int rows[KN_MEMORY_CATEGORIES] = {
        [KN_MEMORY_INPUTS] = KN_STEP_INPUTS,           [KN_MEMORY_WEIGHTS] = KN_STEP_WEIGHTS,
        [KN_MEMORY_ACTIVATIONS] = KN_STEP_ACTIVATIONS, [KN_MEMORY_EXCHANGED] = KN_STEP_EXCHANGED,
        [KN_MEMORY_TEMPORARY] = KN_STEP_TEMPORARY,     [KN_MEMORY_WORKSPACE] = KN_STEP_WORKSPACE};
    KnPlan plan;
    kn_plan_make(&plan, memo->pass.built.graph, p->backend, NULL, 0);
    memset(memo->memory, 0, sizeof memo->memory);
    for (int i = 0; i < KN_MEMORY_CATEGORIES; i++)
        if (i != KN_MEMORY_PARAMETERS && i != KN_MEMORY_STATE)
            memo->memory[rows[i]] = (double)plan.category_bytes[i];
    memo->memory[KN_STEP_GAPS] = (double)(plan.arena_bytes - plan.live_peak_bytes);
    memo->memory[KN_STEP_ARENA] = (double)plan.arena_bytes;
    kn_plan_clear(&plan);
}

/* The passes take turns in one arena: the largest counts. */
static void take_largest(Planner *p, const KnPassMemo *memo)
{
    double *memory = p->plan->memory;
    if (memo->memory[KN_STEP_ARENA] <= memory[KN_STEP_ARENA])
        return;
    for (int row = KN_STEP_INPUTS; row <= KN_STEP_GAPS; row++)
        memory[row] = memo->memory[row];
    memory[KN_STEP_ARENA] = memo->memory[KN_STEP_ARENA];
}

static void sum_memory(Planner *p)
{
    double *memory = p->plan->memory;
    for (int row = 0; row < KN_STEP_PEAK; row++)
        memory[KN_STEP_PEAK] += memory[row];
}

/* --- The step ----------------------------------------------------------------------------------------------------- */

static KnTimelineRun graph_run(const Planner *p, const KnGraph *graph)
{
    return (KnTimelineRun){.graph = graph,
                           .backend = p->backend,
                           .device = p->options->device,
                           .mesh = &p->layout.mesh,
                           .prologue = 1,
                           .ranges = 1};
}

/* What of this rank's attention the mean rank has: heads may be cut unevenly. */
static double share_of_heads(const Planner *p)
{
    int64_t heads = p->model.config.heads, tensor = p->layout.mesh.sizes[KN_AXIS_TENSOR],
            ulysses = p->layout.mesh.sizes[KN_AXIS_ULYSSES];
    int64_t rows = (heads + tensor - 1) / tensor, own = (rows + ulysses - 1) / ulysses;
    return (double)heads / (double)(tensor * ulysses * own);
}

/* Of the mean rank. */
static void count_flops(const Planner *p, KnPassMemo *memo)
{
    const KnGraph *graph = memo->pass.built.graph;
    double share = share_of_heads(p);
    memo->flops = memo->forward_flops = 0;
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        KnCost cost = {0};
        if (!node->prologue && !node->again)
            node->op->cost(node, &cost);
        double flops = cost.matmul_flops + share * cost.attention_flops;
        memo->flops += flops;
        memo->forward_flops += node->backward ? 0 : flops;
    }
}

/* Runs of one pass are alike. */
static void run_pass(Planner *p, const KnPassMemo *memo, int prologue, int64_t times)
{
    KnKernelTimes kernels = {0};
    KnTimeline once = {.kernels = p->options->kernels ? &kernels : NULL};
    KnTimelineRun run = graph_run(p, memo->pass.built.graph);
    run.prologue = prologue;
    run.ranges = (double)memo->zero_ranks / kn_mesh_group_size(&p->layout.mesh, KN_GROUP_ZERO);
    if (times == 0)
        return;
    kn_timeline_run(&once, &run);
    kn_timeline_add(&p->plan->time, &once, (double)times);
    kn_kernel_times_clear(&kernels);
}

static int overwrites(const Planner *p)
{
    return p->parts.packs == 1 && !p->layout.invariant;
}

static KnTrainPassOptions pass_options(Planner *p, int backward, int reduce)
{
    const KnConfig *c = p->config;
    int64_t clip = p->options->clip_tokens ? p->options->clip_tokens : c->data.tokens;
    return (KnTrainPassOptions){.layout = &p->layout,
                                .shape = stream_shape(c),
                                .dtype = c->train.precision == KN_PRECISION_F32 ? KN_F32 : KN_BF16,
                                .backward = backward,
                                .reduce = reduce,
                                .only = overwrites(p),
                                .parts = &p->parts,
                                .self_pairs = (double)clip * (double)c->data.tokens,
                                .cross_pairs = (double)c->text.max_tokens * (double)c->data.tokens};
}

static int build_pass(Planner *p, KnPassMemo *memo, int backward, int reduce)
{
    const KnMesh *mesh = &p->layout.mesh;
    const int64_t sizes[10] = {mesh->sizes[KN_AXIS_RING],
                               mesh->sizes[KN_AXIS_ULYSSES],
                               mesh->sizes[KN_AXIS_TENSOR],
                               mesh->sizes[KN_AXIS_DATA] > 1,
                               kn_mesh_group_size(mesh, KN_GROUP_ZERO) > 1,
                               p->layout.zero.stage,
                               p->config->model.recompute,
                               p->model.config.layers,
                               backward,
                               overwrites(p)};
    if (memo->pass.built.graph && memcmp(memo->sizes, sizes, sizeof sizes) == 0)
        return KN_OK;
    KnTrainPassOptions options = pass_options(p, backward, reduce);
    kn_pass_graph_destroy(&memo->pass);
    KN_TRY(kn_pass_graph_create(&memo->pass, &options, p->backend));
    count_flops(p, memo);
    memcpy(memo->sizes, sizes, sizeof sizes);
    memo->zero_ranks = kn_mesh_group_size(mesh, KN_GROUP_ZERO);
    count_arena(p, memo);
    return KN_OK;
}

/* One kind of pass, so many times: the first time with the prologue. */
static int plan_pass(Planner *p, int backward, int reduce, int64_t times)
{
    KnPassMemo own = {0}, *kept = p->options->memos, *memo = kept ? &kept[2 * (p->options->layers % 2) + reduce] : &own;
    int code = build_pass(p, memo, backward, reduce);
    if (code == KN_OK)
        take_largest(p, memo);
    if (code == KN_OK && times > 0) {
        run_pass(p, memo, 1, 1);
        run_pass(p, memo, 0, times - 1);
        p->plan->flops += memo->flops * (double)times;
        p->plan->forward_flops += memo->forward_flops * (double)times;
        p->plan->blocks = memo->pass.blocks;
        p->plan->recomputed = memo->pass.recomputed;
    }
    kn_pass_graph_destroy(&own.pass);
    return code;
}

void kn_pass_memos_clear(KnPassMemo *memos)
{
    for (int i = 0; i < KN_PASS_MEMOS; i++)
        kn_pass_graph_destroy(&memos[i].pass);
}

static int plan_update(Planner *p)
{
    KnUpdateGraph update;
    KnPlan plan;
    KN_TRY(kn_update_graph_create(&update, &p->config->optimizer, &p->layout,
                                  p->layout.invariant ? KN_UPDATE_NORM_GIVEN : KN_UPDATE_LOSS_GIVEN));
    kn_plan_make(&plan, update.graph, p->backend, &update.norm2, 1);
    p->plan->memory[KN_STEP_UPDATE] = (double)plan.arena_bytes;
    kn_plan_clear(&plan);
    KnTimelineRun run = graph_run(p, update.graph);
    kn_timeline_run(&p->plan->time, &run);
    kn_update_graph_destroy(&update);
    return KN_OK;
}

static int check_packs(const Planner *p, int64_t *packs)
{
    int replicas = kn_mesh_replicas(&p->layout.mesh);
    if (p->config->train.packs % replicas)
        return kn_fail(KN_EINPUT,
                       "train.packs is %lld, which %d replicas cannot share evenly: make it a multiple of %d",
                       (long long)p->config->train.packs, replicas, replicas);
    *packs = p->config->train.packs / replicas;
    return KN_OK;
}

/* What is done around the graphs, where the device has rates for it: packs are filled and their inputs copied to the
 * device, gradients are cleared where they are added to, offloaded state is read and written across the bus. */
static double host_seconds(const Planner *p, int64_t packs)
{
    KnSharding sharding = {.mesh = &p->layout.mesh, .shape = stream_shape(p->config), .invariant = p->layout.invariant};
    int64_t tokens = kn_sharded_tokens(&sharding).count;
    double pack = (double)(tokens * kn_model_patch_dim(&p->config->model)) * sizeof(float);
    const struct {
        const char *kind;
        double bytes, times;
    } works[] = {{"fill", pack, (double)packs},
                 {"inputs", p->plan->memory[KN_STEP_INPUTS], (double)packs},
                 {"clear", p->plan->memory[KN_STEP_GRADIENTS], !overwrites(p)},
                 {"bus", p->plan->offloaded, 2}};
    double seconds = 0;
    for (size_t i = 0; i < sizeof works / sizeof *works; i++) {
        double rate = kn_device_rate(p->options->device, works[i].kind, KN_F32, 0, works[i].bytes);
        seconds += rate > 0 ? works[i].times * works[i].bytes / rate : 0;
    }
    return seconds;
}

static void finish(Planner *p, int64_t packs)
{
    sum_memory(p);
    p->plan->host = host_seconds(p, packs);
    p->plan->seconds = p->plan->time.now + p->plan->host;
    p->plan->flops *= p->options->ranks;
    p->plan->forward_flops *= p->options->ranks;
}

/* Of one pack on every replica. */
static int plan_forward(Planner *p)
{
    p->plan->memory[KN_STEP_PARAMETERS] = (double)kn_zero_bytes(&p->layout.zero, 3);
    KN_TRY(plan_pass(p, 0, 0, 1));
    finish(p, 1);
    p->plan->tokens = (double)p->config->data.tokens * kn_mesh_replicas(&p->layout.mesh);
    return KN_OK;
}

static int plan_step(Planner *p)
{
    const KnConfig *c = p->config;
    int many = p->options->ranks > 1 || p->layout.invariant;
    int64_t packs = 0;
    KN_TRY(check_packs(p, &packs));
    p->parts.packs = packs;
    count_state(p);
    if (!many || packs > 1)
        KN_TRY(plan_pass(p, 1, 0, packs - many));
    if (many)
        KN_TRY(plan_pass(p, 1, 1, 1));
    if (c->data.validation_clips > 0 && c->train.validate_every > 0)
        KN_TRY(plan_pass(p, 0, 0, 0));
    KN_TRY(plan_update(p));
    finish(p, packs);
    p->plan->tokens = (double)(c->data.tokens * c->train.packs);
    return KN_OK;
}

/* The last rank has more heads than the first where they are cut unevenly. */
static int standing_rank(const KnStepPlanOptions *o)
{
    const KnParallelConfig *p = &o->config->parallel;
    return o->config->model.heads % (p->tensor * p->ulysses) ? o->ranks - 1 : 0;
}

int kn_step_plan(KnStepPlan *plan, const KnStepPlanOptions *options)
{
    Planner p = {.options = options, .config = options->config, .plan = plan};
    KnModelConfig model = options->config->model;
    KnBackend *other = options->cuda ? options->cuda : &plain_backend;
    *plan = (KnStepPlan){.time.kernels = options->kernels};
    p.backend = strcmp(options->device->backend, "cpu") ? other : options->cpu;
    model.layers = options->layers ? options->layers : model.layers;
    KN_TRY(kn_model_create(&p.model, &model, &options->config->text, options->config->flow.prediction, NULL));
    int code =
        kn_layout_create(&p.layout, &p.model,
                         &(KnLayoutOptions){.parallel = &options->config->parallel,
                                            .training = 1,
                                            .whole_matrices = kn_optimizer_whole_matrices(&options->config->optimizer),
                                            .rank = standing_rank(options),
                                            .ranks = options->ranks});
    if (code == KN_OK)
        code = options->sampling ? plan_forward(&p) : plan_step(&p);
    kn_layout_destroy(&p.layout);
    kn_model_destroy(&p.model);
    return code;
}

/* --- Many layers from few ----------------------------------------------------------------------------------------- */

enum { FEW_LAYERS = 4, MORE_LAYERS = 5 };

static void grow(double *value, double few, double more, double layers)
{
    *value = few + (layers - FEW_LAYERS) * (more - few) / (MORE_LAYERS - FEW_LAYERS);
}

/* Gaps are chance, and do not grow. */
static void grow_memory(double *memory, const double *few, const double *more, double layers)
{
    double gaps[2] = {few[KN_STEP_GAPS], more[KN_STEP_GAPS]};
    for (int i = 0; i < KN_STEP_MEMORY_ROWS; i++)
        grow(&memory[i], few[i], more[i], layers);
    memory[KN_STEP_GAPS] = gaps[1];
    for (int row = KN_STEP_PEAK; row <= KN_STEP_ARENA; row++) {
        grow(&memory[row], few[row] - gaps[0], more[row] - gaps[1], layers);
        memory[row] += gaps[1];
    }
}

static void grow_time(KnTimeline *t, const KnTimeline *few, const KnTimeline *more, double layers)
{
    *t = *more;
    grow(&t->now, few->now, more->now, layers);
    grow(&t->exposed, few->exposed, more->exposed, layers);
    for (int i = 0; i < KN_TIME_KINDS; i++)
        grow(&t->by_kind[i], few->by_kind[i], more->by_kind[i], layers);
    KN_ASSERT(few->exchange_count == more->exchange_count);
    for (int i = 0; i < t->exchange_count; i++) {
        const KnExchangeTime *a = &few->exchanges[i], *b = &more->exchanges[i];
        grow(&t->exchanges[i].count, a->count, b->count, layers);
        grow(&t->exchanges[i].bytes, a->bytes, b->bytes, layers);
        grow(&t->exchanges[i].seconds, a->seconds, b->seconds, layers);
        grow(&t->exchanges[i].exposed, a->exposed, b->exposed, layers);
    }
}

int kn_step_plan_estimate(KnStepPlan *plan, const KnStepPlanOptions *options)
{
    int64_t layers = options->config->model.layers;
    if (layers <= MORE_LAYERS || options->config->model.recompute > 0)
        return kn_step_plan(plan, options);
    KnStepPlanOptions shallow = *options;
    KnStepPlan few, more;
    shallow.layers = FEW_LAYERS;
    KN_TRY(kn_step_plan(&few, &shallow));
    shallow.layers = MORE_LAYERS;
    KN_TRY(kn_step_plan(&more, &shallow));
    *plan = more;
    grow_memory(plan->memory, few.memory, more.memory, (double)layers);
    grow_time(&plan->time, &few.time, &more.time, (double)layers);
    grow(&plan->offloaded, few.offloaded, more.offloaded, (double)layers);
    grow(&plan->host, few.host, more.host, (double)layers);
    grow(&plan->seconds, few.seconds, more.seconds, (double)layers);
    grow(&plan->flops, few.flops, more.flops, (double)layers);
    grow(&plan->forward_flops, few.forward_flops, more.forward_flops, (double)layers);
    plan->recomputed = plan->recomputed ? (int)(plan->recomputed + layers - MORE_LAYERS) : 0;
    plan->blocks += (int)layers - MORE_LAYERS;
    return KN_OK;
}

double kn_step_plan_peak_share(const KnStepPlan *plan, const KnStepPlanOptions *options)
{
    KnDtype dtype = options->config->train.precision == KN_PRECISION_F32 ? KN_F32 : KN_BF16;
    double peak = options->device->peak[dtype] * options->ranks;
    return peak > 0 ? plan->flops / plan->seconds / peak : 0;
}

double kn_step_plan_rate(const KnStepPlan *plan, const KnStepPlanOptions *options)
{
    return plan->forward_flops * (options->sampling ? 1 : 3) / plan->seconds / options->ranks;
}
