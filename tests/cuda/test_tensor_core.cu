/* The emulated tensor core instructions against what they are for: where the PTX manual puts the elements of fragments,
 * plain products, and when copies into shared memory may be read. */
#include "core/cuda/tensor_core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include <cmocka.h>
}

static constexpr int WARPS = 2, THREADS = 32 * WARPS;

#define SUCCEEDS(call) assert_string_equal(cudaGetErrorName(call), "cudaSuccess")

static void *to_device(const void *from, size_t bytes)
{
    void *device;
    SUCCEEDS(cudaMalloc(&device, bytes));
    SUCCEEDS(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice));
    return device;
}

static void from_device(void *to, void *device, size_t bytes)
{
    SUCCEEDS(cudaGetLastError());
    SUCCEEDS(cudaMemcpy(to, device, bytes, cudaMemcpyDeviceToHost));
    SUCCEEDS(cudaFree(device));
}

/* Small whole numbers, which products and sums keep exactly; another for each place. */
static float number(int place)
{
    return (float)((place * 37 + 11) % 23 - 11);
}

static uint16_t bits(float value)
{
    uint32_t all;
    memcpy(&all, &value, sizeof all);
    return (uint16_t)(all >> 16);
}

/* ---- ldmatrix: four matrices of 8x8 for each warp ---- */

struct Rows {
    alignas(16) uint16_t at[WARPS][4][8][8];
};

static __global__ void load_matrices(const Rows *from, uint32_t *to, uint32_t *to_transposed)
{
    __shared__ Rows rows;
    const int t = (int)threadIdx.x, lane = t % 32, warp = t / 32;
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < 2; c++)
            rows.at[warp][i][lane / 4][lane % 4 * 2 + c] = from->at[warp][i][lane / 4][lane % 4 * 2 + c];
    __syncwarp();
    uint32_t got[4], transposed[4];
    kn_ldmatrix(got, rows.at[warp][lane / 8][lane % 8]);
    kn_ldmatrix_transposed(transposed, rows.at[warp][lane / 8][lane % 8]);
    for (int i = 0; i < 4; i++) {
        to[4 * t + i] = got[i];
        to_transposed[4 * t + i] = transposed[i];
    }
}

static void matrices_are_loaded_as_the_manual_says(void **state)
{
    static Rows rows;
    static uint32_t got[THREADS][4], transposed[THREADS][4];
    (void)state;
    for (int i = 0; i < WARPS * 4 * 64; i++)
        (&rows.at[0][0][0][0])[i] = (uint16_t)(i + 1);
    void *from = to_device(&rows, sizeof rows), *to = to_device(got, sizeof got);
    void *to_transposed = to_device(got, sizeof got);
    KN_LAUNCH(load_matrices, 1, THREADS, 0, nullptr, (const Rows *)from, (uint32_t *)to, (uint32_t *)to_transposed);
    from_device(got, to, sizeof got);
    from_device(transposed, to_transposed, sizeof transposed);
    SUCCEEDS(cudaFree(from));
    for (int warp = 0; warp < WARPS; warp++)
        for (int matrix = 0; matrix < 4; matrix++)
            for (int row = 0; row < 8; row++)
                for (int column = 0; column < 8; column++) {
                    const uint16_t value = rows.at[warp][matrix][row][column];
                    const uint32_t there = got[32 * warp + 4 * row + column / 2][matrix];
                    const uint32_t turned = transposed[32 * warp + 4 * column + row / 2][matrix];
                    assert_int_equal(column % 2 ? there >> 16 : there & 0xffff, value);
                    assert_int_equal(row % 2 ? turned >> 16 : turned & 0xffff, value);
                }
}

/* ---- mma, by the formulas of the manual's section on m16n8k16 ---- */

struct Product {
    uint16_t a[16][16], b[16][8];
    float d[16][8];
};

static __global__ void multiply(Product *products)
{
    Product *p = &products[threadIdx.x / 32];
    const int group = (int)threadIdx.x % 32 / 4, in_group = (int)threadIdx.x % 4;
    uint32_t a[4] = {}, b[2] = {};
    float d[4];
    for (int i = 0; i < 8; i++) {
        const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        a[i / 2] |= (uint32_t)p->a[row][column] << (i % 2 * 16);
    }
    for (int i = 0; i < 4; i++)
        b[i / 2] |= (uint32_t)p->b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] << (i % 2 * 16);
    for (int i = 0; i < 4; i++)
        d[i] = p->d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)];
    kn_mma(d, a, b[0], b[1]);
    for (int i = 0; i < 4; i++)
        p->d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = d[i];
}

/* The same from tiles in shared memory by ldmatrix; B's rows may be the tile's rows or its columns. */
static __global__ void multiply_tiles(Product *products, int transposed)
{
    __shared__ struct alignas(16) {
        uint16_t a[WARPS][16][16], b[WARPS][16][16];
    } tiles;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    Product *p = &products[warp];
    for (int i = lane; i < 256; i += 32) {
        tiles.a[warp][i / 16][i % 16] = p->a[i / 16][i % 16];
        if (i % 16 < 8)
            *(transposed ? &tiles.b[warp][i / 16][i % 16] : &tiles.b[warp][i % 16][i / 16]) = p->b[i / 16][i % 16];
    }
    __syncwarp();
    uint32_t a[4], b[4];
    float d[4];
    kn_ldmatrix(a, &tiles.a[warp][lane % 16][lane / 16 * 8]);
    if (transposed)
        kn_ldmatrix_transposed(b, &tiles.b[warp][lane % 16][lane / 16 * 8]);
    else
        kn_ldmatrix(b, &tiles.b[warp][lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
    for (int i = 0; i < 4; i++)
        d[i] = p->d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    kn_mma(d, a, b[0], b[1]);
    for (int i = 0; i < 4; i++)
        p->d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = d[i];
}

static void fill(Product *products)
{
    int place = 0;
    for (int w = 0; w < WARPS; w++)
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                products[w].a[i][j] = bits(number(place++));
                if (j >= 8)
                    continue;
                products[w].b[i][j] = bits(number(place++));
                products[w].d[i][j] = number(place++);
            }
}

static void expect_products(const Product *before, const Product *after)
{
    int place = 0;
    static float a[16][16], b[16][8];
    for (int w = 0; w < WARPS; w++) {
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                a[i][j] = number(place++);
                if (j >= 8)
                    continue;
                b[i][j] = number(place++);
                place++;
            }
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                float sum = before[w].d[i][j];
                for (int k = 0; k < 16; k++)
                    sum += a[i][k] * b[k][j];
                assert_true(after[w].d[i][j] == sum);
            }
    }
}

static void fragments_are_multiplied_as_matrices(void **state)
{
    static Product before[WARPS], after[WARPS];
    (void)state;
    fill(before);
    for (int way = 0; way < 3; way++) {
        void *device = to_device(before, sizeof before);
        if (way == 0)
            KN_LAUNCH(multiply, 1, THREADS, 0, nullptr, (Product *)device);
        else
            KN_LAUNCH(multiply_tiles, 1, THREADS, 0, nullptr, (Product *)device, way - 1);
        from_device(after, device, sizeof after);
        expect_products(before, after);
    }
}

/* ---- cp.async: what a thread sees of its own copies, of 1, 2, 3 and, not there, 4 ---- */

static __global__ void copy(const uint32_t *from, uint32_t *seen)
{
    alignas(16) __shared__ uint32_t to[THREADS][4][4];
    uint32_t(*own)[4] = to[threadIdx.x];
    for (int i = 0; i < 16; i++)
        own[i / 4][i % 4] = 77;
    kn_copy_async16(own[0], from, true);
    kn_close_copies();
    kn_copy_async16(own[1], from + 4, true);
    kn_copy_async4(&own[2][0], from + 8, true);
    kn_copy_async4(&own[2][1], from + 8, false);
    kn_close_copies();
    kn_copy_async16(own[3], from, false);
    volatile uint32_t(*now)[4] = own;
    for (int i = 0; i < 16; i++)
        seen[64 * threadIdx.x + i] = now[i / 4][i % 4];
    kn_wait_copies<1>();
    for (int i = 0; i < 16; i++)
        seen[64 * threadIdx.x + 16 + i] = now[i / 4][i % 4];
    kn_wait_copies<0>();
    for (int i = 0; i < 16; i++)
        seen[64 * threadIdx.x + 32 + i] = now[i / 4][i % 4];
    kn_close_copies();
    kn_wait_copies<0>();
    for (int i = 0; i < 16; i++)
        seen[64 * threadIdx.x + 48 + i] = now[i / 4][i % 4];
}

static void copies_come_with_the_wait_for_their_group(void **state)
{
    static const uint32_t values[12] = {1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    static const uint32_t expected[4][16] = {
        {77, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77},
        {1, 1, 1, 1, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77, 77},
        {1, 1, 1, 1, 2, 2, 2, 2, 3, 0, 77, 77, 77, 77, 77, 77},
        {1, 1, 1, 1, 2, 2, 2, 2, 3, 0, 77, 77, 0, 0, 0, 0},
    };
    static uint32_t seen[THREADS][4][16];
    (void)state;
    void *from = to_device(values, sizeof values), *to = to_device(seen, sizeof seen);
    KN_LAUNCH(copy, 1, THREADS, 0, nullptr, (const uint32_t *)from, (uint32_t *)to);
    from_device(seen, to, sizeof seen);
    SUCCEEDS(cudaFree(from));
    for (int t = 0; t < THREADS; t++)
        assert_memory_equal(seen[t], expected, sizeof expected);
}

int main(void)
{
    static const char *const orders[] = {"forward", "backward", "random:1", "random:2"};
    int failed = 0;
    for (const char *order : orders) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(matrices_are_loaded_as_the_manual_says),
            cmocka_unit_test(fragments_are_multiplied_as_matrices),
            cmocka_unit_test(copies_come_with_the_wait_for_their_group),
        };
        setenv("KINORA_EMULATED_THREADS", order, 1);
        failed |= cmocka_run_group_tests(tests, nullptr, nullptr);
    }
    return failed;
}
