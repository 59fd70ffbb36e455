/* Looking up rates, and the time of a node. Curves are straight lines between points of logarithms. */
#include "dist/device.h"

#include "core/base/error.h"
#include "core/ops/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

KnRate *kn_device_add_rate(KnDevice *device, const char *kind, int dtype, int64_t width)
{
    KN_RESERVE(device->rates, device->rate_count, device->rate_capacity);
    KnRate *rate = &device->rates[device->rate_count++];
    *rate = (KnRate){.dtype = dtype, .width = width};
    snprintf(rate->kind, sizeof rate->kind, "%s", kind);
    return rate;
}

void kn_device_clear(KnDevice *device)
{
    free(device->rates);
    kn_string_list_clear(&device->notes);
    *device = (KnDevice){0};
}

/* --- Curves ------------------------------------------------------------------------------------------------------- */

/* Between (x0, y0) and (x1, y1), in logarithms. */
static double between(double x, double x0, double y0, double x1, double y1)
{
    if (x <= x0 || x1 <= x0)
        return y0;
    if (x >= x1)
        return y1;
    double share = log(x / x0) / log(x1 / x0);
    return exp((1 - share) * log(y0) + share * log(y1));
}

static double along(const KnRate *rate, double size)
{
    int next = 0;
    while (next < rate->count && rate->points[next].size < size)
        next++;
    const KnRatePoint *right = &rate->points[next < rate->count ? next : rate->count - 1];
    const KnRatePoint *left = &rate->points[next > 0 ? next - 1 : 0];
    return between(size, left->size, left->rate, right->size, right->rate);
}

double kn_device_rate(const KnDevice *device, const char *kind, KnDtype dtype, int64_t width, double size)
{
    const KnRate *narrower = NULL, *wider = NULL;
    for (int i = 0; i < device->rate_count; i++) {
        const KnRate *rate = &device->rates[i];
        int fits = strcmp(rate->kind, kind) == 0 && (rate->dtype == KN_DTYPE_COUNT || rate->dtype == (int)dtype);
        if (!fits || rate->count == 0)
            continue;
        if (rate->width <= width && (!narrower || rate->width > narrower->width))
            narrower = rate;
        if (rate->width >= width && (!wider || rate->width < wider->width))
            wider = rate;
    }
    if (!narrower && !wider)
        return 0;
    narrower = narrower ? narrower : wider;
    wider = wider ? wider : narrower;
    double low = along(narrower, size), high = along(wider, size);
    if (narrower->width == 0 || narrower == wider)
        return low;
    return between((double)width, (double)narrower->width, low, (double)wider->width, high);
}

/* --- Nodes -------------------------------------------------------------------------------------------------------- */

/* What a product's curve depends on beside its shape: NULL is nothing. */
static const char *finer_product(const KnNode *node)
{
    static const char *const finer[2][2] = {{NULL, "matmul_deep"}, {"matmul_input", "matmul_input_deep"}};
    const KnMatmulAttributes *p = (const KnMatmulAttributes *)node->attributes;
    if (p->gelu)
        return "matmul_gelu";
    if (p->transpose_a)
        return node->output_count == 0 ? "matmul_accumulated" : NULL;
    return finer[!p->transpose_b && !p->packed_b][p->k > 4 * p->n];
}

static KnNodeWork product_work(const KnNode *node, const KnCost *cost)
{
    const KnMatmulAttributes *p = (const KnMatmulAttributes *)node->attributes;
    int64_t width = p->n < p->k ? p->n : p->k;
    return (KnNodeWork){.kind = p->transpose_a ? "matmul_transposed" : "matmul",
                        .finer = finer_product(node),
                        .time = KN_TIME_MATMUL,
                        .dtype = node->inputs[0]->dtype,
                        .width = width < p->m ? width : p->m,
                        .work = cost->matmul_flops,
                        .bytes = cost->bytes,
                        .size = cost->matmul_flops};
}

/* The curve of attention that a library has no part in: float32, heads of other widths, spans in any order, backwards
 * to few keys. */
static const char *own_attention(const KnNode *node, int64_t width)
{
    const KnAttentionAttributes *p = (const KnAttentionAttributes *)node->attributes;
    int library = p->packed && node->inputs[0]->dtype == KN_BF16 && (width == 64 || width == 128);
    if (node->inputs[0]->dtype == KN_BF16 && kn_attention_has_few_keys(node))
        return "own_attention_few_keys";
    if (library)
        return NULL;
    return node->op->id == KN_OP_ATTENTION_BACKWARD ? "own_attention_backward" : "own_attention";
}

static KnNodeWork attention_work(const KnNode *node, const KnCost *cost)
{
    const KnAttentionAttributes *p = (const KnAttentionAttributes *)node->attributes;
    int64_t heads = p->heads, queries = kn_tensor_rows(node->inputs[0]);
    int64_t width = heads ? kn_tensor_columns(node->inputs[0]) / heads : 0;
    return (KnNodeWork){.kind = node->op->name,
                        .finer = own_attention(node, width),
                        .time = KN_TIME_ATTENTION,
                        .dtype = node->inputs[0]->dtype,
                        .width = width,
                        .work = cost->attention_flops,
                        .bytes = cost->bytes,
                        .size = queries ? p->pairs / (double)queries : 0};
}

KnNodeWork kn_node_work(const KnNode *node)
{
    const KnTensor *first = node->inputs[0] ? node->inputs[0] : node->outputs[0];
    KnCost cost = {0};
    node->op->cost(node, &cost);
    if (node->op->id == KN_OP_MATMUL)
        return product_work(node, &cost);
    if (cost.attention_flops > 0)
        return attention_work(node, &cost);
    double work = cost.matmul_flops > 0 ? cost.matmul_flops : cost.bytes;
    int stack = cost.matmul_flops > 0; /* of matrices, each of which is a product of its own */
    int64_t small = first->dims == 3 && first->shape[1] < first->shape[2] ? first->shape[1] : kn_tensor_columns(first);
    return (KnNodeWork){.kind = node->op->name,
                        .time = stack ? KN_TIME_MATMUL : KN_TIME_MEMORY,
                        .dtype = first->dtype,
                        .width = stack             ? small
                                 : first->dims < 2 ? 0
                                                   : kn_tensor_columns(first),
                        .work = work,
                        .bytes = cost.bytes,
                        .size = work};
}

/* A kernel of so many seconds: where the host queues each, it may end before the next one comes. */
static double queued(const KnDevice *device, double seconds)
{
    return seconds + device->overhead > device->launch ? seconds + device->overhead : device->launch;
}

static double rate_of(const KnDevice *device, const KnNodeWork *w)
{
    static const char *const classes[] = {
        [KN_TIME_MATMUL] = "matmul", [KN_TIME_ATTENTION] = "attention", [KN_TIME_MEMORY] = "memory"};
    char own[64];
    snprintf(own, sizeof own, "own_%s", w->kind);
    int is_own = device->own_attention && w->time == KN_TIME_ATTENTION;
    const char *const kinds[] = {w->finer, is_own ? own : NULL, w->kind, classes[w->time]};
    double rate = 0;
    for (int i = 0; i < 4 && rate == 0; i++)
        rate = kinds[i] ? kn_device_rate(device, kinds[i], w->dtype, w->width, w->size) : 0;
    return rate;
}

double kn_device_seconds(const KnDevice *device, const KnNodeWork *w)
{
    if (w->work <= 0)
        return 0;
    double rate = rate_of(device, w);
    return queued(device, rate > 0 ? w->work / rate : 0);
}

double kn_device_memory_seconds(const KnDevice *device, double bytes)
{
    double rate = kn_device_rate(device, "memory", KN_F32, 0, bytes);
    return rate > 0 ? bytes / rate : 0;
}

double kn_device_kernel_seconds(const KnDevice *device, const KnKernelWork *kernel, KnDtype dtype, int64_t width)
{
    if (kernel->launches == 0)
        return 0;
    double size = kernel->bytes / kernel->launches, rate = kn_device_rate(device, kernel->name, dtype, width, size);
    if (rate == 0)
        rate = kn_device_rate(device, "memory", dtype, width, size);
    if (kernel->at_once > 0 && rate * device->latency > kernel->at_once)
        rate = kernel->at_once / device->latency;
    return kernel->launches * queued(device, rate > 0 ? size / rate : 0);
}
