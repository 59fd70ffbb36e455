/* Building, binding and running a training pass. */
#include "train/pass.h"

#include "core/base/error.h"
#include "core/ops/ops.h"
#include "dist/gradients.h"

#include <stdlib.h>

struct KnTrainPass {
    KnModelGraph built;
    KnExecutor *executor;
    KnGradientPlan gradients;
    KnInvariantPlan invariant;
    KnPackParts *parts; /* of the layout-invariant mode */
    KnTensor **shards;  /* by block, with ZeRO 3: the weights' ranges */
    KnRows tokens, text_tokens;
    KnTensor *target, *weight, *loss, *loss_sum, *stats;
    float *rope_table;
    float *text; /* zeros, for models whose text states come from outside */
    double flops;
};

/* The loss is added to its sum; what the backward finds, to the gradients. */
static void place_gradients(KnTrainPass *pass, const KnTrainPassOptions *o, const KnSharding *sharding)
{
    const KnLayout *layout = o->layout;
    KnGraph *graph = pass->built.graph;
    KnGradientOptions options = {.zero = &layout->zero,
                                 .mesh = &layout->mesh,
                                 .recompute = layout->model->config.recompute,
                                 .reduce = o->reduce,
                                 .also = pass->stats};
    if (layout->invariant && o->backward)
        kn_place_gradients_invariant(graph, &pass->loss, sharding, &options, o->parts->packs, &pass->invariant);
    else if (layout->invariant)
        kn_place_loss_invariant(graph, &pass->loss, sharding, &layout->zero);
    kn_accumulate(graph, pass->loss_sum, pass->loss);
    if (!layout->invariant && o->backward)
        kn_place_gradients(graph, pass->loss, &options, &pass->gradients);
}

static void build(KnTrainPass *pass, const KnTrainPassOptions *o, KnBackend *backend)
{
    KnModelGraph *built = &pass->built;
    KnModelGraphOptions model = {
        .shape = o->shape, .dtype = o->dtype, .self_pairs = o->self_pairs, .cross_pairs = o->cross_pairs};
    const KnLayout *layout = o->layout;
    KnSharding sharding = {.mesh = &layout->mesh, .model = layout->model, .shape = o->shape, .invariant = layout->invariant};
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
    place_gradients(pass, o, &sharding);
    if (layout->zero.stage == 3) {
        pass->shards = kn_alloc((size_t)layout->part.block_count * sizeof(KnTensor *));
        kn_zero_gather(graph, &layout->zero, pass->shards);
    }
    kn_ring_expand(graph);
    kn_overlap(graph);
    if (backend->lower)
        backend->lower(backend, graph);
    kn_graph_finish(graph, NULL, 0);
    KnCost cost = kn_graph_cost(graph);
    pass->flops = cost.matmul_flops + cost.attention_flops;
}

/* Of the layout-invariant mode. */
static void bind_sums(KnTrainPass *pass, const KnTrainPassOptions *o)
{
    const KnZero *zero = &o->layout->zero;
    for (int b = 0; b < zero->set->block_count; b++) {
        int64_t first = zero->stage ? kn_zero_cuts(zero, b)[zero->rank] : 0;
        kn_executor_bind(pass->executor, pass->invariant.sums[b],
                         o->gradients->blocks[b] + (first - o->gradients->first[b]));
        kn_executor_bind(pass->executor, pass->invariant.all[b], pass->parts->blocks.blocks[b]);
    }
    kn_executor_bind(pass->executor, pass->invariant.order, pass->parts->order);
    kn_executor_bind(pass->executor, pass->invariant.norm2, &pass->parts->norm2);
}

void kn_train_pass_set_pack(KnTrainPass *pass, int64_t pack)
{
    const KnPackParts *parts = pass->parts;
    for (int b = 0; parts && b < parts->blocks.set->block_count; b++)
        kn_executor_bind(pass->executor, pass->invariant.parts[b],
                         parts->blocks.blocks[b] + pack * parts->chunks * parts->blocks.set->block_elements[b]);
}

static void bind_parameters(KnTrainPass *pass, const KnTrainPassOptions *o)
{
    const KnParameterSet *set = &o->layout->part;
    for (int i = 0; i < set->count; i++) {
        const KnTensor *leaf = kn_leaf_find(pass->built.graph, set->list[i].name);
        if (leaf && !pass->shards)
            kn_executor_bind(pass->executor, leaf, kn_parameter_data(o->weights, &set->list[i]));
        if (pass->gradients.sums && pass->gradients.sums[i])
            kn_executor_bind(pass->executor, pass->gradients.sums[i], kn_parameter_data(o->gradients, &set->list[i]));
    }
    for (int b = 0; b < set->block_count; b++) {
        if (pass->gradients.block_sums && pass->gradients.block_sums[b])
            kn_executor_bind(pass->executor, pass->gradients.block_sums[b], o->gradients->blocks[b]);
        if (pass->shards && pass->shards[b])
            kn_executor_bind(pass->executor, pass->shards[b], o->weights->blocks[b]);
    }
    if (pass->parts && o->reduce)
        bind_sums(pass, o);
    kn_executor_bind(pass->executor, pass->stats, o->stats);
    kn_executor_bind(pass->executor, pass->loss_sum, o->stats);
}

int kn_train_pass_create(KnTrainPass **pass, const KnTrainPassOptions *options, KnBackend *backend)
{
    const KnModelConfig *config = &options->layout->model->config;
    KnTrainPass *made = kn_alloc(sizeof *made);
    *pass = NULL;
    made->parts = options->parts;
    build(made, options, backend);
    int code = kn_executor_create(&made->executor, made->built.graph, backend, NULL, 0);
    if (code < 0) {
        kn_train_pass_destroy(made);
        return code;
    }
    made->rope_table = kn_alloc((size_t)(KN_ROPE_POSITIONS * (config->hidden / config->heads)) * sizeof(float));
    kn_dit_rope_table(config, made->rope_table);
    kn_executor_bind(made->executor, made->built.leaves.rope_table, made->rope_table);
    if (made->built.text) {
        made->text = kn_alloc(kn_tensor_bytes(made->built.text));
        kn_executor_bind(made->executor, made->built.text, made->text);
    }
    kn_executor_set_comms(made->executor, options->layout->comms.groups);
    bind_parameters(made, options);
    *pass = made;
    return KN_OK;
}

void kn_train_pass_destroy(KnTrainPass *pass)
{
    if (!pass)
        return;
    kn_executor_destroy(pass->executor);
    kn_gradient_plan_clear(&pass->gradients);
    kn_invariant_plan_clear(&pass->invariant);
    free(pass->shards);
    kn_graph_destroy(pass->built.graph);
    free(pass->rope_table);
    free(pass->text);
    free(pass);
}

void kn_train_pass_bind(KnTrainPass *pass, const KnTrainBatch *batch)
{
    KnExecutor *executor = pass->executor;
    const KnTensor *patches = pass->built.patches;
    int64_t first = pass->tokens.first, dim = kn_tensor_columns(patches);
    kn_stream_bind(executor, &pass->built.leaves, &batch->stream, first, pass->text_tokens.first);
    kn_executor_bind(executor, patches, batch->patches + first * dim);
    kn_executor_bind(executor, pass->target, batch->target + first * dim);
    kn_executor_bind(executor, pass->weight, batch->weight + first);
}

void kn_train_pass_parameters_changed(KnTrainPass *pass)
{
    kn_executor_parameters_changed(pass->executor);
}

int kn_train_pass_run(KnTrainPass *pass)
{
    return kn_executor_run(pass->executor);
}

const KnPlan *kn_train_pass_plan(const KnTrainPass *pass)
{
    return kn_executor_plan(pass->executor);
}

double kn_train_pass_flops(const KnTrainPass *pass)
{
    return pass->flops;
}

char *kn_train_pass_profile(const KnTrainPass *pass)
{
    return kn_executor_profile(pass->executor);
}

int kn_pack_parts_create(KnPackParts *parts, const KnLayout *layout, const KnStreamShape *shape, int64_t packs)
{
    const KnParameterSet *set = &layout->part;
    KnSharding sharding = {.mesh = &layout->mesh, .shape = *shape, .invariant = 1};
    size_t blocks = (size_t)set->block_count;
    *parts = (KnPackParts){.packs = packs, .chunks = kn_invariant_chunks(&sharding).count};
    int64_t *first = kn_alloc(blocks * sizeof *first), *count = kn_alloc(blocks * sizeof *count);
    for (size_t b = 0; b < blocks; b++)
        count[b] = packs * parts->chunks * set->block_elements[b];
    int code = kn_parameter_values_create_part(&parts->blocks, set, first, count,
                                               "the gradients of each pack and chunk (parallel.mode layout_invariant)");
    free(first);
    free(count);
    parts->order =
        kn_alloc((size_t)(packs * kn_mesh_replicas(&layout->mesh) * KN_INVARIANT_CHUNKS) * sizeof *parts->order);
    kn_invariant_order(&sharding, packs, parts->order);
    return code;
}

void kn_pack_parts_zero(KnPackParts *parts)
{
    kn_parameter_values_zero(&parts->blocks);
    parts->norm2 = 0;
}

void kn_pack_parts_clear(KnPackParts *parts)
{
    kn_parameter_values_clear(&parts->blocks);
    free(parts->order);
    *parts = (KnPackParts){0};
}
