/* Kernels with a bug to be planted in each, and without: `planted NAME` runs the kernel that has the bug NAME, or all
 * of them as they should be where NAME is "none". It exits with 0 when the results are right, with 1 when they are not;
 * what dies, or is found by a sanitizer, does not come that far. test_planted.sh says which bug is seen by what. */
#include "core/cuda/grid.h"
#include "core/cuda/vector.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { THREADS = 256, BLOCKS = 3, COUNT = THREADS * BLOCKS };

enum Bug {
    NONE,
    MISSING_BARRIER,
    STATIC_OVERFLOW,
    WRITE_AFTER_READ,
    LOCKSTEP,
    DYNAMIC_OVERFLOW,
    VOTE_AS_BARRIER,
    RACE_BETWEEN_BLOCKS,
    GLOBAL_OVERFLOW,
    FAR_OVERFLOW,
    MISALIGNED,
    DIVERGENT_BARRIER,
    SHUFFLE_DEADLOCK,
    ABSENT_LANE
};

/* ---- kernels, each with what it should give for x[i] = i mod 32 ---- */

/* Each block reversed. */
__global__ void reverse(const float *x, float *y, int bug)
{
    __shared__ float tile[THREADS];
    const float *tile_read = tile;
    const int t = (int)threadIdx.x, first = (int)blockIdx.x * THREADS;
    tile[t] = x[first + t];
    if (bug != MISSING_BARRIER)
        __syncthreads();
    const int from = THREADS - 1 - t;
    y[first + t] = tile_read[bug == STATIC_OVERFLOW && from == THREADS - 1 ? THREADS : from];
}

static float reversed(int i)
{
    return (float)((THREADS - 1 - i % THREADS) % 32);
}

/* A block's sum, and that of its squares. */
__device__ float block_sum(float value, int bug)
{
    __shared__ float sums[THREADS / 32];
    value = kn_warp_sum(value);
    if (bug != WRITE_AFTER_READ)
        __syncthreads();
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < THREADS / 32; warp++)
        total += sums[warp];
    return total;
}

__global__ void two_sums(const float *x, float *y, int bug)
{
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    const float sum = block_sum(x[i], bug), squares = block_sum(x[i] * x[i], bug);
    y[i] = sum + squares;
}

static float summed(int)
{
    return THREADS / 32 * (31 * 32 / 2 + 31 * 32 * 63 / 6);
}

/* A block's sum, by a tree in dynamic shared memory. */
__global__ void tree(const float *x, float *y, int bug)
{
    KN_DYNAMIC_SHARED(float, sums);
    const int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    sums[t] = x[i];
    __syncthreads();
    for (int reach = THREADS / 2; reach; reach /= 2) {
        if (t < reach)
            sums[t] += sums[t + reach + (bug == DYNAMIC_OVERFLOW && t == THREADS / 2 - 1)];
        if (bug != LOCKSTEP || reach > 16)
            __syncthreads();
    }
    __syncthreads();
    y[i] = sums[0];
}

static float tree_sum(int)
{
    return THREADS / 32 * (31 * 32 / 2);
}

/* The neighbouring lane's element. */
__global__ void neighbours(const float *x, float *y, int bug)
{
    __shared__ float lanes[THREADS];
    const int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    lanes[t] = x[i];
    if (bug == VOTE_AS_BARRIER)
        __any_sync(0xffffffffu, 1);
    else
        __syncwarp();
    y[i] = lanes[t ^ 1];
}

static float neighbour(int i)
{
    return (float)((i ^ 1) % 32);
}

/* Element 0 of each block, each to its own place. */
__global__ void heads(const float *x, float *y, int bug)
{
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    y[i] = x[i];
    if (threadIdx.x == 0)
        y[bug == RACE_BETWEEN_BLOCKS ? 0 : i] = 0;
}

static float head(int i)
{
    return (float)(i % 32);
}

/* Twice the element, 16 bytes at a time. */
__global__ void twice(const float *x, float *y, int bug)
{
    const int vector = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (vector >= COUNT / 4 + (bug == GLOBAL_OVERFLOW))
        return;
    float values[4];
    kn_load(x + 4 * (vector % (COUNT / 4)) + (bug == MISALIGNED), values);
    for (int i = 0; i < 4; i++)
        values[i] *= 2;
    kn_store(y + 4 * vector + (bug == FAR_OVERFLOW && threadIdx.x == 7 ? 4096 : 0), values);
}

static float doubled(int i)
{
    return (float)(i % 32 * 2);
}

/* Half a warp's sum for lane 0, then the element. */
__global__ void halves(const float *x, float *y, int bug)
{
    const int t = (int)threadIdx.x, lane = t % 32, i = (int)blockIdx.x * THREADS + t;
    float value = x[i];
    if (bug == DIVERGENT_BARRIER && t < 32)
        __syncthreads();
    if (bug != SHUFFLE_DEADLOCK || t != 40)
        value += __shfl_xor_sync(0xffffffffu, value, 1);
    if (lane < 16) {
        const unsigned lower = bug == ABSENT_LANE ? 0x7fff : 0xffff;
        if (lower >> lane & 1)
            value += __shfl_down_sync(lower, value, 1, 16);
    }
    __syncthreads();
    y[i] = value;
}

static float half_sum(int i)
{
    const int lane = i % 32, next = lane < 15 ? lane + 1 : lane;
    const float own = (float)(lane + (lane ^ 1));
    return lane < 16 ? own + (float)(next + (next ^ 1)) : own;
}

/* ---- running one ---- */

static const struct {
    const char *name;
    void (*kernel)(const float *x, float *y, int bug);
    size_t shared_bytes;
    float (*expected)(int i);
} kernels[] = {
    {"reverse", reverse, 0, reversed},
    {"two_sums", two_sums, 0, summed},
    {"tree", tree, THREADS * sizeof(float), tree_sum},
    {"neighbours", neighbours, 0, neighbour},
    {"heads", heads, 0, head},
    {"twice", twice, 0, doubled},
    {"halves", halves, 0, half_sum},
};
enum { REVERSE, TWO_SUMS, TREE, NEIGHBOURS, HEADS, TWICE, HALVES, KERNELS };

static const struct {
    const char *name;
    int kernel;
} bugs[] = {
    {"none", KERNELS},
    {"missing_barrier", REVERSE},
    {"static_overflow", REVERSE},
    {"write_after_read", TWO_SUMS},
    {"lockstep", TREE},
    {"dynamic_overflow", TREE},
    {"vote_as_barrier", NEIGHBOURS},
    {"race_between_blocks", HEADS},
    {"global_overflow", TWICE},
    {"far_overflow", TWICE},
    {"misaligned", TWICE},
    {"divergent_barrier", HALVES},
    {"shuffle_deadlock", HALVES},
    {"absent_lane", HALVES},
};

static int run(int k, int bug)
{
    float x[COUNT], y[COUNT], *x_device, *y_device;
    int wrong = 0;
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(i % 32);
    cudaMalloc((void **)&x_device, sizeof x);
    cudaMalloc((void **)&y_device, sizeof y);
    cudaMemcpy(x_device, x, sizeof x, cudaMemcpyHostToDevice);
    auto planted_kernel = kernels[k].kernel;
    KN_LAUNCH(planted_kernel, BLOCKS, THREADS, kernels[k].shared_bytes, nullptr, x_device, y_device, bug);
    cudaMemcpy(y, y_device, sizeof y, cudaMemcpyDeviceToHost);
    cudaFree(x_device);
    cudaFree(y_device);
    for (int i = 0; i < COUNT; i++)
        wrong += !(y[i] == kernels[k].expected(i) || (k == HEADS && i % THREADS == 0 && y[i] == 0));
    if (wrong)
        printf("%s: %d of %d results are wrong\n", kernels[k].name, wrong, (int)COUNT);
    return wrong != 0;
}

int main(int count, char **names)
{
    const int bug_count = (int)(sizeof bugs / sizeof *bugs);
    int bug = 0, failed = 0;
    while (count == 2 && bug < bug_count && strcmp(bugs[bug].name, names[1]) != 0)
        bug++;
    if (count != 2 || bug == bug_count) {
        fprintf(stderr, "usage: planted BUG|none\n");
        return 2;
    }
    for (int k = 0; k < KERNELS; k++)
        if (bug == NONE || bugs[bug].kernel == k)
            failed |= run(k, bug);
    return failed;
}
