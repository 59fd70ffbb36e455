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
    KnTensor **shards; /* by block, with ZeRO 3: the weights' ranges */
    KnRows tokens, text_tokens;
    KnTensor *target, *weight, *loss, *loss_sum, *stats;
    float *rope_table;
    float *text; /* zeros, for models whose text states come from outside */
    double flops;
};

static void build(KnTrainPass *pass, const KnTrainPassOptions *o, KnBackend *backend)
{
    KnModelGraph *built = &pass->built;
    KnModelGraphOptions model = {
        .shape = o->shape, .dtype = o->dtype, .self_pairs = o->self_pairs, .cross_pairs = o->cross_pairs};
    const KnLayout *layout = o->layout;
    KnSharding sharding = {.mesh = &layout->mesh, .model = layout->model, .shape = o->shape};
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
    kn_accumulate(graph, pass->loss_sum, pass->loss);
    if (o->backward)
        kn_place_gradients(graph, pass->loss,
                           &(KnGradientOptions){.zero = &layout->zero,
                                                .mesh = &layout->mesh,
                                                .recompute = layout->model->config.recompute,
                                                .reduce = o->reduce,
                                                .also = pass->stats},
                           &pass->gradients);
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
    kn_executor_bind(pass->executor, pass->stats, o->stats);
    kn_executor_bind(pass->executor, pass->loss_sum, o->stats);
}

int kn_train_pass_create(KnTrainPass **pass, const KnTrainPassOptions *options, KnBackend *backend)
{
    const KnModelConfig *config = &options->layout->model->config;
    KnTrainPass *made = kn_alloc(sizeof *made);
    *pass = NULL;
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
