/* How a token's columns are turned by its position, for kernels of their own (rope.cu) and for norms that do it in the
 * same pass (norm.cu). Only in kernels. */
#ifndef KN_CUDA_ROPE_H
#define KN_CUDA_ROPE_H

#include "core/cuda/grid.h"

/* Where a token's rows of the table begin, one for each axis. */
struct KnAngles {
    int t, y, x;
};

__device__ __forceinline__ int kn_angle_row(const KnCudaRope &r, int64_t place)
{
    int position = r.positions[place];
    if (position < 0 || position >= r.table_rows) {
        kn_report(r.fault, KN_CUDA_WILD_INDEX, place, position, r.table_rows);
        position = 0;
    }
    return position * (int)r.head;
}

__device__ __forceinline__ KnAngles kn_angles_of(const KnCudaRope &r, int64_t token)
{
    return KnAngles{kn_angle_row(r, 3 * token), kn_angle_row(r, 3 * token + 1), kn_angle_row(r, 3 * token + 2)};
}

/* Where a token's column lies, if groups of `group` columns lie one after another: of all of them, as rows do. */
__device__ __forceinline__ int64_t kn_grouped(int64_t tokens, int64_t group, int64_t token, int64_t column)
{
    const unsigned before = (unsigned)column / (unsigned)group;
    return (before * tokens + token) * group + ((unsigned)column - before * (unsigned)group);
}

/* (cos, sin) of a pair of a head: from the row of the pair's axis. */
__device__ __forceinline__ float2 kn_angle(const KnCudaRope &r, const KnAngles &angles, int pair)
{
    const int second = r.axis_pairs[0], third = second + r.axis_pairs[1];
    const int row = pair < second ? angles.t : pair < third ? angles.y : angles.x;
    const float2 angle = *reinterpret_cast<const float2 *>(r.table + row + 2 * pair);
    return make_float2(angle.x, r.inverse ? -angle.y : angle.y);
}

/* Turns LANES columns, whole pairs of one head, from its column `first` on. */
template <int LANES>
__device__ __forceinline__ void kn_turn_pairs(const KnCudaRope &r, const KnAngles &angles, int first,
                                              float (&values)[LANES])
{
#pragma unroll
    for (int k = 0; k < LANES; k += 2) {
        const float2 angle = kn_angle(r, angles, (first + k) / 2);
        const float a = values[k], b = values[k + 1];
        values[k] = a * angle.x - b * angle.y;
        values[k + 1] = b * angle.x + a * angle.y;
    }
}

/* The same from a column of the row on; one lane alone needs the value of the other column of its pair: partner(). */
template <int LANES, class F>
__device__ __forceinline__ void kn_turn(const KnCudaRope &r, const KnAngles &angles, int64_t column,
                                        float (&values)[LANES], F partner)
{
    const int first = (int)((unsigned)column % (unsigned)r.head);
    if constexpr (LANES > 1) {
        kn_turn_pairs<LANES>(r, angles, first, values);
    } else {
        const float2 angle = kn_angle(r, angles, first / 2);
        values[0] = values[0] * angle.x + (first % 2 ? 1.0f : -1.0f) * partner() * angle.y;
    }
}

#endif
