/* In-place updates of state: gradient accumulation, the optimizers' steps, averaged weights. */
#include "core/ops/rows.h"

static int same_state(const KnTensor *a, const KnTensor *b)
{
    return a->dtype == KN_F32 && b->dtype == KN_F32 && kn_tensor_elements(a) == kn_tensor_elements(b);
}

static int is_control(const KnTensor *hyper, const KnTensor *norm2)
{
    return hyper->dtype == KN_F32 && kn_tensor_elements(hyper) == KN_HYPER_COUNT && norm2->dtype == KN_F32 &&
           kn_tensor_elements(norm2) == 1;
}

void kn_accumulate(KnGraph *graph, KnTensor *state, KnTensor *x)
{
    KN_ASSERT((state->role == KN_ROLE_STATE || state->base) && same_state(state, x));
    kn_node_append(graph, &kn_op_accumulate, NULL, 0, (KnTensor *[]){state, x}, 2);
}

void kn_adamw(KnGraph *graph, KnTensor *parameter, KnTensor *gradient, KnTensor *moment1, KnTensor *moment2,
              KnTensor *hyper, KnTensor *norm2, const KnUpdateAttributes *attributes)
{
    KN_ASSERT(same_state(parameter, gradient) && same_state(parameter, moment1) && same_state(parameter, moment2));
    KN_ASSERT(parameter->role == KN_ROLE_STATE && is_control(hyper, norm2));
    KnTensor *inputs[] = {parameter, gradient, moment1, moment2, hyper, norm2};
    kn_node_append(graph, &kn_op_adamw, attributes, sizeof *attributes, inputs, 6);
}

void kn_momentum(KnGraph *graph, KnTensor *u, KnTensor *gradient, KnTensor *momentum, KnTensor *hyper, KnTensor *norm2,
                 const KnUpdateAttributes *attributes)
{
    KN_ASSERT(same_state(u, gradient) && same_state(u, momentum) && is_control(hyper, norm2));
    KN_ASSERT(momentum->role == KN_ROLE_STATE && (u->role == KN_ROLE_STATE || u->producer));
    KnTensor *inputs[] = {u, gradient, momentum, hyper, norm2};
    kn_node_append(graph, &kn_op_momentum, attributes, sizeof *attributes, inputs, 5);
}

void kn_orthogonalize(KnGraph *graph, KnTensor *x, const KnUpdateAttributes *attributes)
{
    KN_ASSERT(x->dtype == KN_F32 && x->dims == 3 && (x->role == KN_ROLE_STATE || x->producer));
    kn_node_append(graph, &kn_op_orthogonalize, attributes, sizeof *attributes, &x, 1);
}

void kn_descend(KnGraph *graph, KnTensor *parameter, KnTensor *direction, KnTensor *hyper, KnTensor *norm2,
                const KnUpdateAttributes *attributes)
{
    KN_ASSERT(parameter->role == KN_ROLE_STATE && same_state(parameter, direction) && is_control(hyper, norm2));
    KnTensor *inputs[] = {parameter, direction, hyper, norm2};
    kn_node_append(graph, &kn_op_descend, attributes, sizeof *attributes, inputs, 4);
}

void kn_ema(KnGraph *graph, KnTensor *average, KnTensor *parameter, KnTensor *hyper, KnTensor *norm2)
{
    KN_ASSERT(average->role == KN_ROLE_STATE && same_state(average, parameter) && is_control(hyper, norm2));
    kn_node_append(graph, &kn_op_ema, NULL, 0, (KnTensor *[]){average, parameter, hyper, norm2}, 4);
}

static void stream_cost(const KnNode *node, KnCost *cost)
{
    double state = (double)kn_tensor_bytes(node->inputs[0]);
    int written = node->op == &kn_op_adamw ? 3 : 1;
    cost->bytes = kn_node_bytes(node) + written * state;
    cost->pointwise_flops = 4.0 * (double)kn_tensor_elements(node->inputs[0]);
}

static void orthogonalize_cost(const KnNode *node, KnCost *cost)
{
    const int64_t *shape = node->inputs[0]->shape;
    const KnUpdateAttributes *p = (const KnUpdateAttributes *)node->attributes;
    double small = (double)(shape[1] < shape[2] ? shape[1] : shape[2]);
    double large = (double)(shape[1] < shape[2] ? shape[2] : shape[1]);
    double iteration = 4.0 * small * small * large + 2.0 * small * small * small;
    cost->bytes = kn_node_bytes(node) + (double)kn_tensor_bytes(node->inputs[0]);
    cost->matmul_flops = (double)shape[0] * p->newton_schulz_steps * iteration;
}

const KnOp kn_op_accumulate = {KN_OP_ACCUMULATE, "accumulate", kn_no_gradient, stream_cost, 1};
const KnOp kn_op_adamw = {KN_OP_ADAMW, "adamw", kn_no_gradient, stream_cost, 1};
const KnOp kn_op_momentum = {KN_OP_MOMENTUM, "momentum", kn_no_gradient, stream_cost, 1};
const KnOp kn_op_orthogonalize = {KN_OP_ORTHOGONALIZE, "orthogonalize", kn_no_gradient, orthogonalize_cost, 1};
const KnOp kn_op_descend = {KN_OP_DESCEND, "descend", kn_no_gradient, stream_cost, 1};
const KnOp kn_op_ema = {KN_OP_EMA, "ema", kn_no_gradient, stream_cost, 1};
