/* Binding and running a training pass. */
#include "train/pass.h"

#include "core/base/error.h"
#include "core/graph/twin.h"

#include <stdlib.h>

struct KnTrainPass {
    KnPassGraph graph;
    KnExecutor *executor;
    KnPackParts *parts; /* of the layout-invariant mode */
    float *rope_table;
    float *text; /* zeros, for models whose text states come from outside */
    double flops;
};

/* Of the layout-invariant mode. */
static void bind_sums(KnTrainPass *pass, const KnTrainPassOptions *o)
{
    const KnZero *zero = &o->layout->zero;
    for (int b = 0; b < zero->set->block_count; b++) {
        int64_t first = zero->stage ? kn_zero_cuts(zero, b)[zero->rank] : 0;
        kn_executor_bind(pass->executor, pass->graph.invariant.sums[b],
                         o->gradients->blocks[b] + (first - o->gradients->first[b]));
        kn_executor_bind(pass->executor, pass->graph.invariant.all[b], pass->parts->blocks.blocks[b]);
    }
    kn_executor_bind(pass->executor, pass->graph.invariant.order, pass->parts->order);
    kn_executor_bind(pass->executor, pass->graph.invariant.norm2, &pass->parts->norm2);
}

void kn_train_pass_set_pack(KnTrainPass *pass, int64_t pack)
{
    const KnPackParts *parts = pass->parts;
    for (int b = 0; parts && b < parts->blocks.set->block_count; b++)
        kn_executor_bind(pass->executor, pass->graph.invariant.parts[b],
                         parts->blocks.blocks[b] + pack * parts->chunks * parts->blocks.set->block_elements[b]);
}

static void bind_parameters(KnTrainPass *pass, const KnTrainPassOptions *o)
{
    const KnPassGraph *graph = &pass->graph;
    const KnParameterSet *set = &o->layout->part;
    for (int i = 0; i < set->count; i++) {
        const KnTensor *leaf = kn_leaf_find(graph->built.graph, set->list[i].name);
        if (leaf && !graph->shards)
            kn_executor_bind(pass->executor, leaf, kn_parameter_data(o->weights, &set->list[i]));
        if (graph->gradients.sums && graph->gradients.sums[i])
            kn_executor_bind(pass->executor, graph->gradients.sums[i], kn_parameter_data(o->gradients, &set->list[i]));
    }
    for (int b = 0; b < set->block_count; b++) {
        if (graph->gradients.block_sums && graph->gradients.block_sums[b])
            kn_executor_bind(pass->executor, graph->gradients.block_sums[b], o->gradients->blocks[b]);
        if (graph->shards && graph->shards[b])
            kn_executor_bind(pass->executor, graph->shards[b], o->weights->blocks[b]);
    }
    if (pass->parts && o->reduce)
        bind_sums(pass, o);
    kn_executor_bind(pass->executor, graph->stats, o->stats);
    kn_executor_bind(pass->executor, graph->loss_sum, o->stats);
}

int kn_train_pass_create(KnTrainPass **pass, const KnTrainPassOptions *options, KnBackend *backend)
{
    const KnModelConfig *config = &options->layout->model->config;
    KnTrainPass *made = kn_alloc(sizeof *made);
    *pass = NULL;
    made->parts = options->parts;
    int code = kn_pass_graph_create(&made->graph, options, backend);
    if (code == KN_OK)
        code = kn_executor_create_beside(&made->executor, made->graph.built.graph, backend, NULL, 0,
                                         options->beside ? options->beside->executor : NULL);
    if (code < 0) {
        kn_train_pass_destroy(made);
        return code;
    }
    KnCost cost = kn_graph_cost(made->graph.built.graph);
    made->flops = cost.matmul_flops + cost.attention_flops;
    made->rope_table = kn_alloc((size_t)(KN_ROPE_POSITIONS * (config->hidden / config->heads)) * sizeof(float));
    kn_dit_rope_table(config, made->rope_table);
    kn_executor_bind(made->executor, made->graph.built.leaves.rope_table, made->rope_table);
    if (made->graph.built.text) {
        made->text = kn_alloc(kn_tensor_bytes(made->graph.built.text));
        kn_executor_bind(made->executor, made->graph.built.text, made->text);
    }
    kn_executor_set_comms(made->executor, kn_layout_comms(options->layout));
    bind_parameters(made, options);
    *pass = made;
    return KN_OK;
}

void kn_train_pass_destroy(KnTrainPass *pass)
{
    if (!pass)
        return;
    kn_executor_destroy(pass->executor);
    kn_pass_graph_destroy(&pass->graph);
    free(pass->rope_table);
    free(pass->text);
    free(pass);
}

void kn_train_pass_bind(KnTrainPass *pass, const KnTrainBatch *batch)
{
    KnExecutor *executor = pass->executor;
    const KnTensor *patches = pass->graph.built.patches;
    int64_t first = pass->graph.tokens.first, dim = kn_tensor_columns(patches);
    kn_stream_bind(executor, &pass->graph.built.leaves, &batch->stream, first, pass->graph.text_tokens.first);
    kn_executor_bind(executor, patches, batch->patches + first * dim);
    kn_executor_bind(executor, pass->graph.target, batch->target + first * dim);
    kn_executor_bind(executor, pass->graph.weight, batch->weight + first);
}

void kn_train_pass_parameters_changed(KnTrainPass *pass)
{
    kn_executor_parameters_changed(pass->executor);
}

int kn_train_pass_run(KnTrainPass *pass)
{
    return kn_executor_run(pass->executor);
}

KnExecutor *kn_train_pass_executor(const KnTrainPass *pass)
{
    return pass->executor;
}

const KnPassGraph *kn_train_pass_graph(const KnTrainPass *pass)
{
    return &pass->graph;
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

int kn_pack_parts_place(KnPackParts *parts, KnBackend *backend)
{
    KN_TRY(kn_parameter_values_place(&parts->blocks, backend, "the gradients of each pack and chunk"));
    return kn_twin_create(backend, &parts->norm2, sizeof parts->norm2, "the gradients' norm");
}

void kn_pack_parts_withdraw(KnPackParts *parts, KnBackend *backend)
{
    kn_parameter_values_withdraw(&parts->blocks, backend);
    kn_twin_destroy(backend, &parts->norm2);
}

int kn_pack_parts_zero(KnPackParts *parts, KnBackend *backend)
{
    KN_TRY(kn_parameter_values_zero(&parts->blocks, backend));
    return kn_twin_zero(backend, &parts->norm2, sizeof parts->norm2);
}

void kn_pack_parts_clear(KnPackParts *parts)
{
    kn_parameter_values_clear(&parts->blocks);
    free(parts->order);
    *parts = (KnPackParts){0};
}
