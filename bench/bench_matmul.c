/* The speed of the CPU matrix product over the shapes of training, next to oneDNN when it was there to build with.
 *
 *     cmake --build build --target bench_matmul && build/bench_matmul [ROUNDS [M N K]]
 *
 * Processors are shared and change their clock: the two run in turn, in slices of about a millisecond, for ROUNDS
 * rounds (100), and each counts by its best slice; the peak is measured beside them, on all threads and on operands in
 * cache. Only ratios mean much. */
#include "core/base/memory.h"
#include "core/cpu/matmul.h"
#ifdef KN_HAVE_onednn
#include "bench/onednn_matmul.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Shape {
    int64_t m, n, k;
    int gradient; /* a weight's: A and B stored [k, m] and [k, n], C f32 */
} Shape;

static const Shape shapes[] = {{1024, 128, 128, 0},  {1024, 512, 128, 0},  {1024, 128, 512, 0},   {128, 128, 1024, 1},
                               {512, 128, 1024, 1},  {4096, 384, 384, 0},  {4096, 1536, 384, 0},  {4096, 384, 1536, 0},
                               {384, 1536, 4096, 1}, {1536, 384, 8192, 1}, {8192, 1536, 1536, 0}, {128, 128, 128, 0},
                               {64, 1536, 1536, 0}};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void fill(void *values, KnDtype type, int64_t count)
{
    uint32_t state = 1;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525 + 1013904223;
        float value = (float)(state >> 16) / 65536.0f - 0.5f;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (type == KN_F32)
            ((float *)values)[i] = value;
        else
            ((uint16_t *)values)[i] = (uint16_t)(bits >> 16);
    }
}

static void *make(size_t bytes)
{
    void *memory;
    if (kn_alloc_large(&memory, bytes ? bytes : 64, "a benchmark's operand") < 0)
        exit(1);
    return memory;
}

typedef void (*Run)(void *context);

/* Seconds a run. */
static double time_runs(Run run, void *context, double flops)
{
    int count = (int)(4e8 / flops) + 1;
    double start = now();
    for (int i = 0; i < count; i++)
        run(context);
    return (now() - start) / count;
}

typedef struct Ours {
    KnMatmul product;
    void *workspace;
} Ours;

static void run_ours(void *context)
{
    const Ours *ours = context;
    kn_matmul_run(&ours->product, ours->workspace);
}

static void bench(const Shape *s, KnDtype type, int packed, int rounds)
{
    const size_t bytes = type == KN_F32 ? 4 : 2;
    const double flops = 2.0 * (double)s->m * (double)s->n * (double)s->k;
    Ours ours = {.product = {.m = s->m,
                             .n = s->n,
                             .k = s->k,
                             .type = type,
                             .c_type = s->gradient ? KN_F32 : type,
                             .a_form = s->gradient ? KN_TRANSPOSED : KN_PLAIN}};
    KnMatmul *p = &ours.product;
    void *a = make((size_t)(s->m * s->k) * bytes), *b = make((size_t)(s->k * s->n) * bytes);
    void *c = make((size_t)(s->m * s->n) * 4), *b_packed = make(kn_matmul_packed_bytes(s->k, s->n, type));
    fill(a, type, s->m * s->k);
    fill(b, type, s->k * s->n);
    p->a = a;
    p->b = b;
    p->c = c;
    if (packed) {
        kn_matmul_pack(&(KnMatmulPack){.k = s->k, .n = s->n, .type = type, .b = b, .b_type = type, .packed = b_packed});
        p->b = b_packed;
        p->b_form = KN_PACKED;
    }
    ours.workspace = make(kn_matmul_workspace_bytes(p));
    rounds = flops > 4e9 ? rounds / 10 + 1 : rounds;
    double best = 1e9, best_peer = 1e9, peak = 0;
#ifdef KN_HAVE_onednn
    KnPeerMatmul wanted = {.m = s->m,
                           .n = s->n,
                           .k = s->k,
                           .bf16 = type == KN_BF16,
                           .c_bf16 = p->c_type == KN_BF16,
                           .a_transposed = s->gradient,
                           .packed = packed,
                           .a = a,
                           .b = b,
                           .c = c};
    void *peer = kn_peer_matmul_create(&wanted);
#endif
    for (int round = 0; round < rounds; round++) {
        double seconds = time_runs(run_ours, &ours, flops), rate = kn_matmul_peak(type, 0.004);
        best = seconds < best ? seconds : best;
        peak = rate > peak ? rate : peak;
#ifdef KN_HAVE_onednn
        seconds = time_runs(kn_peer_matmul_run, peer, flops);
        best_peer = seconds < best_peer ? seconds : best_peer;
#endif
    }
    printf("%-4s %5ld x%5ld x%5ld %-8s %8.1f GFLOP/s  %3.0f%% of peak", type == KN_F32 ? "f32" : "bf16", (long)s->m,
           (long)s->n, (long)s->k,
           s->gradient ? "gradient"
           : packed    ? "packed"
                       : "plain",
           flops / best * 1e-9, 100e-9 * flops / best / peak);
#ifdef KN_HAVE_onednn
    printf("   oneDNN %8.1f  ours/oneDNN %5.2f", flops / best_peer * 1e-9, best_peer / best);
    kn_peer_matmul_destroy(peer);
#endif
    printf("\n");
    kn_free_large(a);
    kn_free_large(b);
    kn_free_large(c);
    kn_free_large(b_packed);
    kn_free_large(ours.workspace);
}

static void bench_forms(const Shape *shape, int rounds)
{
    for (int type = 1; type >= 0; type--)
        for (int packed = !shape->gradient; packed >= 0; packed--)
            bench(shape, type ? KN_BF16 : KN_F32, packed, rounds);
}

int main(int count, char **arguments)
{
    int rounds = count > 1 ? atoi(arguments[1]) : 100;
    printf("kernels: %s, %s; peak now: f32 %.0f, bf16 %.0f GFLOP/s", kn_matmul_kernel_name(KN_F32),
           kn_matmul_kernel_name(KN_BF16), kn_matmul_peak(KN_F32, 0.2), kn_matmul_peak(KN_BF16, 0.2));
#ifdef KN_HAVE_onednn
    printf("; against %s", kn_peer_matmul_version());
#endif
    printf("\n");
    if (count > 4) {
        Shape shape = {atoll(arguments[2]), atoll(arguments[3]), atoll(arguments[4]), count > 5};
        bench_forms(&shape, rounds);
        return 0;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        bench_forms(&shapes[i], rounds);
    return 0;
}
