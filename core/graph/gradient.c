/* The gradient pass: walks the forward nodes backwards and lets each op's rule append its backward nodes.
 *
 * A tensor that is used several times gets the sum of the gradients of its uses, added as they arrive, hence in a
 * fixed order. Only what lies between the wanted tensors and the loss is differentiated. */
#include "core/base/error.h"
#include "core/graph/graph.h"

#include <stdlib.h>
#include <string.h>

typedef struct Pass {
    KnGraph *graph;
    KnTensor **gradients; /* per tensor of the forward graph */
    char *depends;        /* per tensor of the forward graph: on something wanted */
} Pass;

static void mark_dependence(Pass *pass, KnTensor *const *wanted, int wanted_count)
{
    for (int i = 0; i < wanted_count; i++)
        pass->depends[wanted[i]->id] = 1;
    for (int i = 0; i < pass->graph->node_count; i++) {
        const KnNode *node = pass->graph->nodes[i];
        int any = 0;
        for (int k = 0; k < node->input_count; k++)
            any |= node->inputs[k] && pass->depends[node->inputs[k]->id];
        for (int k = 0; k < node->output_count; k++)
            pass->depends[node->outputs[k]->id] = (char)any;
    }
}

static void differentiate(Pass *pass, const KnNode *node, const KnTensor *loss, KnAddRule add)
{
    KnTensor *grad_outputs[KN_MAX_OUTPUTS] = {0}, *grad_inputs[KN_MAX_INPUTS] = {0};
    int wanted[KN_MAX_INPUTS] = {0}, reached = 0, any = 0;
    for (int k = 0; k < node->output_count; k++) {
        grad_outputs[k] = pass->gradients[node->outputs[k]->id];
        reached |= grad_outputs[k] != NULL || node->outputs[k] == loss;
    }
    for (int k = 0; k < node->input_count; k++) {
        wanted[k] = node->inputs[k] && pass->depends[node->inputs[k]->id];
        any |= wanted[k];
    }
    if (!reached || !any)
        return;
    pass->graph->block = node->block;
    node->op->gradient(pass->graph, node, grad_outputs, wanted, grad_inputs);
    for (int k = 0; k < node->input_count; k++) {
        if (!grad_inputs[k] || !wanted[k])
            continue;
        KnTensor **sum = &pass->gradients[node->inputs[k]->id];
        *sum = *sum ? add(pass->graph, *sum, grad_inputs[k]) : grad_inputs[k];
    }
    pass->graph->block = -1;
}

void kn_gradient(KnGraph *graph, KnTensor *loss, KnTensor *const *wanted, int wanted_count, KnTensor **gradients,
                 KnAddRule add)
{
    KN_ASSERT(loss->producer && loss->dims == 0 && loss->dtype == KN_F32);
    int forward_nodes = graph->node_count;
    Pass pass = {.graph = graph,
                 .gradients = kn_alloc((size_t)graph->tensor_count * sizeof(KnTensor *)),
                 .depends = kn_alloc((size_t)graph->tensor_count)};
    mark_dependence(&pass, wanted, wanted_count);
    graph->in_backward = 1;
    for (int i = forward_nodes - 1; i >= 0; i--)
        differentiate(&pass, graph->nodes[i], loss, add);
    graph->in_backward = 0;
    for (int i = 0; i < wanted_count; i++)
        gradients[i] = pass.gradients[wanted[i]->id];
    free(pass.gradients);
    free(pass.depends);
}
