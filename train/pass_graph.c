/* Building a training pass, and meeting a budget of memory by recomputing blocks.
 *
 * The first blocks are recomputed: their forward comes again at the end of the backward, when what the others kept has
 * been used up. Layers of the text encoder, which keep little, come after the transformer's. */
#include "train/pass_graph.h"

#include "core/base/error.h"
#include "core/ops/ops.h"

#include <stdlib.h>

static char *choose_blocks(const KnModel *model, int blocks, int recomputed)
{
    int text = model->text.kind == KN_TEXT_TRAINED ? (int)model->text.layers : 0;
    char *chosen = kn_alloc((size_t)blocks + 1);
    for (int i = 0; i < recomputed; i++)
        chosen[(text + i) % blocks] = 1;
    return chosen;
}

/* The loss is added to its sum; what the backward finds, to the gradients. */
static void place_gradients(KnPassGraph *pass, const KnTrainPassOptions *o, const KnSharding *sharding, int recomputed)
{
    const KnLayout *layout = o->layout;
    KnGraph *graph = pass->built.graph;
    pass->recomputed = recomputed < pass->blocks ? recomputed : pass->blocks;
    char *chosen = choose_blocks(layout->model, pass->blocks, pass->recomputed);
    KnGradientOptions options = {.zero = &layout->zero,
                                 .mesh = &layout->mesh,
                                 .recompute = pass->recomputed ? chosen : NULL,
                                 .reduce = o->reduce,
                                 .only = o->only,
                                 .also = pass->stats};
    if (layout->invariant && o->backward)
        kn_place_gradients_invariant(graph, &pass->loss, sharding, &options, o->parts->packs, &pass->invariant);
    else if (layout->invariant)
        kn_place_loss_invariant(graph, &pass->loss, sharding, &layout->zero);
    kn_accumulate(graph, pass->loss_sum, pass->loss);
    if (!layout->invariant && o->backward)
        kn_place_gradients(graph, pass->loss, &options, &pass->gradients);
    free(chosen);
}

static void build(KnPassGraph *pass, const KnTrainPassOptions *o, KnBackend *backend, int recomputed)
{
    KnModelGraph *built = &pass->built;
    KnModelGraphOptions model = {
        .shape = o->shape, .dtype = o->dtype, .self_pairs = o->self_pairs, .cross_pairs = o->cross_pairs};
    const KnLayout *layout = o->layout;
    KnSharding sharding = {
        .mesh = &layout->mesh, .model = layout->model, .shape = o->shape, .invariant = layout->invariant};
    *pass = (KnPassGraph){0};
    sharding.shard_text = kn_text_is_cut(&model, &sharding, layout->text);
    kn_model_build(layout->model, &model, built);
    KnGraph *graph = built->graph;
    pass->tokens = kn_sharded_tokens(&sharding);
    pass->text_tokens = kn_sharded_text(&sharding);
    pass->target = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 2, built->prediction->shape, "input.target");
    pass->weight = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 1, &o->shape.tokens, "input.weight");
    kn_shard_forward(built, &sharding, (KnTensor *[]){pass->target, pass->weight}, 2);
    pass->stats = kn_leaf(graph, KN_ROLE_STATE, KN_F32, 1, (int64_t[]){2}, "stats");
    pass->loss_sum = kn_leaf(graph, KN_ROLE_STATE, KN_F32, 0, NULL, "stats.loss");
    pass->loss = kn_masked_mse(graph, built->prediction, pass->target, pass->weight);
    pass->blocks = kn_graph_blocks(graph);
    place_gradients(pass, o, &sharding, o->backward ? recomputed : 0);
    if (layout->zero.stage == 3) {
        pass->shards = kn_alloc((size_t)layout->part.block_count * sizeof(KnTensor *));
        kn_zero_gather(graph, &layout->zero, pass->shards);
    }
    kn_ring_expand(graph);
    kn_overlap(graph, backend->exchanges_in_order);
    if (o->fp8)
        pass->fp8 = kn_leaf(graph, KN_ROLE_STATE, KN_F32, 2, (int64_t[]){2, kn_fp8_sites(graph)}, KN_FP8_LEAF);
    if (backend->lower)
        backend->lower(backend, graph);
    kn_fill_waits(graph, backend->exchanges_in_order);
    kn_graph_finish(graph, NULL, 0);
}

/* Builds with so many blocks recomputed, in place of what was there, and says how large the arena is. */
static size_t rebuild(KnPassGraph *pass, const KnTrainPassOptions *o, KnBackend *backend, int recomputed)
{
    KnPlan plan;
    kn_pass_graph_destroy(pass);
    build(pass, o, backend, recomputed);
    kn_plan_make(&plan, pass->built.graph, backend, NULL, 0);
    size_t bytes = plan.arena_bytes;
    kn_plan_clear(&plan);
    return bytes;
}

static int meet_budget(KnPassGraph *pass, const KnTrainPassOptions *o, KnBackend *backend, size_t budget)
{
    size_t none = rebuild(pass, o, backend, 0);
    if (none <= budget)
        return KN_OK;
    int too_few = 0, enough = pass->blocks;
    size_t all = rebuild(pass, o, backend, enough);
    if (all > budget)
        return kn_fail(KN_EINPUT,
                       "model.recompute allows %zuB for the arena of a pass, but even with all %d blocks recomputed it "
                       "needs %zuB (%.1f MiB): allow that much, or lower data.tokens",
                       budget, enough, all, (double)all / 1048576.0);
    while (enough - too_few > 1) {
        int middle = too_few + (enough - too_few) / 2;
        if (rebuild(pass, o, backend, middle) <= budget)
            enough = middle;
        else
            too_few = middle;
    }
    if (pass->recomputed != enough)
        rebuild(pass, o, backend, enough);
    return KN_OK;
}

int kn_pass_graph_create(KnPassGraph *pass, const KnTrainPassOptions *options, KnBackend *backend)
{
    int64_t asked = options->layout->model->config.recompute;
    *pass = (KnPassGraph){0};
    if (options->backward && asked > 0) {
        int code = meet_budget(pass, options, backend, (size_t)asked);
        if (code < 0)
            kn_pass_graph_destroy(pass);
        return code;
    }
    build(pass, options, backend, asked == KN_RECOMPUTE_BLOCK ? INT32_MAX : 0);
    return KN_OK;
}

void kn_pass_graph_destroy(KnPassGraph *pass)
{
    kn_gradient_plan_clear(&pass->gradients);
    kn_invariant_plan_clear(&pass->invariant);
    free(pass->shards);
    if (pass->built.graph)
        kn_graph_destroy(pass->built.graph);
    *pass = (KnPassGraph){0};
}
