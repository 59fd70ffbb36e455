/* Passes that rewrite a graph: recompute by block, removal of what nobody needs, the prologue. */
#include "core/graph/edit.h"

#include "core/base/error.h"

#include <stdlib.h>
#include <string.h>

void kn_graph_take_nodes(KnGraph *graph, KnNodeList *taken)
{
    taken->count = graph->node_count;
    taken->nodes = graph->nodes;
    graph->nodes = NULL;
    graph->node_count = graph->node_capacity = 0;
}

void kn_graph_put_node(KnGraph *graph, KnNode *node)
{
    KN_RESERVE(graph->nodes, graph->node_count, graph->node_capacity);
    node->id = graph->node_count;
    graph->nodes[graph->node_count++] = node;
}

void kn_node_set_input(KnNode *node, int k, KnTensor *tensor)
{
    for (int o = 0; o < node->output_count; o++)
        if (node->outputs[o]->base && node->outputs[o]->base == node->inputs[k])
            node->outputs[o]->base = tensor;
    node->inputs[k] = tensor;
}

/* Emits the forward nodes of `block` once more; clones[tensor id] receives the new outputs. */
static void emit_again(KnGraph *graph, const KnNodeList *old, int block, KnTensor **clones)
{
    for (int i = 0; i < old->count; i++) {
        const KnNode *node = old->nodes[i];
        if (node->block != block || node->backward || node->prologue)
            continue;
        KnTensor *inputs[KN_MAX_INPUTS];
        for (int k = 0; k < node->input_count; k++) {
            KnTensor *input = node->inputs[k];
            inputs[k] = input && clones[input->id] ? clones[input->id] : input;
        }
        KnNode *clone =
            kn_node_append(graph, node->op, node->attributes, KN_ATTRIBUTE_BYTES, inputs, node->input_count);
        clone->block = block;
        clone->exchange = node->exchange;
        clone->backward = clone->again = 1;
        for (int k = 0; k < node->output_count; k++) {
            const KnTensor *output = node->outputs[k];
            KnTensor *made = kn_node_output(graph, clone, output->dtype, output->dims, output->shape);
            if (output->base)
                made->base = clones[output->base->id] ? clones[output->base->id] : output->base;
            made->base_offset = output->base_offset;
            clones[output->id] = made;
        }
    }
}

int kn_graph_blocks(const KnGraph *graph)
{
    int blocks = 0;
    for (int i = 0; i < graph->node_count; i++)
        if (graph->nodes[i]->block >= blocks)
            blocks = graph->nodes[i]->block + 1;
    return blocks;
}

void kn_recompute_blocks(KnGraph *graph, const char *chosen)
{
    int tensors = graph->tensor_count, blocks = kn_graph_blocks(graph);
    KnNodeList old;
    kn_graph_mark_prologue(graph); /* weights for compute are never made twice */
    kn_graph_take_nodes(graph, &old);
    KnTensor **clones = kn_alloc((size_t)tensors * sizeof *clones);
    char *emitted = kn_alloc((size_t)blocks);
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        if (node->backward && node->block >= 0 && chosen[node->block]) {
            if (!emitted[node->block])
                emit_again(graph, &old, node->block, clones);
            emitted[node->block] = 1;
            for (int k = 0; k < node->input_count; k++) {
                const KnTensor *input = node->inputs[k];
                /* values that enter the block, made by other blocks or by none, stay as they are */
                if (input && input->id < tensors && input->producer && input->producer->block == node->block &&
                    !input->producer->backward && !input->producer->prologue)
                    kn_node_set_input(node, k, clones[input->id]);
            }
        }
        kn_graph_put_node(graph, node);
    }
    free(clones);
    free(emitted);
    free(old.nodes);
}

/* A node that is there for what it does to memory, not for a value. */
static int has_effect(const KnNode *node)
{
    int writes_state = 0;
    for (int k = 0; k < node->output_count; k++)
        writes_state |= kn_tensor_root(node->outputs[k], NULL)->role == KN_ROLE_STATE;
    return node->op->has_effect || node->output_count == 0 || writes_state;
}

/* What is wanted of a node's outputs may be the memory that they lie in. */
static int is_needed(const KnNode *node, const char *needed)
{
    int any = has_effect(node);
    for (int k = 0; k < node->output_count; k++)
        any |= needed[node->outputs[k]->id] || needed[kn_tensor_root(node->outputs[k], NULL)->id];
    return any;
}

static void mark_needed(const KnGraph *graph, KnTensor *const *keep, int keep_count, char *needed)
{
    for (int i = 0; i < keep_count; i++)
        if (keep[i])
            needed[keep[i]->id] = 1;
    for (int i = graph->node_count - 1; i >= 0; i--) {
        const KnNode *node = graph->nodes[i];
        for (int k = 0; is_needed(node, needed) && k < node->input_count; k++)
            if (node->inputs[k])
                needed[node->inputs[k]->id] = 1;
    }
}

static int depends_on_parameters_alone(const KnNode *node)
{
    if (has_effect(node) || node->input_count == 0)
        return 0;
    for (int k = 0; k < node->input_count; k++) {
        const KnTensor *input = node->inputs[k];
        if (input && input->role != KN_ROLE_PARAMETER && !(input->producer && input->producer->prologue))
            return 0;
    }
    return 1;
}

void kn_graph_mark_prologue(KnGraph *graph)
{
    for (int i = 0; i < graph->node_count; i++)
        graph->nodes[i]->prologue = depends_on_parameters_alone(graph->nodes[i]);
}

void kn_graph_finish(KnGraph *graph, KnTensor *const *keep, int keep_count)
{
    char *needed = kn_alloc((size_t)graph->tensor_count);
    KnNodeList old;
    mark_needed(graph, keep, keep_count, needed);
    kn_graph_mark_prologue(graph);
    kn_graph_take_nodes(graph, &old);
    for (int prologue = 1; prologue >= 0; prologue--)
        for (int i = 0; i < old.count; i++)
            if (old.nodes[i]->prologue == prologue && is_needed(old.nodes[i], needed))
                kn_graph_put_node(graph, old.nodes[i]);
    free(old.nodes);
    free(needed);
}
