/* Rotary positions and the sinusoidal timestep embedding.
 *
 * A token's cosines and sines are laid out once, as wide as a head and with the sine's sign alternating, and then
 * serve all heads: out = x cos + swap(x) sin, where swap exchanges the two columns of each pair. */
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

static void lay_out_angles(const Rope *rope, const int32_t *position, float *cosine, float *sine)
{
    float sign = rope->attributes->inverse ? -1.0f : 1.0f;
    int64_t column = 0;
    for (int axis = 0; axis < 3; axis++) {
        const float *angles = rope->table + position[axis] * rope->head;
        int64_t end = column + 2 * rope->attributes->axis_pairs[axis];
        for (; column < end; column += 2) {
            cosine[column] = cosine[column + 1] = angles[column];
            sine[column] = -sign * angles[column + 1];
            sine[column + 1] = sign * angles[column + 1];
        }
    }
}

KN_V_INLINE void turn(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Rope *rope = arguments;
    int64_t heads = rope->attributes->heads, head = rope->head;
    float cosine[MAX_HEAD], sine[MAX_HEAD];
    for (int64_t l = first; l < last; l++) {
        lay_out_angles(rope, rope->positions + 3 * l, cosine, sine);
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = (l * heads + h) * head;
            KN_VECTORS(0, head, c, lanes, {
                KnV x = kn_v_read(rope->x, at + c, lanes, bf16);
                KnV turned = swap_pairs(x) * kn_v_read(sine, c, lanes, 0);
                kn_v_write(rope->out, at + c, kn_v_fma(x, kn_v_read(cosine, c, lanes, 0), turned), lanes, bf16);
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
                 .head = columns / attributes->heads};
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
