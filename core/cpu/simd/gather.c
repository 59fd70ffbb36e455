/* Moving rows and columns: copies of contiguous pieces, and the scatter that is a gather's gradient. */
#include "core/cpu/simd/kernels.h"
#include "core/cpu/simd/row_sum.h"

/* Copies `bytes` from piece i of the source to piece i of the target; a negative stride or a NULL source writes
 * zeros. Piece i lies at (i / inner) outer_stride + (i % inner) inner_stride. */
typedef struct Copy {
    char *to;
    const char *from;
    size_t bytes;
    int64_t inner, to_outer, to_inner, from_outer, from_inner;
} Copy;

static void copy_pieces(const void *arguments, int64_t first, int64_t last)
{
    const Copy *copy = arguments;
    for (int64_t i = first; i < last; i++) {
        int64_t outer = i / copy->inner, inner = i % copy->inner;
        char *to = copy->to + outer * copy->to_outer + inner * copy->to_inner;
        if (copy->from)
            memcpy(to, copy->from + outer * copy->from_outer + inner * copy->from_inner, copy->bytes);
        else
            memset(to, 0, copy->bytes);
    }
}

static void run_copy(const Copy *copy, int64_t pieces)
{
    if (copy->bytes == 0)
        return;
    int64_t elements = (int64_t)copy->bytes / 2 + 1;
    kn_parallel_for((KnLoop){.count = pieces, .block = 8192 / elements + 1, .work = elements}, copy_pieces, copy);
}

/* Rows of `bytes`, apart by strides in bytes. */
static void copy_rows(void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t rows, int64_t bytes)
{
    Copy copy = {
        .to = to, .from = from, .bytes = (size_t)bytes, .inner = 1, .to_outer = to_stride, .from_outer = from_stride};
    if (to_stride == bytes && (from_stride == bytes || !from)) { /* one piece: cut it where it suits the threads */
        int64_t total = rows * bytes, block = 16384;
        copy.to_outer = copy.from_outer = block;
        copy.bytes = (size_t)block;
        run_copy(&copy, total / block);
        int64_t done = total / block * block;
        if (from && total > done)
            memcpy(copy.to + done, copy.from + done, (size_t)(total - done));
        else if (total > done)
            memset(copy.to + done, 0, (size_t)(total - done));
        return;
    }
    run_copy(&copy, rows);
}

typedef struct Gather {
    const char *x;
    const int32_t *index;
    char *out;
    size_t bytes;
} Gather;

static void gather(const void *arguments, int64_t first, int64_t last)
{
    const Gather *g = arguments;
    for (int64_t i = first; i < last; i++) {
        char *to = g->out + (size_t)i * g->bytes;
        if (g->index[i] < 0)
            memset(to, 0, g->bytes);
        else
            memcpy(to, g->x + (size_t)g->index[i] * g->bytes, g->bytes);
    }
}

static int run_gather_rows(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    int64_t count = kn_tensor_elements(call->node->inputs[1]), columns = kn_tensor_columns(x);
    Gather g = {.x = call->inputs[0],
                .index = call->inputs[1],
                .out = call->outputs[0],
                .bytes = (size_t)columns * kn_dtype_bytes(x->dtype)};
    KN_TRY(kn_check_index(call->node, g.index, count, INT32_MIN, kn_tensor_rows(x)));
    kn_parallel_for(kn_loop_rows(count, columns), gather, &g);
    return KN_OK;
}

static size_t scatter_rows_bytes(const KnNode *node)
{
    const KnTensor *x = node->inputs[0];
    return KN_ISA_NAME(kn_row_sum_bytes)(kn_tensor_rows(x), kn_tensor_columns(x), kn_tensor_rows(node->outputs[0]), 1);
}

static int run_scatter_rows(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0], *out = call->node->outputs[0];
    KnRowSum sum = {.node = call->node,
                    .tokens = kn_tensor_rows(x),
                    .columns = kn_tensor_columns(x),
                    .rows = kn_tensor_rows(out),
                    .row_of = call->inputs[1],
                    .allow_negative = 1,
                    .g = call->inputs[0],
                    .bf16 = kn_is_bf16(x),
                    .out0 = call->outputs[0],
                    .out0_bf16 = kn_is_bf16(out)};
    return KN_ISA_NAME(kn_row_sum)(&sum, call->workspace);
}

static int64_t row_bytes(const KnTensor *x)
{
    return kn_tensor_columns(x) * (int64_t)kn_dtype_bytes(x->dtype);
}

static int run_concatenate(const KnCall *call)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)call->node->attributes;
    const KnTensor *a = call->node->inputs[0], *b = call->node->inputs[1], *out = call->node->outputs[0];
    int64_t a_row = row_bytes(a), b_row = row_bytes(b), out_row = row_bytes(out);
    char *to = call->outputs[0], *second = to + (p->axis == 0 ? kn_tensor_rows(a) * out_row : a_row);
    copy_rows(to, out_row, call->inputs[0], a_row, kn_tensor_rows(a), a_row);
    copy_rows(second, out_row, call->inputs[1], b_row, kn_tensor_rows(b), b_row);
    return KN_OK;
}

static int run_slice(const KnCall *call)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)call->node->attributes;
    const KnTensor *x = call->node->inputs[0], *out = call->node->outputs[0];
    int64_t x_row = row_bytes(x), out_row = row_bytes(out), element = (int64_t)kn_dtype_bytes(x->dtype);
    const char *from = (const char *)call->inputs[0] + p->start * (p->axis == 0 ? x_row : element);
    copy_rows(call->outputs[0], out_row, from, x_row, kn_tensor_rows(out), out_row);
    return KN_OK;
}

static int run_pad(const KnCall *call)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)call->node->attributes;
    const KnTensor *x = call->node->inputs[0], *out = call->node->outputs[0];
    int64_t x_row = row_bytes(x), out_row = row_bytes(out), element = (int64_t)kn_dtype_bytes(x->dtype);
    int64_t rows = kn_tensor_rows(out), end = p->start + p->length;
    char *to = call->outputs[0];
    if (p->axis == 0) {
        copy_rows(to, out_row, NULL, 0, p->start, out_row);
        copy_rows(to + p->start * out_row, out_row, call->inputs[0], x_row, p->length, x_row);
        copy_rows(to + end * out_row, out_row, NULL, 0, rows - end, out_row);
    } else {
        copy_rows(to, out_row, NULL, 0, rows, p->start * element);
        copy_rows(to + p->start * element, out_row, call->inputs[0], x_row, rows, x_row);
        copy_rows(to + end * element, out_row, NULL, 0, rows, out_row - end * element);
    }
    return KN_OK;
}

static int run_swap_axes(const KnCall *call)
{
    const KnSwapAttributes *p = (const KnSwapAttributes *)call->node->attributes;
    int64_t bytes = p->inner * (int64_t)kn_dtype_bytes(call->node->inputs[0]->dtype);
    Copy copy = {.to = call->outputs[0],
                 .from = call->inputs[0],
                 .bytes = (size_t)bytes,
                 .inner = p->outer,
                 .to_outer = p->outer * bytes,
                 .to_inner = bytes,
                 .from_outer = bytes,
                 .from_inner = p->middle * bytes};
    run_copy(&copy, p->outer * p->middle);
    return KN_OK;
}

/* Between rows and groups of their columns that lie one after another. */
typedef struct Groups {
    const KnGroupAttributes *p;
    int64_t element;
    char *to;
    const char *from;
    int together; /* `to` has the groups */
} Groups;

static void move_groups(const void *arguments, int64_t first, int64_t last)
{
    const Groups *m = arguments;
    const int64_t *cuts = m->p->cuts, row_size = cuts[m->p->groups] * m->element;
    for (int64_t row = first; row < last; row++)
        for (int i = 0; i < m->p->groups; i++) {
            const int64_t start = cuts[i] * m->element, size = (cuts[i + 1] - cuts[i]) * m->element;
            const int64_t in_rows = row * row_size + start, in_groups = start * m->p->rows + row * size;
            if (size)
                memcpy(m->to + (m->together ? in_groups : in_rows), m->from + (m->together ? in_rows : in_groups),
                       (size_t)size);
        }
}

static int run_groups(const KnCall *call, int together)
{
    const KnGroupAttributes *p = (const KnGroupAttributes *)call->node->attributes;
    Groups m = {.p = p,
                .element = (int64_t)kn_dtype_bytes(call->node->inputs[0]->dtype),
                .to = call->outputs[0],
                .from = call->inputs[0],
                .together = together};
    kn_parallel_for(kn_loop_rows(p->rows, p->cuts[p->groups]), move_groups, &m);
    return KN_OK;
}

static int run_group_columns(const KnCall *call)
{
    return run_groups(call, 1);
}

static int run_ungroup_columns(const KnCall *call)
{
    return run_groups(call, 0);
}

/* Between rows and parts of their columns, of `size` bytes each. */
typedef struct PartsOfRows {
    char *whole, *parts[KN_MAX_OUTPUTS];
    const float *added; /* to each row that is split, or NULL */
    int count;
    size_t size;
    int joins;
} PartsOfRows;

static void move_parts(const void *arguments, int64_t first, int64_t last)
{
    const PartsOfRows *m = arguments;
    for (int64_t row = first; row < last; row++)
        for (int i = 0; i < m->count; i++) {
            char *in_whole = m->whole + (size_t)(row * m->count + i) * m->size;
            char *in_part = m->parts[i] ? m->parts[i] + (size_t)row * m->size : NULL;
            if (!in_part)
                memset(in_whole, 0, m->size);
            else
                memcpy(m->joins ? in_whole : in_part, m->joins ? in_part : in_whole, m->size);
        }
}

static void split_sums(const void *arguments, int64_t first, int64_t last)
{
    const PartsOfRows *m = arguments;
    const int64_t columns = (int64_t)(m->size / sizeof(float));
    for (int64_t row = first; row < last; row++)
        for (int i = 0; i < m->count; i++) {
            const float *whole = (const float *)m->whole + (row * m->count + i) * columns;
            float *part = (float *)m->parts[i] + row * columns;
            for (int64_t c = 0; c < columns; c++)
                part[c] = whole[c] + m->added[i * columns + c];
        }
}

static int run_parts(const KnTensor *whole, void *memory, const float *added, void *const *parts, int count, int joins)
{
    int64_t rows = kn_tensor_rows(whole), columns = kn_tensor_columns(whole);
    PartsOfRows m = {.whole = memory,
                     .added = added,
                     .count = count,
                     .size = (size_t)(columns / count) * kn_dtype_bytes(whole->dtype),
                     .joins = joins};
    for (int i = 0; i < count; i++)
        m.parts[i] = parts[i];
    if (m.size)
        kn_parallel_for(kn_loop_rows(rows, columns), added ? split_sums : move_parts, &m);
    return KN_OK;
}

static int run_split_columns(const KnCall *call)
{
    return run_parts(call->node->inputs[0], call->inputs[0], call->inputs[1], call->outputs, call->node->output_count,
                     0);
}

static int run_join_columns(const KnCall *call)
{
    return run_parts(call->node->outputs[0], call->outputs[0], NULL, call->inputs, call->node->input_count, 1);
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_gather_rows) = {run_gather_rows, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_scatter_rows) = {run_scatter_rows, scatter_rows_bytes};
const KnCpuKernel KN_ISA_NAME(kn_cpu_concatenate) = {run_concatenate, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_slice) = {run_slice, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_pad) = {run_pad, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_swap_axes) = {run_swap_axes, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_group_columns) = {run_group_columns, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_ungroup_columns) = {run_ungroup_columns, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_split_columns) = {run_split_columns, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_join_columns) = {run_join_columns, NULL};
