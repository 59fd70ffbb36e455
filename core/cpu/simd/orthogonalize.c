/* What Muon does to its momentum (Jordan et al., 2024): each matrix brought near to the closest orthogonal matrix by
 * Newton-Schulz iterations X <- a X + (b A + c A A) X with A = X X^T, which need matrix products alone.
 *
 * The Gram matrix is that of the shorter side: of the columns (X^T X, products from the right) where there are more
 * rows than columns, so nothing is ever transposed in memory. The terms b A and a X are folded into the factors, as
 * A (b I + c A) + a I = B and X <- B X, so that an iteration is three products and two passes over a small square.
 * Products have float32 sums, and bf16 operands where the processor multiplies those; elsewhere bf16 would only be
 * widened again. The first two are symmetric: only blocks on and above the diagonal are computed.
 *
 * Matrices of a stack go to one thread each as long as there are enough of them; what remains is computed by all
 * threads together, part by part. Both ways give the same bits (core/cpu/matmul.h). */
#include "core/cpu/matmul.h"
#include "core/cpu/simd/kernels.h"
#include "core/cpu/simd/update.h"

#if defined(__AVX512BF16__)
static const KnDtype operand = KN_BF16;
enum { IS_BF16 = 1, ELEMENT = 2 };
#else
static const KnDtype operand = KN_F32;
enum { IS_BF16 = 0, ELEMENT = 4 };
#endif

typedef struct Stack {
    int64_t count, rows, columns, small; /* small: the shorter side */
    int steps;
    float *values;
    /* Workspace: sums of squares per row of the stack, and one scratch per matrix. */
    float *row_sums;
    char *scratch;
    size_t scratch_bytes;
} Stack;

/* One matrix's part of the workspace. */
typedef struct Scratch {
    char *x, *next;     /* [rows, columns] */
    float *sums;        /* [small, small] */
    char *left, *right; /* [small, small] */
    void *packed;       /* the right operand of a symmetric product */
    char *workspace;    /* of the products: part_bytes for each part of a symmetric one */
    size_t part_bytes;
} Scratch;

/* How one matrix is computed: by the calling thread, or by all of them together. */
typedef struct Manner {
    void (*each)(KnLoop loop, KnRange range, const void *arguments);
    void (*multiply)(const KnMatmul *product, void *workspace);
    void (*pack)(const KnMatmulPack *pack);
} Manner;

typedef struct Job {
    const Stack *stack;
    const Scratch *scratch;
    const KnMatmul *product;
} Job;

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static Stack shape_of(const KnNode *node)
{
    const int64_t *shape = node->inputs[0]->shape;
    return (Stack){.count = shape[0],
                   .rows = shape[1],
                   .columns = shape[2],
                   .small = shape[1] < shape[2] ? shape[1] : shape[2],
                   .steps = kn_update_of(node)->newton_schulz_steps};
}

/* Rows of a part of a symmetric product: a multiple of the 16 columns of a packed panel. */
static int64_t part_rows(const Stack *m)
{
    int64_t eighth = (m->small / 8 + 31) / 32 * 32;
    return eighth > 32 ? eighth : 32;
}

static int64_t part_count(const Stack *m)
{
    return (m->small + part_rows(m) - 1) / part_rows(m);
}

/* A = X X^T, or X^T X. */
static KnMatmul gram_product(const Stack *m, const Scratch *s)
{
    int tall = m->rows > m->columns;
    return (KnMatmul){.m = m->small,
                      .n = m->small,
                      .k = tall ? m->rows : m->columns,
                      .type = operand,
                      .a = s->x,
                      .a_form = tall ? KN_TRANSPOSED : KN_PLAIN,
                      .b = s->x,
                      .b_form = tall ? KN_PLAIN : KN_TRANSPOSED,
                      .c = s->sums,
                      .c_type = KN_F32};
}

/* A (b I + c A). */
static KnMatmul square_product(const Stack *m, const Scratch *s)
{
    return (KnMatmul){.m = m->small,
                      .n = m->small,
                      .k = m->small,
                      .type = operand,
                      .a = s->left,
                      .b = s->right,
                      .c = s->sums,
                      .c_type = KN_F32};
}

/* B X, or X B. */
static KnMatmul apply_product(const Stack *m, const Scratch *s)
{
    int tall = m->rows > m->columns;
    return (KnMatmul){.m = m->rows,
                      .n = m->columns,
                      .k = m->small,
                      .type = operand,
                      .a = tall ? s->x : s->left,
                      .b = tall ? s->left : s->x,
                      .c = s->next,
                      .c_type = operand};
}

/* A band of rows of a symmetric product, from the diagonal on, with its right operand packed. */
static KnMatmul symmetric_part(const Stack *m, const Scratch *s, const KnMatmul *whole, int64_t index)
{
    KnMatmul part = *whole;
    int64_t first = index * part_rows(m), left = m->small - first;
    int64_t at = whole->a_form == KN_TRANSPOSED ? first : first * whole->k;
    part.m = left < part_rows(m) ? left : part_rows(m);
    part.n = left;
    part.a = (const char *)whole->a + at * ELEMENT;
    part.lda = whole->a_form == KN_TRANSPOSED ? m->small : whole->k;
    part.b = (const char *)s->packed + (size_t)(first / 16) * kn_matmul_packed_bytes(whole->k, 16, operand);
    part.b_form = KN_PACKED;
    part.c = s->sums + first * m->small + first;
    part.ldc = m->small;
    return part;
}

static size_t part_bytes(const Stack *m)
{
    Scratch none = {0};
    KnMatmul gram = gram_product(m, &none), square = square_product(m, &none);
    KnMatmul parts[] = {symmetric_part(m, &none, &gram, 0), symmetric_part(m, &none, &square, 0)};
    size_t bytes[] = {kn_matmul_workspace_bytes(&parts[0]), kn_matmul_workspace_bytes(&parts[1])};
    return aligned(bytes[0] > bytes[1] ? bytes[0] : bytes[1]);
}

static size_t product_bytes(const Stack *m)
{
    Scratch none = {0};
    KnMatmul apply = apply_product(m, &none);
    size_t whole = aligned(kn_matmul_workspace_bytes(&apply)), parts = (size_t)part_count(m) * part_bytes(m);
    return whole > parts ? whole : parts;
}

static size_t packed_bytes(const Stack *m)
{
    return aligned(kn_matmul_packed_bytes(m->rows > m->columns ? m->rows : m->columns, m->small, operand));
}

static size_t scratch_bytes(const Stack *m)
{
    size_t matrix = (size_t)(m->rows * m->columns), square = (size_t)(m->small * m->small);
    return 2 * aligned(ELEMENT * matrix) + aligned(4 * square) + 2 * aligned(ELEMENT * square) + packed_bytes(m) +
           product_bytes(m);
}

static Scratch scratch_of(const Stack *m, int64_t matrix)
{
    size_t x = aligned(ELEMENT * (size_t)(m->rows * m->columns)), square = (size_t)(m->small * m->small);
    char *at = m->scratch + (size_t)matrix * m->scratch_bytes;
    Scratch s = {.x = at, .next = at + x, .sums = (float *)(at + 2 * x)};
    s.left = at + 2 * x + aligned(4 * square);
    s.right = s.left + aligned(ELEMENT * square);
    s.packed = s.right + aligned(ELEMENT * square);
    s.workspace = (char *)s.packed + packed_bytes(m);
    s.part_bytes = part_bytes(m);
    return s;
}

static size_t orthogonalize_bytes(const KnNode *node)
{
    Stack m = shape_of(node);
    return aligned((size_t)(m.count * m.rows) * sizeof(float)) + (size_t)m.count * scratch_bytes(&m);
}

/* Of each row of the whole stack. */
static void square_rows(const void *arguments, int64_t first, int64_t last)
{
    const Stack *m = arguments;
    for (int64_t row = first; row < last; row++) {
        int64_t at = row * m->columns;
        KnV sums[4] = {0};
        KN_VECTORS_OF_SUMS(0, m->columns, c, lanes, s, {
            KnV u = kn_v_read(m->values, at + c, lanes, 0);
            sums[s] = kn_v_fma(u, u, sums[s]);
        });
        m->row_sums[row] = kn_v_total4(sums);
    }
}

/* X = u / |u| for rows of the whole stack. */
static void start_iteration(const void *arguments, int64_t first, int64_t last)
{
    const Stack *m = arguments;
    char *x = NULL;
    float scale = 0;
    for (int64_t row = first; row < last; row++) {
        int64_t matrix = row / m->rows, at = row * m->columns, to = row % m->rows * m->columns;
        if (row == first || to == 0) {
            double square = 0;
            for (int64_t r = matrix * m->rows; r < (matrix + 1) * m->rows; r++)
                square += (double)m->row_sums[r];
            scale = (float)(1.0 / (sqrt(square) + 1e-7));
            x = scratch_of(m, matrix).x;
        }
        KN_VECTORS(0, m->columns, c, lanes,
                   { kn_v_write(x, to + c, kn_v_read(m->values, at + c, lanes, 0) * scale, lanes, IS_BF16); });
    }
}

/* Rows of the square get what lies above the diagonal below it, 16 columns at a time. */
static void mirror_rows(const Stack *m, float *square, int64_t first, int64_t last)
{
    for (int64_t left = 0; left < last; left += 16)
        for (int64_t r = first; r < last; r++)
            for (int64_t c = left; c < left + 16 && c < r; c++)
                square[r * m->small + c] = square[c * m->small + r];
}

/* left = sums, right = b I + c sums. */
static void make_factors(const void *arguments, int64_t first, int64_t last)
{
    const Stack *m = ((const Job *)arguments)->stack;
    const Scratch *s = ((const Job *)arguments)->scratch;
    mirror_rows(m, s->sums, first, last);
    for (int64_t r = first; r < last; r++) {
        int64_t at = r * m->small;
        KN_VECTORS(0, m->small, c, lanes, {
            KnV a = kn_v_read(s->sums, at + c, lanes, 0);
            kn_v_write(s->left, at + c, a, lanes, IS_BF16);
            kn_v_write(s->right, at + c, a * 2.0315f, lanes, IS_BF16);
        });
        kn_v_write(s->right, at + r, kn_v_set(-4.7750f + 2.0315f * s->sums[at + r]), 1, IS_BF16);
    }
}

/* left = a I + sums. */
static void make_polynomial(const void *arguments, int64_t first, int64_t last)
{
    const Stack *m = ((const Job *)arguments)->stack;
    const Scratch *s = ((const Job *)arguments)->scratch;
    mirror_rows(m, s->sums, first, last);
    for (int64_t r = first; r < last; r++) {
        int64_t at = r * m->small;
        s->sums[at + r] += 3.4445f;
        KN_VECTORS(0, m->small, c, lanes,
                   { kn_v_write(s->left, at + c, kn_v_read(s->sums, at + c, lanes, 0), lanes, IS_BF16); });
    }
}

/* Parts in the order first, last, second, last but one ...: neighbours together are equal work. */
static void multiply_parts(const void *arguments, int64_t first, int64_t last)
{
    const Job *job = arguments;
    int64_t parts = part_count(job->stack);
    for (int64_t i = first; i < last; i++) {
        int64_t index = i % 2 ? parts - 1 - i / 2 : i / 2;
        KnMatmul part = symmetric_part(job->stack, job->scratch, job->product, index);
        kn_matmul_serial(&part, job->scratch->workspace + (size_t)index * job->scratch->part_bytes);
    }
}

/* The product above the diagonal, then `finish` on bands of rows, which first mirror it. */
static void multiply_symmetric(const Stack *m, const Scratch *s, const Manner *manner, const KnMatmul *whole,
                               KnRange finish)
{
    KnMatmulPack pack = {.k = whole->k,
                         .n = m->small,
                         .type = operand,
                         .b = whole->b,
                         .b_type = operand,
                         .b_form = whole->b_form,
                         .packed = s->packed};
    Job job = {.stack = m, .scratch = s, .product = whole};
    manner->pack(&pack);
    manner->each((KnLoop){.count = part_count(m), .block = 1, .work = m->small * whole->k}, multiply_parts, &job);
    manner->each((KnLoop){.count = m->small, .block = 16, .work = 4 * m->small}, finish, &job);
}

/* The result lies in x after an even number of steps, in next after an odd one. */
static void iterate(const Stack *m, int64_t matrix, const Manner *manner)
{
    Scratch s = scratch_of(m, matrix);
    for (int step = 0; step < m->steps; step++) {
        KnMatmul gram = gram_product(m, &s), square = square_product(m, &s), apply = apply_product(m, &s);
        multiply_symmetric(m, &s, manner, &gram, make_factors);
        multiply_symmetric(m, &s, manner, &square, make_polynomial);
        manner->multiply(&apply, s.workspace);
        char *done = s.next;
        s.next = s.x;
        s.x = done;
    }
}

static void each_alone(KnLoop loop, KnRange range, const void *arguments)
{
    range(arguments, 0, loop.count);
}

static const Manner alone = {each_alone, kn_matmul_serial, kn_matmul_pack_serial};
static const Manner together = {kn_parallel_for, kn_matmul_run, kn_matmul_pack};

static void iterate_alone(const void *arguments, int64_t first, int64_t last)
{
    for (int64_t matrix = first; matrix < last; matrix++)
        iterate(arguments, matrix, &alone);
}

static void finish(const void *arguments, int64_t first, int64_t last)
{
    const Stack *m = arguments;
    float scale = 0.2f * sqrtf((float)(m->rows > m->columns ? m->rows : m->columns));
    for (int64_t row = first; row < last; row++) {
        Scratch s = scratch_of(m, row / m->rows);
        const char *x = m->steps % 2 ? s.next : s.x;
        int64_t at = row * m->columns, from = row % m->rows * m->columns;
        KN_VECTORS(0, m->columns, c, lanes,
                   { kn_v_write(m->values, at + c, kn_v_read(x, from + c, lanes, IS_BF16) * scale, lanes, 0); });
    }
}

static int run_orthogonalize(const KnCall *call)
{
    Stack m = shape_of(call->node);
    m.values = call->inputs[0];
    m.row_sums = call->workspace;
    m.scratch = (char *)call->workspace + aligned((size_t)(m.count * m.rows) * sizeof(float));
    m.scratch_bytes = scratch_bytes(&m);
    int64_t threads = kn_cpu_threads(), apart = m.count / threads * threads;
    KnLoop rows = kn_loop_rows(m.count * m.rows, m.columns);
    kn_parallel_for(rows, square_rows, &m);
    kn_parallel_for(rows, start_iteration, &m);
    kn_parallel_for((KnLoop){.count = apart, .block = 1, .work = m.rows * m.columns * m.small}, iterate_alone, &m);
    for (int64_t matrix = apart; matrix < m.count; matrix++)
        iterate(&m, matrix, &together);
    kn_parallel_for(rows, finish, &m);
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_orthogonalize) = {run_orthogonalize, orthogonalize_bytes};
