/* Kernels on single elements: activations and their gradients, sums, products, casts.
 *
 * Every one streams its operands once; arithmetic is in float32 whatever the dtype. The exact GELU needs the normal
 * distribution's tail to full relative accuracy: erfc(z) exp(z^2) = t P(t), t = 1 / (1 + 0.3 z), with P of degree 8
 * fitted to a relative error of 2.4e-8 on 0 <= z <= 10. */
#include "core/cpu/simd/kernel.h"
#include "core/cpu/simd/kernels.h"

typedef struct Elements {
    const void *a, *b;
    void *out;
    float factor;
    int64_t columns;
} Elements;

static int run_elements(const KnCall *call, const KnRange *ranges, const Elements *elements)
{
    const KnTensor *x = call->node->inputs[0];
    kn_parallel_for(kn_loop_elements(kn_tensor_elements(x)), ranges[kn_is_bf16(x)], elements);
    return KN_OK;
}

/* Phi(x), the normal distribution, with exp(-x^2/2) as a by-product. */
KN_V_INLINE KnV normal_distribution(KnV x, KnV *gauss)
{
    static const float p[9] = {0.1691773372f, 0.1708844098f,  0.1472054775f, 0.2191225101f, -0.104048648f,
                               0.5607810238f, -0.5232991534f, 0.4907356064f, -0.1305585871f};
    KnV z = kn_v_select(x < 0, -x, x) * 0.70710678118654752f;
    KnV t = 1.0f / kn_v_fma(kn_v_set(0.3f), z, kn_v_set(1.0f));
    KnV sum = kn_v_set(p[8]);
    for (int i = 7; i >= 0; i--)
        sum = kn_v_fma(sum, t, kn_v_set(p[i]));
    *gauss = kn_v_exp(-z * z);
    KnV tail = 0.5f * *gauss * t * sum;
    return kn_v_select(x < 0, tail, 1.0f - tail);
}

/* x sigmoid(2u) = 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3). */
KN_V_INLINE KnV gelu_tanh_slope(KnV x)
{
    KnV square = x * x;
    KnV s = kn_v_sigmoid(1.5957691216057308f * x * kn_v_fma(square, kn_v_set(0.044715f), kn_v_set(1.0f)));
    KnV slope = kn_v_fma(square, kn_v_set(1.5957691216057308f * 3 * 0.044715f), kn_v_set(1.5957691216057308f));
    return kn_v_fma(x * s * (1.0f - s), slope, s);
}

KN_V_INLINE KnV gelu_exact(KnV x)
{
    KnV gauss;
    return x * normal_distribution(x, &gauss);
}

KN_V_INLINE KnV gelu_exact_slope(KnV x)
{
    KnV gauss, phi = normal_distribution(x, &gauss);
    return kn_v_fma(x * 0.39894228040143268f, gauss, phi);
}

KN_V_INLINE KnV silu_slope(KnV x)
{
    KnV s = kn_v_sigmoid(x);
    return s * kn_v_fma(x, 1.0f - s, kn_v_set(1.0f));
}

/* out = f(a). */
#define MAP(name, f)                                                                                                   \
    KN_V_INLINE void name(const void *arguments, int64_t first, int64_t last, const int bf16)                          \
    {                                                                                                                  \
        const Elements e = *(const Elements *)arguments;                                                               \
        KN_VECTORS(first, last, i, lanes, { kn_v_write(e.out, i, f(kn_v_read(e.a, i, lanes, bf16)), lanes, bf16); });  \
    }                                                                                                                  \
    KN_FOR_BOTH_DTYPES(name)

/* out = f(a) b. */
#define MAP_TIMES(name, f)                                                                                             \
    KN_V_INLINE void name(const void *arguments, int64_t first, int64_t last, const int bf16)                          \
    {                                                                                                                  \
        const Elements e = *(const Elements *)arguments;                                                               \
        KN_VECTORS(first, last, i, lanes, {                                                                            \
            KnV b = kn_v_read(e.b, i, lanes, bf16);                                                                    \
            kn_v_write(e.out, i, f(kn_v_read(e.a, i, lanes, bf16)) * b, lanes, bf16);                                  \
        });                                                                                                            \
    }                                                                                                                  \
    KN_FOR_BOTH_DTYPES(name)

MAP(map_gelu_tanh, kn_v_gelu_tanh);
MAP(map_gelu_exact, gelu_exact);
MAP(map_silu, kn_v_silu);
MAP_TIMES(map_gelu_tanh_slope, gelu_tanh_slope);
MAP_TIMES(map_gelu_exact_slope, gelu_exact_slope);
MAP_TIMES(map_silu_slope, silu_slope);

static const struct {
    const KnRange *forward, *backward;
} activations[] = {
    [KN_GELU_TANH] = {map_gelu_tanh_ranges, map_gelu_tanh_slope_ranges},
    [KN_GELU_EXACT] = {map_gelu_exact_ranges, map_gelu_exact_slope_ranges},
    [KN_SILU] = {map_silu_ranges, map_silu_slope_ranges},
};

static KnActivation activation_of(const KnNode *node)
{
    return ((const KnActivationAttributes *)node->attributes)->kind;
}

static int run_activation(const KnCall *call)
{
    Elements e = {.a = call->inputs[0], .out = call->outputs[0]};
    return run_elements(call, activations[activation_of(call->node)].forward, &e);
}

static int run_activation_backward(const KnCall *call)
{
    Elements e = {.a = call->inputs[0], .b = call->inputs[1], .out = call->outputs[0]};
    return run_elements(call, activations[activation_of(call->node)].backward, &e);
}

KN_V_INLINE void add(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Elements e = *(const Elements *)arguments;
    KN_VECTORS(first, last, i, lanes, {
        KnV sum = kn_v_read(e.a, i, lanes, bf16) + kn_v_read(e.b, i, lanes, bf16);
        kn_v_write(e.out, i, sum, lanes, bf16);
    });
}
KN_FOR_BOTH_DTYPES(add);

typedef struct Parts {
    Elements of;
    int a_bf16, b_bf16, out_bf16;
} Parts;

static void add_parts(const void *arguments, int64_t first, int64_t last)
{
    const Parts p = *(const Parts *)arguments;
    KN_VECTORS(first, last, i, lanes, {
        KnV sum = kn_v_read(p.of.a, i, lanes, p.a_bf16) + kn_v_read(p.of.b, i, lanes, p.b_bf16);
        kn_v_write(p.of.out, i, sum, lanes, p.out_bf16);
    });
}

KN_V_INLINE void multiply(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Elements e = *(const Elements *)arguments;
    KN_VECTORS(first, last, i, lanes, {
        KnV product = kn_v_read(e.a, i, lanes, bf16) * kn_v_read(e.b, i, lanes, bf16);
        kn_v_write(e.out, i, product, lanes, bf16);
    });
}
KN_FOR_BOTH_DTYPES(multiply);

KN_V_INLINE void scale(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Elements e = *(const Elements *)arguments;
    KN_VECTORS(first, last, i, lanes,
               { kn_v_write(e.out, i, kn_v_read(e.a, i, lanes, bf16) * e.factor, lanes, bf16); });
}
KN_FOR_BOTH_DTYPES(scale);

static int run_add(const KnCall *call)
{
    const KnNode *node = call->node;
    Parts p = {.of = {.a = call->inputs[0], .b = call->inputs[1], .out = call->outputs[0]},
               .a_bf16 = kn_is_bf16(node->inputs[0]),
               .b_bf16 = kn_is_bf16(node->inputs[1]),
               .out_bf16 = kn_is_bf16(node->outputs[0])};
    if (p.a_bf16 == p.b_bf16 && p.a_bf16 == p.out_bf16)
        return run_elements(call, add_ranges, &p.of);
    kn_parallel_for(kn_loop_elements(kn_tensor_elements(node->inputs[0])), add_parts, &p);
    return KN_OK;
}

static int run_multiply(const KnCall *call)
{
    Elements e = {.a = call->inputs[0], .b = call->inputs[1], .out = call->outputs[0]};
    return run_elements(call, multiply_ranges, &e);
}

static int run_scale(const KnCall *call)
{
    float factor = ((const KnScaleAttributes *)call->node->attributes)->factor;
    Elements e = {.a = call->inputs[0], .out = call->outputs[0], .factor = factor};
    return run_elements(call, scale_ranges, &e);
}

KN_V_INLINE void add_row(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Elements e = *(const Elements *)arguments;
    for (int64_t row = first; row < last; row++)
        KN_VECTORS(0, e.columns, c, lanes, {
            int64_t i = row * e.columns + c;
            KnV sum = kn_v_read(e.a, i, lanes, bf16) + kn_v_read(e.b, c, lanes, 0);
            kn_v_write(e.out, i, sum, lanes, bf16);
        });
}
KN_FOR_BOTH_DTYPES(add_row);

static int run_add_row(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    int64_t columns = kn_tensor_columns(x);
    Elements e = {.a = call->inputs[0], .b = call->inputs[1], .out = call->outputs[0], .columns = columns};
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), columns), add_row_ranges[kn_is_bf16(x)], &e);
    return KN_OK;
}

/* `bf16` is the dtype that is read; the other one is written. */
KN_V_INLINE void cast(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Elements e = *(const Elements *)arguments;
    KN_VECTORS(first, last, i, lanes, { kn_v_write(e.out, i, kn_v_read(e.a, i, lanes, bf16), lanes, !bf16); });
}
KN_FOR_BOTH_DTYPES(cast);

static int run_cast(const KnCall *call)
{
    Elements e = {.a = call->inputs[0], .out = call->outputs[0]};
    return run_elements(call, cast_ranges, &e);
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_activation) = {run_activation, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_activation_backward) = {run_activation_backward, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_add) = {run_add, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_add_row) = {run_add_row, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_multiply) = {run_multiply, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_scale) = {run_scale, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_cast) = {run_cast, NULL};
