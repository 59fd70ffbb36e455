/* Building the static graph: leaves, nodes, outputs, blocks, and its description for people. */
#include "core/graph/graph.h"

#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t bytes;
} dtypes[KN_DTYPE_COUNT] = {
    [KN_F32] = {"f32", 4},
    [KN_BF16] = {"bf16", 2},
    [KN_I32] = {"i32", 4},
    [KN_U8] = {"u8", 1},
};

size_t kn_dtype_bytes(KnDtype dtype)
{
    return dtypes[dtype].bytes;
}

const char *kn_dtype_name(KnDtype dtype)
{
    return dtypes[dtype].name;
}

int64_t kn_tensor_elements(const KnTensor *tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensor->dims; i++)
        count *= tensor->shape[i];
    return count;
}

size_t kn_tensor_bytes(const KnTensor *tensor)
{
    return (size_t)kn_tensor_elements(tensor) * kn_dtype_bytes(tensor->dtype);
}

int64_t kn_tensor_columns(const KnTensor *tensor)
{
    return tensor->dims ? tensor->shape[tensor->dims - 1] : 1;
}

int64_t kn_tensor_rows(const KnTensor *tensor)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < tensor->dims; i++)
        rows *= tensor->shape[i];
    return rows;
}

const KnTensor *kn_tensor_root(const KnTensor *tensor, size_t *offset)
{
    size_t bytes = 0;
    for (; tensor->base; tensor = tensor->base)
        bytes += tensor->base_offset;
    if (offset)
        *offset = bytes;
    return tensor;
}

KnGraph *kn_graph_create(void)
{
    KnGraph *graph = kn_alloc(sizeof *graph);
    graph->arena = kn_arena_create();
    graph->block = -1;
    return graph;
}

void kn_graph_destroy(KnGraph *graph)
{
    if (!graph)
        return;
    kn_arena_destroy(graph->arena);
    free(graph->nodes);
    free(graph->tensors);
    free(graph);
}

static KnTensor *append_tensor(KnGraph *graph, KnDtype dtype, int dims, const int64_t *shape)
{
    KN_ASSERT(dims >= 0 && dims <= KN_MAX_DIMS);
    KnTensor *tensor = kn_arena_alloc(graph->arena, sizeof *tensor);
    tensor->id = graph->tensor_count;
    tensor->role = KN_ROLE_VALUE;
    tensor->dtype = dtype;
    tensor->dims = dims;
    tensor->name = "";
    for (int i = 0; i < dims; i++) {
        KN_ASSERT(shape[i] >= 0);
        tensor->shape[i] = shape[i];
    }
    KN_RESERVE(graph->tensors, graph->tensor_count, graph->tensor_capacity);
    graph->tensors[graph->tensor_count++] = tensor;
    return tensor;
}

KnTensor *kn_leaf(KnGraph *graph, KnRole role, KnDtype dtype, int dims, const int64_t *shape, const char *name)
{
    KN_ASSERT(role != KN_ROLE_VALUE);
    KnTensor *tensor = append_tensor(graph, dtype, dims, shape);
    tensor->role = role;
    tensor->name = kn_arena_strdup(graph->arena, name);
    return tensor;
}

KnTensor *kn_room(KnGraph *graph, KnDtype dtype, int dims, const int64_t *shape)
{
    return append_tensor(graph, dtype, dims, shape);
}

void kn_lay(KnTensor *made, KnTensor *place, int64_t first)
{
    KN_ASSERT(made->producer && !made->base && made->dtype == place->dtype);
    KN_ASSERT(first >= 0 && first + kn_tensor_elements(made) <= kn_tensor_elements(place));
    made->base = place;
    made->base_offset = (size_t)first * kn_dtype_bytes(place->dtype);
}

KnTensor *kn_leaf_find(const KnGraph *graph, const char *name)
{
    for (int i = 0; i < graph->tensor_count; i++)
        if (graph->tensors[i]->role != KN_ROLE_VALUE && !strcmp(graph->tensors[i]->name, name))
            return graph->tensors[i];
    return NULL;
}

KnNode *kn_node_append(KnGraph *graph, const KnOp *op, const void *attributes, size_t attribute_bytes,
                       KnTensor *const *inputs, int input_count)
{
    KN_ASSERT(attribute_bytes <= KN_ATTRIBUTE_BYTES && input_count <= KN_MAX_INPUTS);
    KnNode *node = kn_arena_alloc(graph->arena, sizeof *node);
    node->op = op;
    node->id = graph->node_count;
    node->block = graph->block;
    node->backward = graph->in_backward;
    node->input_count = input_count;
    for (int i = 0; i < input_count; i++)
        node->inputs[i] = inputs[i];
    if (attribute_bytes)
        memcpy(node->attributes, attributes, attribute_bytes);
    KN_RESERVE(graph->nodes, graph->node_count, graph->node_capacity);
    graph->nodes[graph->node_count++] = node;
    return node;
}

KnTensor *kn_node_output(KnGraph *graph, KnNode *node, KnDtype dtype, int dims, const int64_t *shape)
{
    KN_ASSERT(node->output_count < KN_MAX_OUTPUTS);
    KnTensor *tensor = append_tensor(graph, dtype, dims, shape);
    tensor->producer = node;
    node->outputs[node->output_count++] = tensor;
    return tensor;
}

void kn_block_begin(KnGraph *graph)
{
    int last = -1;
    for (int i = 0; i < graph->node_count; i++)
        if (graph->nodes[i]->block > last)
            last = graph->nodes[i]->block;
    KN_ASSERT(graph->block == -1);
    graph->block = last + 1;
}

void kn_block_end(KnGraph *graph)
{
    KN_ASSERT(graph->block >= 0);
    graph->block = -1;
}

KnCost kn_graph_cost(const KnGraph *graph)
{
    KnCost total = {0};
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        KnCost cost = {0};
        if (node->prologue || node->again)
            continue;
        node->op->cost(node, &cost);
        total.matmul_flops += cost.matmul_flops;
        total.attention_flops += cost.attention_flops;
        total.pointwise_flops += cost.pointwise_flops;
        total.bytes += cost.bytes;
    }
    return total;
}

static void describe_tensor(FILE *out, const KnTensor *tensor)
{
    if (!tensor) {
        fprintf(out, "-");
        return;
    }
    fprintf(out, "%%%d", tensor->id);
    if (tensor->name[0])
        fprintf(out, "(%s)", tensor->name);
    fprintf(out, ":%s[", kn_dtype_name(tensor->dtype));
    for (int i = 0; i < tensor->dims; i++)
        fprintf(out, i ? ",%lld" : "%lld", (long long)tensor->shape[i]);
    fprintf(out, "]");
}

char *kn_graph_describe(const KnGraph *graph)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    KN_ASSERT(out);
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        fprintf(out, "%5d %s%s", i, node->prologue ? "prologue " : node->backward ? "backward " : "", node->op->name);
        if (node->block >= 0)
            fprintf(out, " block %d", node->block);
        for (int k = 0; k < node->input_count; k++) {
            fprintf(out, k ? ", " : "  ");
            describe_tensor(out, node->inputs[k]);
        }
        for (int k = 0; k < node->output_count; k++) {
            fprintf(out, k ? ", " : " -> ");
            describe_tensor(out, node->outputs[k]);
        }
        fprintf(out, "\n");
    }
    fclose(out);
    return text;
}
