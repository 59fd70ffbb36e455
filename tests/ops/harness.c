/* What is done with each row of the op test table; see ops_test.h. */
#include "ops/ops_test.h"

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/graph/twin.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- values ------------------------------------------------------------------------------------------------------ */

double trial_uniform(OpTrial *trial) /* SplitMix64 (Steele et al., 2014) */
{
    uint64_t z = trial->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* All floats are drawn on the bf16 grid in bf16 trials, so that casts between the dtypes lose nothing at the start. */
static double representable(const OpTrial *trial, double value)
{
    if (trial->dtype == KN_BF16)
        return (double)kn_bf16_to_float(kn_bf16_from_float((float)value));
    return (double)(float)value;
}

static int keep_leaf(OpTrial *trial, KnTensor *tensor, int wanted)
{
    KN_ASSERT(trial->leaf_count < OP_MOST_LEAVES);
    int at = trial->leaf_count++;
    trial->leaves[at] = tensor;
    trial->wanted[at] = wanted;
    trial->values[at] = kn_alloc(((size_t)kn_tensor_elements(tensor) + 1) * sizeof(double));
    return at;
}

KnTensor *leaf(OpTrial *trial, LeafKind kind, int dims, const int64_t *shape)
{
    char name[16];
    snprintf(name, sizeof name, "leaf%d", trial->leaf_count);
    KnTensor *tensor = kn_leaf(trial->graph, kind.role, kind.dtype, dims, shape, name);
    int at = keep_leaf(trial, tensor, kind.wanted);
    for (int64_t i = 0; i < kn_tensor_elements(tensor); i++)
        trial->values[at][i] = representable(trial, kind.center + kind.spread * (2 * trial_uniform(trial) - 1));
    return tensor;
}

KnTensor *leaf_x(OpTrial *trial, int64_t rows, int64_t columns)
{
    LeafKind kind = {.role = KN_ROLE_INPUT, .dtype = trial->dtype, .wanted = 1, .center = 0.25, .spread = 1.5};
    return leaf(trial, kind, 2, (int64_t[]){rows, columns});
}

KnTensor *leaf_f32(OpTrial *trial, int64_t rows, int64_t columns)
{
    LeafKind kind = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .wanted = 1, .center = 0.125, .spread = 1};
    return leaf(trial, kind, 2, (int64_t[]){rows, columns});
}

KnTensor *leaf_index(OpTrial *trial, int64_t count, int64_t low, int64_t high)
{
    KnTensor *tensor = kn_leaf(trial->graph, KN_ROLE_INPUT, KN_I32, 1, &count, "index");
    int at = keep_leaf(trial, tensor, 0);
    for (int64_t i = 0; i < count; i++)
        trial->values[at][i] = (double)low + floor(trial_uniform(trial) * (double)(high - low));
    return tensor;
}

KnTensor *leaf_given(OpTrial *trial, int dims, const int64_t *shape, const int32_t *values)
{
    KnTensor *tensor = kn_leaf(trial->graph, KN_ROLE_INPUT, KN_I32, dims, shape, "given");
    int at = keep_leaf(trial, tensor, 0);
    for (int64_t i = 0; i < kn_tensor_elements(tensor); i++)
        trial->values[at][i] = (double)values[i];
    return tensor;
}

void trial_store(const KnTensor *tensor, const double *from, void *to)
{
    for (int64_t i = 0; i < kn_tensor_elements(tensor); i++) {
        if (tensor->dtype == KN_F32)
            ((float *)to)[i] = (float)from[i];
        else if (tensor->dtype == KN_BF16)
            ((uint16_t *)to)[i] = kn_bf16_from_float((float)from[i]);
        else
            ((int32_t *)to)[i] = (int32_t)from[i];
    }
}

void trial_load(const KnTensor *tensor, const void *from, double *to)
{
    for (int64_t i = 0; i < kn_tensor_elements(tensor); i++)
        to[i] = tensor->dtype == KN_F32    ? (double)((const float *)from)[i]
                : tensor->dtype == KN_BF16 ? (double)kn_bf16_to_float(((const uint16_t *)from)[i])
                                           : (double)((const int32_t *)from)[i];
}

OpTrial *trial_create(const OpCase *row, KnDtype dtype)
{
    OpTrial *trial = kn_alloc(sizeof *trial);
    trial->row = row;
    trial->dtype = dtype;
    trial->graph = kn_graph_create();
    trial->random = 12345;
    return trial;
}

void trial_destroy(OpTrial *trial)
{
    for (int i = 0; i < trial->leaf_count; i++)
        free(trial->values[i]);
    kn_graph_destroy(trial->graph);
    free(trial);
}

/* ---- the row's graph --------------------------------------------------------------------------------------------- */

typedef struct Truth {
    double *kept[64];               /* of each kept tensor */
    double *leaves[OP_MOST_LEAVES]; /* after a run */
    int is_found;
} Truth;

typedef struct Built {
    OpTrial *trial;
    int forward_nodes; /* of the ops under test and the loss */
    KnTensor *loss;    /* NULL without gradients */
    int wanted_count;
    int wanted_leaf[OP_MOST_LEAVES]; /* index in trial->leaves */
    KnTensor *gradients[OP_MOST_LEAVES];
    int in_bf16; /* some value on the way is rounded to bf16 */
    int has_bias;
    int kept_count;
    KnTensor *kept[64]; /* forward outputs, then gradients */
    const Truth *truth;
} Built;

/* A scalar that every output element moves differently. */
static KnTensor *loss_of(OpTrial *trial, KnTensor *output)
{
    LeafKind target = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .spread = 1};
    LeafKind weight = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .center = 1, .spread = 0.5};
    if (output->dims == 0)
        return output;
    int64_t rows = kn_tensor_rows(output);
    KnTensor *to = leaf(trial, target, output->dims, output->shape), *by = leaf(trial, weight, 1, &rows);
    return kn_masked_mse(trial->graph, output, to, by);
}

static Built build(const OpCase *row, KnDtype dtype)
{
    Built built = {.trial = trial_create(row, dtype), .in_bf16 = dtype == KN_BF16};
    OpTrial *trial = built.trial;
    KnTensor *output = row->build(trial, row->n);
    for (int i = 0; i < trial->graph->node_count; i++) {
        const KnNode *node = trial->graph->nodes[i];
        built.has_bias |= node->op->id == KN_OP_MATMUL && node->inputs[2];
        for (int k = 0; k < node->output_count; k++) {
            built.in_bf16 |= node->outputs[k]->dtype == KN_BF16;
            if (i == trial->graph->node_count - 1 || !(row->flags & OP_LAST))
                built.kept[built.kept_count++] = node->outputs[k];
        }
    }
    if (output && !(row->flags & OP_NO_GRADIENT))
        built.loss = loss_of(trial, output);
    built.forward_nodes = trial->graph->node_count;
    if (!built.loss)
        return built;
    KnTensor *wanted[OP_MOST_LEAVES];
    for (int i = 0; i < trial->leaf_count; i++)
        if (trial->wanted[i]) {
            built.wanted_leaf[built.wanted_count] = i;
            wanted[built.wanted_count++] = trial->leaves[i];
        }
    kn_gradient(trial->graph, built.loss, wanted, built.wanted_count, built.gradients, kn_add);
    for (int i = 0; i < built.wanted_count; i++) {
        assert_non_null(built.gradients[i]);
        built.kept[built.kept_count++] = built.gradients[i];
    }
    return built;
}

static void clear(Built *built)
{
    trial_destroy(built->trial);
}

/* ---- float64 ----------------------------------------------------------------------------------------------------- */

/* Values of all forward tensors by id; leaves are copied, since some nodes change them. */
static double **evaluate(const Built *built)
{
    const OpTrial *trial = built->trial;
    double **values = kn_alloc((size_t)trial->graph->tensor_count * sizeof *values);
    for (int i = 0; i < trial->leaf_count; i++) {
        size_t bytes = ((size_t)kn_tensor_elements(trial->leaves[i]) + 1) * sizeof(double);
        values[trial->leaves[i]->id] = kn_alloc(bytes);
        memcpy(values[trial->leaves[i]->id], trial->values[i], bytes);
    }
    for (int i = 0; i < built->forward_nodes; i++) {
        const KnNode *node = trial->graph->nodes[i];
        double *in[KN_MAX_INPUTS] = {0}, *out[KN_MAX_OUTPUTS] = {0};
        for (int k = 0; k < node->input_count; k++)
            in[k] = node->inputs[k] ? values[node->inputs[k]->id] : NULL;
        for (int k = 0; k < node->output_count; k++)
            out[k] = values[node->outputs[k]->id] =
                kn_alloc(((size_t)kn_tensor_elements(node->outputs[k]) + 1) * sizeof(double));
        assert_non_null(op_reference((KnOpId)node->op->id));
        op_reference((KnOpId)node->op->id)(node, in, out);
    }
    return values;
}

static void release(const Built *built, double **values)
{
    for (int i = 0; i < built->trial->graph->tensor_count; i++)
        free(values[i]);
    free(values);
}

static double loss_at(const Built *built)
{
    double **values = evaluate(built), loss = values[built->loss->id][0];
    release(built, values);
    return loss;
}

/* d loss / d element by central differences of fourth order; NaN stands for "not looked at". */
static double *difference_quotients(const Built *built, int leaf_index)
{
    double *values = built->trial->values[leaf_index];
    int64_t count = kn_tensor_elements(built->trial->leaves[leaf_index]);
    int64_t stride = built->trial->row->flags & OP_LARGE ? count / 5 + 1 : 1;
    double *quotients = kn_alloc(((size_t)count + 1) * sizeof *quotients);
    for (int64_t i = 0; i < count; i++)
        quotients[i] = NAN;
    for (int64_t i = stride / 2; i < count; i += stride) {
        double x = values[i], h = 1e-3, f[4];
        for (int k = 0; k < 4; k++) {
            values[i] = x + (double[]){-2, -1, 1, 2}[k] * h;
            f[k] = loss_at(built);
        }
        values[i] = x;
        quotients[i] = (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * h);
    }
    return quotients;
}

static double *copy_values(const KnTensor *tensor, const double *values)
{
    size_t bytes = ((size_t)kn_tensor_elements(tensor) + 1) * sizeof(double);
    return memcpy(kn_alloc(bytes), values, bytes);
}

/* Once for a row and a dtype: instruction sets and backends share it. */
static Truth *truth_of(const OpTrial *trial)
{
    static Truth *all;
    if (!all)
        all = kn_alloc(2 * (size_t)op_case_count * sizeof *all);
    return &all[2 * (trial->row - op_cases) + (trial->dtype == KN_BF16)];
}

/* Before backends rewrite the graph. */
static void find_truth(Built *built)
{
    const OpTrial *trial = built->trial;
    Truth *truth = truth_of(trial);
    built->truth = truth;
    if (truth->is_found)
        return;
    double **values = evaluate(built);
    int forward = built->kept_count - built->wanted_count;
    for (int i = 0; i < forward; i++)
        truth->kept[i] = copy_values(built->kept[i], values[built->kept[i]->id]);
    for (int i = 0; i < built->wanted_count; i++)
        truth->kept[forward + i] = difference_quotients(built, built->wanted_leaf[i]);
    for (int i = 0; i < trial->leaf_count; i++)
        truth->leaves[i] = copy_values(trial->leaves[i], values[trial->leaves[i]->id]);
    truth->is_found = 1;
    release(built, values);
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

typedef struct Bound {
    double relative;   /* to the element */
    double of_largest; /* to the largest element of the tensor */
    double l2;         /* of the whole tensor; 0: not looked at */
} Bound;

/* What a product of bf16 operands made on the way gives; the log-sum-exp is none. */
static int is_rounded_product(const Built *built, const KnTensor *tensor)
{
    if (!built->in_bf16 || !(built->trial->row->flags & OP_BF16_PRODUCT))
        return 0;
    return tensor->producer->op->id != KN_OP_ATTENTION || tensor != tensor->producer->outputs[1];
}

/* Forward: only the last rounding may be seen. Gradients in bf16 pass several roundings. */
static Bound bound_for(const Built *built, const KnBackend *backend, const KnTensor *tensor, int gradient)
{
    if (built->trial->row->flags & OP_BF16_INSIDE)
        return (Bound){.relative = INFINITY, .l2 = 0.04};
    if (gradient && built->in_bf16)
        return (Bound){.relative = 0.01, .of_largest = 0.02, .l2 = 0.015};
    if (gradient)
        return (Bound){.relative = 1e-4, .of_largest = 1e-5, .l2 = 1e-5};
    if (built->in_bf16 && built->has_bias && backend->memory) /* which may round the bias */
        return (Bound){.relative = 0.00393, .of_largest = 0.004, .l2 = 0.005};
    if (is_rounded_product(built, tensor))
        return (Bound){.relative = 0.00393, .of_largest = 0.004, .l2 = 0.005};
    if (tensor->dtype == KN_BF16)
        return (Bound){.relative = 0.00393, .of_largest = 2e-6};
    return (Bound){.relative = 3e-6, .of_largest = 1e-6, .l2 = 2e-6};
}

static void compare(const Built *built, const KnTensor *tensor, const char *what, const double *truth,
                    const double *got, Bound bound)
{
    double largest = 0, error2 = 0, truth2 = 0;
    int64_t count = kn_tensor_elements(tensor);
    for (int64_t i = 0; i < count; i++)
        largest = isfinite(truth[i]) ? fmax(largest, fabs(truth[i])) : largest;
    for (int64_t i = 0; i < count; i++) {
        if (isnan(truth[i]) || truth[i] == got[i])
            continue;
        double error = fabs(got[i] - truth[i]);
        if (!(error <= bound.relative * fabs(truth[i]) + bound.of_largest * largest + 1e-30))
            fail_msg("%s, %s: %s element %lld is %.9g, should be %.9g (largest %.3g)", built->trial->row->name,
                     kn_dtype_name(built->trial->dtype), what, (long long)i, got[i], truth[i], largest);
        error2 += error * error;
        truth2 += truth[i] * truth[i];
    }
    if (bound.l2 > 0 && sqrt(error2) > bound.l2 * sqrt(truth2) + 1e-30)
        fail_msg("%s, %s: %s has a relative error of %.3g", built->trial->row->name, kn_dtype_name(built->trial->dtype),
                 what, sqrt(error2 / truth2));
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

typedef struct Memory {
    void *leaves[OP_MOST_LEAVES];
    void *kept[64]; /* copies after a run */
    void *states[OP_MOST_LEAVES];
} Memory;

static int lives_on_device(const KnTensor *leaf)
{
    return leaf->role == KN_ROLE_PARAMETER || leaf->role == KN_ROLE_STATE;
}

static void bind_leaf(const OpTrial *trial, int i, KnExecutor *executor, KnBackend *backend, Memory *memory)
{
    const KnTensor *leaf = trial->leaves[i];
    size_t bytes = kn_tensor_bytes(leaf);
    assert_int_equal(kn_alloc_large(&memory->leaves[i], bytes + 64, "a leaf"), KN_OK);
    trial_store(leaf, trial->values[i], memory->leaves[i]);
    if (lives_on_device(leaf)) {
        assert_int_equal(kn_twin_create(backend, memory->leaves[i], bytes, "a leaf"), KN_OK);
        assert_int_equal(kn_twin_push(backend, memory->leaves[i], bytes), KN_OK);
    }
    kn_executor_bind(executor, leaf, memory->leaves[i]);
}

static Memory run_once(const Built *built, KnExecutor *executor, KnBackend *backend)
{
    Memory memory = {0};
    const OpTrial *trial = built->trial;
    for (int i = 0; i < trial->leaf_count; i++)
        bind_leaf(trial, i, executor, backend, &memory);
    kn_executor_parameters_changed(executor);
    if (kn_executor_run(executor) < 0)
        fail_msg("%s: %s", trial->row->name, kn_error_message());
    for (int i = 0; i < built->kept_count; i++) {
        memory.kept[i] = kn_alloc(kn_tensor_bytes(built->kept[i]) + 1);
        assert_int_equal(kn_executor_read(executor, built->kept[i], memory.kept[i]), KN_OK);
    }
    for (int i = 0; i < trial->leaf_count; i++) {
        size_t bytes = kn_tensor_bytes(trial->leaves[i]);
        if (lives_on_device(trial->leaves[i]))
            assert_int_equal(kn_twin_pull(backend, memory.leaves[i], bytes), KN_OK);
        memory.states[i] = memcpy(kn_alloc(bytes + 1), memory.leaves[i], bytes);
    }
    return memory;
}

static void clear_memory(const Built *built, KnBackend *backend, Memory *memory)
{
    for (int i = 0; i < built->trial->leaf_count; i++) {
        kn_twin_destroy(backend, memory->leaves[i]);
        kn_free_large(memory->leaves[i]);
        free(memory->states[i]);
    }
    for (int i = 0; i < built->kept_count; i++)
        free(memory->kept[i]);
}

static void compare_with_truth(const Built *built, const KnBackend *backend, const Memory *memory)
{
    const OpTrial *trial = built->trial;
    for (int i = 0; i < built->kept_count; i++) {
        int gradient = i >= built->kept_count - built->wanted_count;
        double *got = kn_alloc(((size_t)kn_tensor_elements(built->kept[i]) + 1) * sizeof *got);
        char what[64];
        snprintf(what, sizeof what, gradient ? "gradient %d" : "output %d",
                 gradient ? i - (built->kept_count - built->wanted_count) : i);
        trial_load(built->kept[i], memory->kept[i], got);
        compare(built, built->kept[i], what, built->truth->kept[i], got,
                bound_for(built, backend, built->kept[i], gradient));
        free(got);
    }
    for (int i = 0; i < trial->leaf_count; i++) {
        if (trial->leaves[i]->role != KN_ROLE_STATE)
            continue;
        double *got = kn_alloc(((size_t)kn_tensor_elements(trial->leaves[i]) + 1) * sizeof *got);
        trial_load(trial->leaves[i], memory->states[i], got);
        compare(built, trial->leaves[i], trial->leaves[i]->name, built->truth->leaves[i], got,
                bound_for(built, backend, trial->leaves[i], 0));
        free(got);
    }
}

static void compare_bits(const Built *built, const Memory *one, const Memory *other, int threads)
{
    for (int i = 0; i < built->kept_count; i++)
        if (memcmp(one->kept[i], other->kept[i], kn_tensor_bytes(built->kept[i])))
            fail_msg("%s, %s: the bits of kept tensor %d differ in run %d, on as many threads", built->trial->row->name,
                     kn_dtype_name(built->trial->dtype), i, threads);
    for (int i = 0; i < built->trial->leaf_count; i++)
        if (memcmp(one->states[i], other->states[i], kn_tensor_bytes(built->trial->leaves[i])))
            fail_msg("%s, %s: the bits of leaf %d differ in run %d, on as many threads", built->trial->row->name,
                     kn_dtype_name(built->trial->dtype), i, threads);
}

static void check_dtype(const OpCase *row, KnDtype dtype, KnBackend *backend)
{
    Built built = build(row, dtype);
    KnExecutor *executor;
    Memory one;
    find_truth(&built);
    if (backend->lower)
        backend->lower(backend, built.trial->graph);
    kn_graph_finish(built.trial->graph, built.kept, built.kept_count);
    assert_int_equal(kn_executor_create(&executor, built.trial->graph, backend, built.kept, built.kept_count), KN_OK);
    for (int threads = 1; threads <= 3; threads++) {
        kn_cpu_set_threads(threads);
        Memory memory = run_once(&built, executor, backend);
        if (threads == 1) {
            one = memory;
            compare_with_truth(&built, backend, &one);
        } else {
            compare_bits(&built, &one, &memory, threads);
            clear_memory(&built, backend, &memory);
        }
    }
    kn_cpu_set_threads(0);
    clear_memory(&built, backend, &one);
    kn_executor_destroy(executor);
    clear(&built);
}

void op_check(const OpCase *row, KnBackend *backend)
{
    check_dtype(row, KN_F32, backend);
    if (!(row->flags & OP_ONE_DTYPE))
        check_dtype(row, KN_BF16, backend);
}

int op_supported(const OpCase *row, KnBackend *backend, const char **missing)
{
    Built built = build(row, KN_F32);
    int supported = 1;
    for (int i = 0; i < built.trial->graph->node_count; i++)
        if (!backend->supports(backend, built.trial->graph->nodes[i])) {
            *missing = built.trial->graph->nodes[i]->op->name;
            supported = 0;
        }
    clear(&built);
    return supported;
}

void op_mark(const OpCase *row, KnBackend *backend, int *seen)
{
    Built built = build(row, row->flags & OP_ONE_DTYPE ? KN_F32 : KN_BF16);
    if (backend->lower)
        backend->lower(backend, built.trial->graph);
    for (int i = 0; i < built.trial->graph->node_count; i++)
        seen[built.trial->graph->nodes[i]->op->id] = 1;
    clear(&built);
}
