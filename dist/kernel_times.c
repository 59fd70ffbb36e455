/* Pricing a node's kernels, and the table of them. */
#include "dist/kernel_times.h"

#include "core/ops/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- The table ---------------------------------------------------------------------------------------------------- */

static KnKernelTime *find_row(KnKernelTimes *times, const char *name, const char *shape, KnTimeKind time)
{
    for (int i = 0; i < times->count; i++)
        if (!strcmp(times->rows[i].name, name) && !strcmp(times->rows[i].shape, shape))
            return &times->rows[i];
    KN_RESERVE(times->rows, times->count, times->capacity);
    KnKernelTime *row = &times->rows[times->count++];
    *row = (KnKernelTime){.time = time};
    snprintf(row->name, sizeof row->name, "%s", name);
    snprintf(row->shape, sizeof row->shape, "%s", shape);
    return row;
}

void kn_kernel_times_add(KnKernelTimes *to, const KnKernelTimes *from, double factor)
{
    for (int i = 0; i < from->count; i++) {
        const KnKernelTime *row = &from->rows[i];
        KnKernelTime *sum = find_row(to, row->name, row->shape, row->time);
        sum->count += factor * row->count;
        sum->seconds += factor * row->seconds;
        sum->work += factor * row->work;
        sum->fastest += factor * row->fastest;
    }
    to->moved += factor * from->moved;
    to->least += factor * from->least;
}

static int longer_first(const void *left, const void *right)
{
    const KnKernelTime *a = left, *b = right;
    return a->seconds == b->seconds ? strcmp(a->name, b->name) : a->seconds > b->seconds ? -1 : 1;
}

void kn_kernel_times_sort(KnKernelTimes *times)
{
    if (times->count)
        qsort(times->rows, (size_t)times->count, sizeof *times->rows, longer_first);
}

void kn_kernel_times_clear(KnKernelTimes *times)
{
    free(times->rows);
    *times = (KnKernelTimes){0};
}

/* --- Shapes ------------------------------------------------------------------------------------------------------- */

static void say_product(char *out, size_t size, const KnNode *node)
{
    static const char *const passes[] = {"", ", input gradient", ", weight gradient", ", added to a sum", ", GELU"};
    const KnMatmulAttributes *p = (const KnMatmulAttributes *)node->attributes;
    int in_place = node->output_count == 0, adds = !in_place && node->input_count > 3 && node->inputs[3];
    int pass = p->transpose_a ? 2 + in_place : !p->transpose_b && !p->packed_b;
    if (p->gelu)
        pass = 4;
    snprintf(out, size, "%lld x %lld x %lld %s%s%s", (long long)p->m, (long long)p->n, (long long)p->k,
             kn_dtype_name(node->inputs[0]->dtype), passes[pass], adds ? " and sum" : "");
}

static void say_attention(char *out, size_t size, const KnNode *node)
{
    const KnAttentionAttributes *p = (const KnAttentionAttributes *)node->attributes;
    snprintf(out, size, "%lld x %lld %s, %d heads of %lld", (long long)kn_tensor_rows(node->inputs[0]),
             (long long)kn_tensor_rows(node->inputs[1]), kn_dtype_name(node->inputs[0]->dtype), (int)p->heads,
             (long long)(p->heads ? kn_tensor_columns(node->inputs[0]) / p->heads : 0));
}

static void say_shape(char *out, size_t size, const KnNode *node)
{
    const KnTensor *x = node->inputs[0] ? node->inputs[0] : node->outputs[0];
    int id = node->op->id;
    if (id == KN_OP_MATMUL)
        say_product(out, size, node);
    else if (id == KN_OP_ATTENTION || id == KN_OP_ATTENTION_BACKWARD)
        say_attention(out, size, node);
    else
        snprintf(out, size, "%lld x %lld %s", (long long)kn_tensor_rows(x), (long long)kn_tensor_columns(x),
                 kn_dtype_name(x->dtype));
}

/* --- Nodes -------------------------------------------------------------------------------------------------------- */

static void note(KnKernelTimes *times, const KnNode *node, const char *name, const KnKernelTime *of)
{
    char shape[64];
    say_shape(shape, sizeof shape, node);
    KnKernelTime *row = find_row(times, name, shape, of->time);
    row->count += of->count;
    row->seconds += of->seconds;
    row->work += of->work;
    row->fastest += of->fastest;
}

static double over(double work, double rate)
{
    return rate > 0 ? work / rate : 0;
}

/* One kernel that is bound by arithmetic, or where it has little of that by what it reads and writes. */
static double computing_seconds(const KnNode *node, const KnNodeWork *w, const KnDevice *device, int bound,
                                KnKernelTimes *times)
{
    double seconds = kn_device_seconds(device, w);
    double moving = bound && w->work > 0 ? kn_device_memory_seconds(device, w->bytes) : 0;
    double limit = device->limit[w->dtype] > 0 ? device->limit[w->dtype] : device->peak[w->dtype];
    KnKernelTime row = {.time = w->time, .count = 1, .work = w->work};
    row.seconds = seconds > moving ? seconds : moving;
    row.fastest = over(w->work, limit);
    if (w->time == KN_TIME_MEMORY)
        row.fastest = over(w->work, device->memory_limit);
    if (times && w->work > 0)
        note(times, node, node->op->name, &row);
    return w->work > 0 ? row.seconds : 0;
}

double kn_node_seconds(const KnNode *node, const KnBackend *backend, const KnDevice *device, KnTimeKind *kind,
                       KnKernelTimes *times)
{
    KnKernelWork kernels[KN_MOST_KERNELS];
    KnNodeWork w = kn_node_work(node);
    *kind = w.time;
    int says = backend && backend->kernels, count = says ? backend->kernels(node, kernels) : 0;
    double sum = count == 0 || w.time != KN_TIME_MEMORY ? computing_seconds(node, &w, device, says, times) : 0;
    for (int i = 0; i < count; i++) {
        const KnKernelWork *k = &kernels[i];
        double seconds = kn_device_kernel_seconds(device, k, w.dtype, w.width);
        KnKernelTime row = {.time = KN_TIME_MEMORY, .count = k->launches, .seconds = seconds, .work = k->bytes};
        row.fastest = over(k->bytes, device->memory_limit);
        sum += seconds;
        if (times && k->launches)
            note(times, node, k->name, &row);
        if (times)
            times->moved += k->bytes;
    }
    if (times && count && w.time == KN_TIME_MEMORY)
        times->least += w.bytes;
    return sum;
}
