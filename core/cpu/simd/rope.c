/* Rotary positions and the sinusoidal timestep embedding.
 *
 * A token's (cos, sin) pairs are collected once, as wide as a head, and serve all its heads:
 * out = x cos + swap(x) (-+ sin), where swap exchanges the two columns of each pair. */
#include "core/cpu/simd/kernel.h"
#include "core/cpu/simd/kernels.h"

#include <math.h>

enum { MAX_HEAD = 1024 };

typedef struct Rope {
    const KnRopeAttributes *attributes;
    const void *x;
    const int32_t *positions;
    const float *table;
    void *out;
    int64_t head; /* columns of a head */
} Rope;

KN_V_INLINE KnV swap_pairs(KnV v)
{
#if KN_LANES == 16
    return __builtin_shuffle(v, (KnVi){1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
#elif KN_LANES == 8
    return __builtin_shuffle(v, (KnVi){1, 0, 3, 2, 5, 4, 7, 6});
#else
    return __builtin_shuffle(v, (KnVi){1, 0, 3, 2});
#endif
}

KN_V_INLINE KnV even_lanes(KnV v) /* each twice */
{
#if KN_LANES == 16
    return (KnV)_mm512_moveldup_ps((__m512)v);
#elif KN_LANES == 8
    return (KnV)_mm256_moveldup_ps((__m256)v);
#else
    return __builtin_shuffle(v, (KnVi){0, 0, 2, 2});
#endif
}

KN_V_INLINE KnV odd_lanes(KnV v)
{
#if KN_LANES == 16
    return (KnV)_mm512_movehdup_ps((__m512)v);
#elif KN_LANES == 8
    return (KnV)_mm256_movehdup_ps((__m256)v);
#else
    return __builtin_shuffle(v, (KnVi){1, 1, 3, 3});
#endif
}

/* (-1, 1, -1, 1, ...), or its negative for the way back. */
static KnV signs(int inverse)
{
    KnV v;
    for (int i = 0; i < KN_LANES; i++)
        v[i] = (i % 2 == 0) == !inverse ? -1.0f : 1.0f;
    return v;
}

/* The (cos, sin) pairs of a token's three positions, one after the other. */
KN_V_INLINE void collect_angles(const Rope *rope, const int32_t *position, float *angles)
{
    int64_t column = 0;
    for (int axis = 0; axis < 3; axis++) {
        const float *from = rope->table + position[axis] * rope->head;
        int64_t end = column + 2 * rope->attributes->axis_pairs[axis];
        KN_VECTORS(column, end, c, lanes, { kn_v_write(angles, c, kn_v_read(from, c, lanes, 0), lanes, 0); });
        column = end;
    }
}

KN_V_INLINE void turn(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Rope rope = *(const Rope *)arguments;
    int64_t heads = rope.attributes->heads, head = rope.head;
    float angles[MAX_HEAD];
    KnV sign = signs(rope.attributes->inverse);
    for (int64_t l = first; l < last; l++) {
        collect_angles(&rope, rope.positions + 3 * l, angles);
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = (l * heads + h) * head;
            KN_VECTORS(0, head, c, lanes, {
                KnV x = kn_v_read(rope.x, at + c, lanes, bf16), angle = kn_v_read(angles, c, lanes, 0);
                KnV turned = swap_pairs(x) * (odd_lanes(angle) * sign);
                kn_v_write(rope.out, at + c, kn_v_fma(x, even_lanes(angle), turned), lanes, bf16);
            });
        }
    }
}
KN_FOR_BOTH_DTYPES(turn);

static int run_rope(const KnCall *call)
{
    const KnNode *node = call->node;
    const KnTensor *x = node->inputs[0];
    const KnRopeAttributes *attributes = (const KnRopeAttributes *)node->attributes;
    int64_t tokens = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    Rope rope = {.attributes = attributes,
                 .x = call->inputs[0],
                 .positions = call->inputs[1],
                 .table = call->inputs[2],
                 .out = call->outputs[0],
                 .head = kn_tensor_columns(node->inputs[2])};
    if (rope.head > MAX_HEAD)
        return kn_fail(KN_EINPUT, "rope: heads of %lld columns are wider than the %d that are supported",
                       (long long)rope.head, MAX_HEAD);
    KN_TRY(kn_check_index(node, rope.positions, 3 * tokens, 0, kn_tensor_rows(node->inputs[2])));
    kn_parallel_for(kn_loop_rows(tokens, columns), turn_ranges[kn_is_bf16(x)], &rope);
    return KN_OK;
}

/* A few rows of a few hundred values: plain C in double, rounded once. */
static int run_timestep_embedding(const KnCall *call)
{
    const float *timesteps = call->inputs[0];
    float *out = call->outputs[0];
    int64_t rows = kn_tensor_elements(call->node->inputs[0]), half = kn_tensor_columns(call->node->outputs[0]) / 2;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)timesteps[r] * exp(-log(10000.0) * (double)i / (double)half);
            out[r * 2 * half + i] = (float)cos(angle);
            out[r * 2 * half + half + i] = (float)sin(angle);
        }
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_rope) = {run_rope, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_timestep_embedding) = {run_timestep_embedding, NULL};
