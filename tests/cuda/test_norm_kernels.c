/* Kernels of norms on the emulated device, against float64. */
#include "device.h"

#include "core/base/random.h"

#include <cmocka.h>

static float *random_values(size_t count, uint64_t seed)
{
    float *values = malloc(count * sizeof *values);
    kn_random_normal_fill(kn_random_key(seed, KN_RANDOM_TEST, 0, 0), 0, values, (int64_t)count);
    return values;
}

static void is_close(float got, double expected, double relative, double absolute)
{
    if (!(fabs(got - expected) <= relative * fabs(expected) + absolute))
        fail_msg("%.9g, expected %.9g", got, expected);
}

static void rms_norm_is_right(KnCudaType type, size_t rows, size_t columns)
{
    const double eps = 1e-5, rounding = type == KN_CUDA_F32 ? 1e-6 : 0.004;
    float *x = random_values(rows * columns, 1), *weight = random_values(columns, 2);
    void *x_device = to_device(type, x, rows * columns), *y_device;
    float *weight_device = to_device(KN_CUDA_F32, weight, columns), *rstd_device;
    SUCCEEDS(cudaMalloc(&y_device, rows * columns * bytes_of(type)));
    SUCCEEDS(cudaMalloc((void **)&rstd_device, rows * sizeof(float)));
    SUCCEEDS(kn_cuda_rms_norm(type, x_device, weight_device, y_device, rstd_device, (int64_t)rows, (int64_t)columns,
                              (float)eps, NULL));
    float *y = from_device(type, y_device, rows * columns), *rstd = from_device(KN_CUDA_F32, rstd_device, rows);
    for (size_t row = 0; row < rows; row++) {
        double square = 0;
        for (size_t c = 0; c < columns; c++)
            square += (double)x[row * columns + c] * x[row * columns + c];
        double expected = 1 / sqrt(square / (double)columns + eps);
        is_close(rstd[row], expected, 1e-6, 0);
        for (size_t c = 0; c < columns; c++)
            is_close(y[row * columns + c], x[row * columns + c] * expected * weight[c], rounding, 0);
    }
    SUCCEEDS(cudaFree(x_device));
    SUCCEEDS(cudaFree(y_device));
    SUCCEEDS(cudaFree(weight_device));
    SUCCEEDS(cudaFree(rstd_device));
    free(x);
    free(weight);
    free(y);
    free(rstd);
}

static void rms_norm_agrees_with_float64_for_every_width(void **state)
{
    static const size_t columns[] = {1, 7, 8, 128, 1536, 2056, 3001};
    (void)state;
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        rms_norm_is_right(KN_CUDA_F32, 5, columns[i]);
        rms_norm_is_right(KN_CUDA_BF16, 5, columns[i]);
    }
}

static int run(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rms_norm_agrees_with_float64_for_every_width),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
    return run_in_every_order(run);
}
