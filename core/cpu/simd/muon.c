/* Muon (Jordan et al., 2024): momentum, then each matrix's update brought near to the closest orthogonal matrix by
 * Newton-Schulz iterations X <- a X + (b A + c A A) X with A = X X^T, which need matrix products alone.
 *
 * The Gram matrix is that of the shorter side: of the columns (X^T X, products from the right) where there are more
 * rows than columns, so nothing is ever transposed in memory. The terms b A and a X are folded into the factors, as
 * A (b I + c A) + a I = B and X <- B X, so that an iteration is three products and two passes over a small square.
 * Products are bf16 with float32 sums.
 *
 * Matrices of a stack go to one thread each as long as there are enough of them; what remains is computed by all
 * threads together. Both ways give the same bits (core/cpu/matmul.h). */
#include "core/cpu/matmul.h"
#include "core/cpu/simd/kernels.h"
#include "core/cpu/simd/update.h"

typedef struct Muon {
    int64_t count, rows, columns, small; /* small: the shorter side */
    int steps;
    float momentum_factor, clip, lr, decay;
    float *parameter, *momentum;
    const float *gradient;
    /* Workspace: sums of squares per row of the stack, and one scratch per matrix. */
    float *row_sums;
    char *scratch;
    size_t scratch_bytes;
} Muon;

/* One matrix's part of the workspace. */
typedef struct Scratch {
    uint16_t *x, *next;     /* [rows, columns] */
    float *sums;            /* [small, small] */
    uint16_t *left, *right; /* [small, small] */
    void *workspace;        /* of the products */
} Scratch;

typedef void (*Multiply)(const KnMatmul *product, void *workspace);

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static Muon shape_of(const KnNode *node)
{
    const int64_t *shape = node->inputs[0]->shape;
    return (Muon){.count = shape[0],
                  .rows = shape[1],
                  .columns = shape[2],
                  .small = shape[1] < shape[2] ? shape[1] : shape[2],
                  .steps = kn_update_of(node)->newton_schulz_steps};
}

/* A = X X^T, or X^T X. */
static KnMatmul gram_product(const Muon *m, const Scratch *s)
{
    int tall = m->rows > m->columns;
    return (KnMatmul){.m = m->small,
                      .n = m->small,
                      .k = tall ? m->rows : m->columns,
                      .type = KN_BF16,
                      .a = s->x,
                      .a_form = tall ? KN_TRANSPOSED : KN_PLAIN,
                      .b = s->x,
                      .b_form = tall ? KN_PLAIN : KN_TRANSPOSED,
                      .c = s->sums,
                      .c_type = KN_F32};
}

/* A (b I + c A). */
static KnMatmul square_product(const Muon *m, const Scratch *s)
{
    return (KnMatmul){.m = m->small,
                      .n = m->small,
                      .k = m->small,
                      .type = KN_BF16,
                      .a = s->left,
                      .b = s->right,
                      .c = s->sums,
                      .c_type = KN_F32};
}

/* B X, or X B. */
static KnMatmul apply_product(const Muon *m, const Scratch *s)
{
    int tall = m->rows > m->columns;
    return (KnMatmul){.m = m->rows,
                      .n = m->columns,
                      .k = m->small,
                      .type = KN_BF16,
                      .a = tall ? s->x : s->left,
                      .b = tall ? s->left : s->x,
                      .c = s->next,
                      .c_type = KN_BF16};
}

static size_t product_bytes(const Muon *m)
{
    Scratch none = {0};
    KnMatmul products[] = {gram_product(m, &none), square_product(m, &none), apply_product(m, &none)};
    size_t most = 0;
    for (int i = 0; i < 3; i++) {
        size_t bytes = kn_matmul_workspace_bytes(&products[i]);
        most = bytes > most ? bytes : most;
    }
    return aligned(most);
}

static size_t scratch_bytes(const Muon *m)
{
    size_t matrix = (size_t)(m->rows * m->columns), square = (size_t)(m->small * m->small);
    return 2 * aligned(2 * matrix) + aligned(4 * square) + 2 * aligned(2 * square) + product_bytes(m);
}

static Scratch scratch_of(const Muon *m, int64_t matrix)
{
    size_t x = aligned(2 * (size_t)(m->rows * m->columns)), square = (size_t)(m->small * m->small);
    char *at = m->scratch + (size_t)matrix * m->scratch_bytes;
    Scratch s = {.x = (uint16_t *)at, .next = (uint16_t *)(at + x), .sums = (float *)(at + 2 * x)};
    s.left = (uint16_t *)(at + 2 * x + aligned(4 * square));
    s.right = (uint16_t *)((char *)s.left + aligned(2 * square));
    s.workspace = (char *)s.right + aligned(2 * square);
    return s;
}

static size_t muon_bytes(const KnNode *node)
{
    Muon m = shape_of(node);
    return aligned((size_t)(m.count * m.rows) * sizeof(float)) + (size_t)m.count * scratch_bytes(&m);
}

/* Momentum of rows [first, last) of the whole stack, and each row's sum of squares of u = g + momentum m. */
static void gather_momentum(const void *arguments, int64_t first, int64_t last)
{
    const Muon *m = arguments;
    for (int64_t row = first; row < last; row++) {
        int64_t at = row * m->columns;
        KnV sums[4] = {0};
        KN_VECTORS_OF_SUMS(0, m->columns, c, lanes, s, {
            KnV g = kn_v_read(m->gradient, at + c, lanes, 0) * m->clip;
            KnV momentum = kn_v_read(m->momentum, at + c, lanes, 0) * m->momentum_factor + g;
            KnV u = momentum * m->momentum_factor + g;
            kn_v_write(m->momentum, at + c, momentum, lanes, 0);
            sums[s] = kn_v_fma(u, u, sums[s]);
        });
        m->row_sums[row] = kn_v_total4(sums);
    }
}

/* X = u / |u| for rows of the whole stack. */
static void start_iteration(const void *arguments, int64_t first, int64_t last)
{
    const Muon *m = arguments;
    for (int64_t row = first; row < last; row++) {
        int64_t matrix = row / m->rows, at = row * m->columns, to = row % m->rows * m->columns;
        double square = 0;
        for (int64_t r = matrix * m->rows; r < (matrix + 1) * m->rows; r++)
            square += (double)m->row_sums[r];
        float scale = (float)(1.0 / (sqrt(square) + 1e-7));
        uint16_t *x = scratch_of(m, matrix).x;
        KN_VECTORS(0, m->columns, c, lanes, {
            KnV g = kn_v_read(m->gradient, at + c, lanes, 0) * m->clip;
            KnV u = kn_v_read(m->momentum, at + c, lanes, 0) * m->momentum_factor + g;
            kn_v_write(x, to + c, u * scale, lanes, 1);
        });
    }
}

/* left = sums, right = b I + c sums. */
static void make_factors(const Muon *m, const Scratch *s)
{
    for (int64_t r = 0; r < m->small; r++) {
        int64_t at = r * m->small;
        KN_VECTORS(0, m->small, c, lanes, {
            KnV a = kn_v_read(s->sums, at + c, lanes, 0);
            kn_v_write(s->left, at + c, a, lanes, 1);
            kn_v_write(s->right, at + c, a * 2.0315f, lanes, 1);
        });
        s->right[at + r] = kn_bf16_from_float(-4.7750f + 2.0315f * s->sums[at + r]);
    }
}

/* left = a I + sums. */
static void make_polynomial(const Muon *m, const Scratch *s)
{
    for (int64_t r = 0; r < m->small; r++) {
        int64_t at = r * m->small;
        s->sums[at + r] += 3.4445f;
        KN_VECTORS(0, m->small, c, lanes,
                   { kn_v_write(s->left, at + c, kn_v_read(s->sums, at + c, lanes, 0), lanes, 1); });
    }
}

/* The result lies in x after an even number of steps, in next after an odd one. */
static void iterate(const Muon *m, int64_t matrix, Multiply multiply)
{
    Scratch s = scratch_of(m, matrix);
    for (int step = 0; step < m->steps; step++) {
        KnMatmul gram = gram_product(m, &s);
        multiply(&gram, s.workspace);
        make_factors(m, &s);
        KnMatmul square = square_product(m, &s);
        multiply(&square, s.workspace);
        make_polynomial(m, &s);
        KnMatmul apply = apply_product(m, &s);
        multiply(&apply, s.workspace);
        uint16_t *done = s.next;
        s.next = s.x;
        s.x = done;
    }
}

static void iterate_alone(const void *arguments, int64_t first, int64_t last)
{
    for (int64_t matrix = first; matrix < last; matrix++)
        iterate(arguments, matrix, kn_matmul_serial);
}

static void change_parameter(const void *arguments, int64_t first, int64_t last)
{
    const Muon *m = arguments;
    int64_t large = m->rows > m->columns ? m->rows : m->columns;
    float step = m->lr * 0.2f * sqrtf((float)large), keep = 1.0f - m->lr * m->decay;
    for (int64_t row = first; row < last; row++) {
        Scratch s = scratch_of(m, row / m->rows);
        const uint16_t *x = m->steps % 2 ? s.next : s.x;
        int64_t at = row * m->columns, from = row % m->rows * m->columns;
        KN_VECTORS(0, m->columns, c, lanes, {
            KnV p = kn_v_read(m->parameter, at + c, lanes, 0) * keep;
            kn_v_write(m->parameter, at + c, p - step * kn_v_read(x, from + c, lanes, 1), lanes, 0);
        });
    }
}

static int run_muon(const KnCall *call)
{
    const float *hyper = call->inputs[3];
    float norm2 = *(const float *)call->inputs[4];
    Muon m = shape_of(call->node);
    if (!isfinite(norm2))
        return KN_OK;
    m.parameter = call->inputs[0];
    m.gradient = call->inputs[1];
    m.momentum = call->inputs[2];
    m.momentum_factor = kn_update_of(call->node)->momentum;
    m.decay = kn_update_of(call->node)->weight_decay;
    m.lr = hyper[KN_HYPER_LR];
    m.clip = kn_clip_factor(hyper, norm2);
    m.row_sums = call->workspace;
    m.scratch = (char *)call->workspace + aligned((size_t)(m.count * m.rows) * sizeof(float));
    m.scratch_bytes = scratch_bytes(&m);
    int64_t threads = kn_cpu_threads(), alone = m.count / threads * threads;
    KnLoop rows = kn_loop_rows(m.count * m.rows, m.columns);
    kn_parallel_for(rows, gather_momentum, &m);
    kn_parallel_for(rows, start_iteration, &m);
    kn_parallel_for((KnLoop){.count = alone, .block = 1, .work = m.rows * m.columns * m.small}, iterate_alone, &m);
    for (int64_t matrix = alone; matrix < m.count; matrix++)
        iterate(&m, matrix, kn_matmul_run);
    kn_parallel_for(rows, change_parameter, &m);
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_muon) = {run_muon, muon_bytes};
