/* State changed in place: gradient accumulation, AdamW, Muon's momentum and step, averaged weights. Float32, one pass
 * over memory. */
#include "core/cpu/simd/update.h"
#include "core/cpu/simd/kernels.h"

typedef struct Update {
    float *state, *moment1, *moment2;
    const float *x;
    float beta1, beta2, momentum, eps, decay, lr, clip, correction1, correction2;
} Update;

static int run_update(const KnCall *call, KnRange range, const Update *update)
{
    kn_parallel_for(kn_loop_elements(kn_tensor_elements(call->node->inputs[0])), range, update);
    return KN_OK;
}

static void accumulate(const void *arguments, int64_t first, int64_t last)
{
    const Update u = *(const Update *)arguments;
    KN_VECTORS(first, last, i, lanes, {
        KnV sum = kn_v_read(u.state, i, lanes, 0) + kn_v_read(u.x, i, lanes, 0);
        kn_v_write(u.state, i, sum, lanes, 0);
    });
}

static int run_accumulate(const KnCall *call)
{
    Update u = {.state = call->inputs[0], .x = call->inputs[1]};
    return run_update(call, accumulate, &u);
}

KN_V_INLINE KnV square_root(KnV v)
{
#if KN_LANES == 16
    return (KnV)_mm512_sqrt_ps((__m512)v);
#elif KN_LANES == 8
    return (KnV)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < KN_LANES; i++)
        v[i] = sqrtf(v[i]);
    return v;
#endif
}

static void adamw(const void *arguments, int64_t first, int64_t last)
{
    const Update u = *(const Update *)arguments;
    float step = u.lr / u.correction1, scale2 = 1.0f / u.correction2, keep = 1.0f - u.lr * u.decay;
    KN_VECTORS(first, last, i, lanes, {
        KnV g = kn_v_read(u.x, i, lanes, 0) * u.clip;
        KnV m = kn_v_read(u.moment1, i, lanes, 0), v = kn_v_read(u.moment2, i, lanes, 0);
        m = kn_v_fma(kn_v_set(1.0f - u.beta1), g - m, m);
        v = kn_v_fma(kn_v_set(1.0f - u.beta2), g * g - v, v);
        KnV direction = m * step / (square_root(v * scale2) + u.eps);
        kn_v_write(u.moment1, i, m, lanes, 0);
        kn_v_write(u.moment2, i, v, lanes, 0);
        kn_v_write(u.state, i, kn_v_read(u.state, i, lanes, 0) * keep - direction, lanes, 0);
    });
}

static int run_adamw(const KnCall *call)
{
    const KnUpdateAttributes *p = kn_update_of(call->node);
    const float *hyper = call->inputs[4];
    float norm2 = *(const float *)call->inputs[5];
    if (!isfinite(norm2))
        return KN_OK;
    Update u = {.state = call->inputs[0],
                .x = call->inputs[1],
                .moment1 = call->inputs[2],
                .moment2 = call->inputs[3],
                .beta1 = p->beta1,
                .beta2 = p->beta2,
                .eps = p->eps,
                .decay = p->weight_decay,
                .lr = hyper[KN_HYPER_LR_OTHER],
                .clip = kn_clip_factor(hyper, norm2),
                .correction1 = hyper[KN_HYPER_CORRECTION1],
                .correction2 = hyper[KN_HYPER_CORRECTION2]};
    return run_update(call, adamw, &u);
}

/* state = g + momentum m, with the new m. */
static void momentum(const void *arguments, int64_t first, int64_t last)
{
    const Update u = *(const Update *)arguments;
    KN_VECTORS(first, last, i, lanes, {
        KnV g = kn_v_read(u.x, i, lanes, 0) * u.clip;
        KnV m = kn_v_read(u.moment1, i, lanes, 0) * u.momentum + g;
        kn_v_write(u.moment1, i, m, lanes, 0);
        kn_v_write(u.state, i, m * u.momentum + g, lanes, 0);
    });
}

static int run_momentum(const KnCall *call)
{
    float norm2 = *(const float *)call->inputs[4];
    Update u = {.state = call->inputs[0],
                .x = call->inputs[1],
                .moment1 = call->inputs[2],
                .momentum = kn_update_of(call->node)->momentum,
                .clip = kn_clip_factor(call->inputs[3], norm2)};
    return isfinite(norm2) ? run_update(call, momentum, &u) : KN_OK;
}

static void descend(const void *arguments, int64_t first, int64_t last)
{
    const Update u = *(const Update *)arguments;
    float keep = 1.0f - u.lr * u.decay;
    KN_VECTORS(first, last, i, lanes, {
        KnV p = kn_v_read(u.state, i, lanes, 0) * keep;
        kn_v_write(u.state, i, p - kn_v_read(u.x, i, lanes, 0) * u.lr, lanes, 0);
    });
}

static int run_descend(const KnCall *call)
{
    const float *hyper = call->inputs[2];
    Update u = {.state = call->inputs[0],
                .x = call->inputs[1],
                .decay = kn_update_of(call->node)->weight_decay,
                .lr = hyper[KN_HYPER_LR]};
    return isfinite(*(const float *)call->inputs[3]) ? run_update(call, descend, &u) : KN_OK;
}

static void ema(const void *arguments, int64_t first, int64_t last)
{
    const Update u = *(const Update *)arguments;
    KN_VECTORS(first, last, i, lanes, {
        KnV average = kn_v_read(u.state, i, lanes, 0);
        KnV distance = kn_v_read(u.x, i, lanes, 0) - average;
        kn_v_write(u.state, i, kn_v_fma(kn_v_set(1.0f - u.decay), distance, average), lanes, 0);
    });
}

static int run_ema(const KnCall *call)
{
    const float *hyper = call->inputs[2];
    Update u = {.state = call->inputs[0], .x = call->inputs[1], .decay = hyper[KN_HYPER_EMA]};
    return isfinite(*(const float *)call->inputs[3]) ? run_update(call, ema, &u) : KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_accumulate) = {run_accumulate, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_adamw) = {run_adamw, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_momentum) = {run_momentum, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_descend) = {run_descend, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_ema) = {run_ema, NULL};
