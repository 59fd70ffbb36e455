/* Devices as YAML: reading, writing, and the built-in ones. */
#include "dist/device.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/yaml.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Measured: docs/gpu.md. Data sheet: NVIDIA's for H200 SXM, H100 SXM 80 GB and A100 SXM 80 GB. The other chips' curves
 * are the measured ones, times the ratio of the data sheets' peaks. A document may begin with `like: DEVICE`. Of
 * products, the forward's have a bias; those of few rows are by how many of 132 multiprocessors tiles of 128x256 fill.
 */
static const char h200_yaml[] =
    "name: h200\n"
    "backend: gpu\n"
    "memory: 143771MiB\n"
    "reserved: 5GiB\n"
    "overhead: 0.9e-6\n"
    "latency: 0.7e-6\n"
    "peak: {bf16: 989e12, f32: 494e12}\n"
    "limit: {bf16: 790e12, f32: 55e12, memory: 4290e9}\n"
    "attention: cudnn\n"
    "overlap: 1\n"
    "ranks_per_node: 8\n"
    "inside: {latency: 5e-6, bandwidth: 360e9}\n"
    "between: {latency: 10e-6, bandwidth: 40e9}\n"
    "rates:\n"
    "- {kind: matmul, dtype: bf16, points: [[2.4e9, 110e12], [1.93e10, 597e12], [3.87e10, 665e12], [1.55e11, 665e12], "
    "[2.25e11, 785e12], [9.0e11, 778e12]]}\n"
    "- {kind: matmul_deep, dtype: bf16, points: [[2.4e9, 110e12], [1.13e11, 618e12], [9.0e11, 735e12]]}\n"
    "- {kind: matmul_input, dtype: bf16, points: [[2.4e9, 110e12], [1.93e10, 592e12], [3.87e10, 654e12], [1.55e11, "
    "707e12], [2.25e11, 782e12], [9.0e11, 789e12]]}\n"
    "- {kind: matmul_input_deep, dtype: bf16, points: [[2.4e9, 110e12], [1.13e11, 558e12], [2.25e11, 739e12], [9.0e11, "
    "737e12]]}\n"
    "- {kind: matmul_transposed, dtype: bf16, points: [[2.4e9, 110e12], [1.93e10, 589e12], [1.55e11, 721e12], [9.0e11, "
    "748e12]]}\n"
    "- {kind: matmul_accumulated, dtype: bf16, points: [[2.4e9, 110e12], [1.93e10, 565e12], [3.87e10, 571e12], "
    "[1.55e11, 711e12], [2.25e11, 683e12], [9.0e11, 748e12]]}\n"
    "- {kind: matmul_gelu, dtype: bf16, points: [[2.4e9, 110e12], [1.13e11, 684e12], [9.0e11, 720e12]]}\n"
    "- {kind: matmul, dtype: f32, points: [[1.93e10, 50e12]]}\n"
    "- {kind: attention, width: 64, points: [[4096, 373e12], [8192, 462e12], [32760, 415e12]]}\n"
    "- {kind: attention, width: 128, points: [[512, 371e12], [4096, 470e12], [8192, 590e12], [32760, 570e12]]}\n"
    "- {kind: attention_backward, width: 64, points: [[4096, 215e12]]}\n"
    "- {kind: attention_backward, width: 128, points: [[512, 174e12], [4096, 377e12], [8192, 415e12], [32760, "
    "420e12]]}\n"
    "- {kind: own_attention, width: 64, points: [[4096, 249e12], [32760, 314e12]]}\n"
    "- {kind: own_attention, width: 128, points: [[512, 240e12], [4096, 241e12], [8192, 347e12], [32760, 353e12]]}\n"
    "- {kind: own_attention_backward, width: 64, points: [[4096, 236e12]]}\n"
    "- {kind: own_attention_backward, width: 128, points: [[512, 150e12], [4096, 207e12], [8192, 239e12], [32760, "
    "245e12]]}\n"
    "- {kind: own_attention_few_keys, points: [[512, 205e12]]}\n"
    "- {kind: memory, points: [[1.0e5, 50e9], [1.0e6, 400e9], [2.5e7, 2040e9], [2.0e8, 3590e9], [4.3e9, 4290e9]]}\n"
    "- {kind: adamw, points: [[4.0e10, 4200e9]]}\n"
    "- {kind: clear, points: [[1.0e9, 4380e9]]}\n"
    "- {kind: fill, points: [[1.0e6, 7.4e9]]}\n"
    "- {kind: inputs, points: [[1.0e6, 7.4e9]]}\n"
    "- {kind: bus, points: [[1.0e9, 50e9]]}\n"
    "notes:\n"
    "- rates of products, attention, memory, AdamW and kernels of a captured graph as measured on H200s (docs/gpu.md), "
    "products of 8,192 and more tokens within training steps, input gradients of 4,096 by the ratio of the forward's\n"
    "- attention as measured on an H200, cuDNN's with the backward that repeats its bits\n"
    "- attention's backward to few keys, by own kernels, as expected (docs/speed.md), not measured\n"
    "- memory answers within 0.7 microseconds; kernels of up to 1 MB take 2 microseconds (assumed)\n"
    "- shares refer to 790 TFLOP/s of bf16 products, 55 of f32 without tensor cores, and 4,290 GB/s\n"
    "- peak and links by NVIDIA's data sheet (989 TFLOP/s, NVLink 450 GB/s each way), 400 Gb/s of network a GPU\n"
    "- links reach four fifths of that, latencies of 5 and 10 microseconds, 5 GiB for contexts and libraries, "
    "50 GB/s to and from the host's memory (assumed)\n";

static const char h100_yaml[] =
    "like: h200\n"
    "name: h100\n"
    "memory: 80GiB\n"
    "limit: {memory: 2990e9}\n"
    "rates:\n"
    "- {kind: memory, points: [[1.0e5, 50e9], [1.0e6, 350e9], [2.5e7, 1420e9], [2.0e8, 2500e9], [4.3e9, 2990e9]]}\n"
    "- {kind: adamw, points: [[4.0e10, 2790e9]]}\n"
    "- {kind: clear, points: [[1.0e9, 3060e9]]}\n"
    "notes:\n"
    "- the H100 is taken for an H200 whose memory and AdamW reach 3.35/4.8 of those rates (data sheet)\n";

static const char a100_yaml[] =
    "name: a100\n"
    "backend: gpu\n"
    "memory: 80GiB\n"
    "reserved: 5GiB\n"
    "overhead: 1.0e-6\n"
    "peak: {bf16: 312e12, f32: 156e12}\n"
    "overlap: 1\n"
    "ranks_per_node: 8\n"
    "inside: {latency: 5e-6, bandwidth: 240e9}\n"
    "between: {latency: 10e-6, bandwidth: 20e9}\n"
    "rates:\n"
    "- {kind: matmul, dtype: bf16, points: [[1.93e10, 188e12], [1.55e11, 209e12], [9.0e11, 210e12], [1.1e12, "
    "225e12]]}\n"
    "- {kind: matmul, dtype: f32, points: [[1.93e10, 95e12]]}\n"
    "- {kind: attention, points: [[512, 117e12], [4096, 117e12], [8192, 169e12], [32760, 172e12]]}\n"
    "- {kind: attention_backward, points: [[512, 73e12], [4096, 101e12], [8192, 116e12], [32760, 119e12]]}\n"
    "- {kind: memory, points: [[2.5e7, 867e9], [2.0e8, 1520e9], [4.3e9, 1820e9]]}\n"
    "- {kind: adamw, points: [[4.0e10, 1130e9]]}\n"
    "- {kind: bus, points: [[1.0e9, 25e9]]}\n"
    "notes:\n"
    "- rates of an H200 (docs/gpu.md) times the data sheets' ratios, 312/989 of products and 2.04/4.8 of memory\n"
    "- attention by own kernels, as on an H200 times 312/641, of which the latter is what mma.sync reached there\n"
    "- peak and links by NVIDIA's data sheet (312 TFLOP/s, NVLink 300 GB/s each way), 200 Gb/s of network a GPU\n"
    "- links reach four fifths of that, latencies of 5 and 10 microseconds, 5 GiB for contexts and libraries, "
    "25 GB/s to and from the host's memory (assumed)\n";

static const struct {
    const char *name, *yaml;
} built_in[] = {{"h200", h200_yaml}, {"h100", h100_yaml}, {"a100", a100_yaml}};
enum { BUILT_IN_COUNT = sizeof built_in / sizeof *built_in };

const char *kn_device_names(void)
{
    return "h200, h100, a100";
}

/* --- Reading ------------------------------------------------------------------------------------------------------ */

/* Beyond them times are no numbers any more. */
static const double largest = 1e30, largest_integer = 1 << 20;

static int wrong(const char *file, const KnYamlNode *node, const char *key, const char *expected)
{
    return kn_fail(KN_EFORMAT, "%s:%d:%d: %s must be %s", file, node->line, node->column, key, expected);
}

static int read_number(const char *file, const KnYamlNode *node, const char *key, double *number)
{
    char *end = NULL;
    if (node->kind == KN_YAML_SCALAR)
        *number = strtod(node->text, &end);
    if (!end || end == node->text || *end || !isfinite(*number) || *number < 0 || *number > largest)
        return wrong(file, node, key, "a number of at least 0, at most 1e30");
    return KN_OK;
}

static int read_integer(const char *file, const KnYamlNode *node, const char *key, int64_t *integer)
{
    double number = 0;
    KN_TRY(read_number(file, node, key, &number));
    if (number < 1 || number > largest_integer || number != floor(number))
        return wrong(file, node, key, "a whole number from 1 to 1048576");
    *integer = (int64_t)number;
    return KN_OK;
}

static int read_bytes(const char *file, const KnYamlNode *node, const char *key, double *bytes)
{
    int64_t count;
    if (node->kind != KN_YAML_SCALAR || !kn_parse_bytes(node->text, &count))
        return wrong(file, node, key, "a size such as 80GiB");
    *bytes = (double)count;
    return KN_OK;
}

static int read_dtype(const char *file, const KnYamlNode *node, int *dtype)
{
    for (*dtype = 0; node->kind == KN_YAML_SCALAR && *dtype < KN_DTYPE_COUNT; ++*dtype)
        if (strcmp(node->text, kn_dtype_name((KnDtype)*dtype)) == 0)
            return KN_OK;
    return wrong(file, node, "dtype", "f32 or bf16");
}

static int read_peak(const char *file, const KnYamlNode *node, double *peak)
{
    if (node->kind != KN_YAML_MAPPING)
        return wrong(file, node, "peak", "FLOP a second by dtype, as in {bf16: 989e12}");
    for (int i = 0; i < node->count; i++) {
        int dtype;
        KN_TRY(read_dtype(file, node->keys[i], &dtype));
        KN_TRY(read_number(file, node->values[i], "peak", &peak[dtype]));
    }
    return KN_OK;
}

/* What shares refer to: FLOP a second by dtype, and bytes a second. */
static int read_limit(const char *file, const KnYamlNode *node, KnDevice *d)
{
    if (node->kind != KN_YAML_MAPPING)
        return wrong(file, node, "limit", "FLOP a second by dtype and bytes, as in {bf16: 790e12, memory: 4290e9}");
    for (int i = 0; i < node->count; i++) {
        int dtype = 0, memory = node->keys[i]->kind == KN_YAML_SCALAR && strcmp(node->keys[i]->text, "memory") == 0;
        KN_TRY(memory ? KN_OK : read_dtype(file, node->keys[i], &dtype));
        KN_TRY(read_number(file, node->values[i], "limit", memory ? &d->memory_limit : &d->limit[dtype]));
    }
    return KN_OK;
}

static int read_attention(const char *file, const KnYamlNode *node, int *own)
{
    *own = node->kind == KN_YAML_SCALAR && strcmp(node->text, "own") == 0;
    if (!*own && (node->kind != KN_YAML_SCALAR || strcmp(node->text, "cudnn") != 0))
        return wrong(file, node, "attention", "cudnn or own");
    return KN_OK;
}

static int read_link(const char *file, const KnYamlNode *node, const char *key, KnLink *link)
{
    const KnYamlNode *latency = node->kind == KN_YAML_MAPPING ? kn_yaml_get(node, "latency") : NULL;
    const KnYamlNode *bandwidth = node->kind == KN_YAML_MAPPING ? kn_yaml_get(node, "bandwidth") : NULL;
    if (!latency || !bandwidth)
        return wrong(file, node, key, "{latency: SECONDS, bandwidth: BYTES A SECOND}");
    KN_TRY(read_number(file, latency, "latency", &link->latency));
    return read_number(file, bandwidth, "bandwidth", &link->bandwidth);
}

static int read_points(const char *file, const KnYamlNode *node, KnRate *rate)
{
    if (node->kind != KN_YAML_SEQUENCE || node->count < 1 || node->count > KN_RATE_POINTS)
        return kn_fail(KN_EFORMAT, "%s:%d:%d: points must be from 1 to %d pairs [SIZE, FLOP OR BYTES A SECOND]", file,
                       node->line, node->column, KN_RATE_POINTS);
    for (int i = 0; i < node->count; i++) {
        const KnYamlNode *pair = node->values[i];
        KnRatePoint *point = &rate->points[i];
        if (pair->kind != KN_YAML_SEQUENCE || pair->count != 2)
            return wrong(file, pair, "a point", "a pair [SIZE, FLOP OR BYTES A SECOND]");
        KN_TRY(read_number(file, pair->values[0], "a size", &point->size));
        KN_TRY(read_number(file, pair->values[1], "a rate", &point->rate));
        if (point->rate < 1 || point->size <= 0 || (i > 0 && point->size <= rate->points[i - 1].size))
            return wrong(file, pair, "points", "above 0, by rising size, and of rates of at least 1");
    }
    rate->count = node->count;
    return KN_OK;
}

/* The first `inherited` curves are those of the device that this one is like: its own of a kind stand in their place.
 */
static void drop_replaced_rates(KnDevice *d, int inherited)
{
    int kept = 0;
    for (int i = 0; i < d->rate_count; i++) {
        int replaced = 0;
        for (int own = inherited; i < inherited && own < d->rate_count; own++)
            replaced |= strcmp(d->rates[i].kind, d->rates[own].kind) == 0;
        if (!replaced)
            d->rates[kept++] = d->rates[i];
    }
    d->rate_count = kept;
}

static int read_text(const char *file, const KnYamlNode *node, const char *key, char *text, size_t size)
{
    if (node->kind != KN_YAML_SCALAR || strlen(node->text) >= size || strpbrk(node->text, "\"\\\n"))
        return wrong(file, node, key, "a short text without \" and \\");
    snprintf(text, size, "%s", node->text);
    return KN_OK;
}

static int read_rate_key(const char *file, const char *key, const KnYamlNode *value, KnRate *rate)
{
    if (strcmp(key, "kind") == 0)
        return read_text(file, value, key, rate->kind, sizeof rate->kind);
    if (strcmp(key, "dtype") == 0)
        return read_dtype(file, value, &rate->dtype);
    if (strcmp(key, "width") == 0)
        return read_integer(file, value, key, &rate->width);
    if (strcmp(key, "points") == 0)
        return read_points(file, value, rate);
    return kn_fail(KN_EFORMAT, "%s:%d:%d: a rate has no key %s: it is made of kind, dtype, width and points", file,
                   value->line, value->column, key);
}

static int read_rate(const char *file, const KnYamlNode *node, KnDevice *device)
{
    KnRate *rate = kn_device_add_rate(device, "", KN_DTYPE_COUNT, 0);
    for (int i = 0; node->kind == KN_YAML_MAPPING && i < node->count; i++)
        KN_TRY(read_rate_key(file, node->keys[i]->text, node->values[i], rate));
    return rate->kind[0] && rate->count ? KN_OK
                                        : wrong(file, node, "a rate", "{kind: NAME, points: [[SIZE, RATE], ...]}");
}

/* Quoted when it is written again (kn_device_to_yaml). */
static int read_note(const char *file, const KnYamlNode *node, KnDevice *device)
{
    if (node->kind != KN_YAML_SCALAR || strpbrk(node->text, "\"\\\n"))
        return wrong(file, node, "a note", "a line of text without \" and \\, in quotes where it has a colon");
    kn_string_list_add(&device->notes, node->text);
    return KN_OK;
}

static int read_key(const char *file, const char *key, const KnYamlNode *value, KnDevice *d)
{
    static const struct {
        const char *key;
        size_t offset;
    } numbers[] = {{"overhead", offsetof(KnDevice, overhead)},
                   {"launch", offsetof(KnDevice, launch)},
                   {"latency", offsetof(KnDevice, latency)},
                   {"overlap", offsetof(KnDevice, overlap)}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(key, numbers[i].key) == 0)
            return read_number(file, value, key, (double *)((char *)d + numbers[i].offset));
    if (strcmp(key, "name") == 0)
        return read_text(file, value, key, d->name, sizeof d->name);
    if (strcmp(key, "backend") == 0)
        return read_text(file, value, key, d->backend, sizeof d->backend);
    if (strcmp(key, "memory") == 0 || strcmp(key, "reserved") == 0)
        return read_bytes(file, value, key, key[0] == 'm' ? &d->memory : &d->reserved);
    if (strcmp(key, "peak") == 0)
        return read_peak(file, value, d->peak);
    if (strcmp(key, "limit") == 0)
        return read_limit(file, value, d);
    if (strcmp(key, "attention") == 0)
        return read_attention(file, value, &d->own_attention);
    if (strcmp(key, "inside") == 0 || strcmp(key, "between") == 0)
        return read_link(file, value, key, key[0] == 'i' ? &d->inside : &d->between);
    if (strcmp(key, "ranks_per_node") == 0)
        return read_integer(file, value, key, &d->ranks_per_node);
    if (strcmp(key, "rates") == 0) {
        int inherited = d->rate_count;
        for (int i = 0; value->kind == KN_YAML_SEQUENCE && i < value->count; i++)
            KN_TRY(read_rate(file, value->values[i], d));
        drop_replaced_rates(d, inherited);
        return value->kind == KN_YAML_SEQUENCE ? KN_OK : wrong(file, value, key, "a list");
    }
    if (strcmp(key, "notes") == 0) {
        for (int i = 0; value->kind == KN_YAML_SEQUENCE && i < value->count; i++)
            KN_TRY(read_note(file, value->values[i], d));
        return value->kind == KN_YAML_SEQUENCE ? KN_OK : wrong(file, value, key, "a list of texts");
    }
    return kn_fail(KN_EFORMAT, "%s:%d:%d: a device has no key %s", file, value->line, value->column, key);
}

static int check(const KnDevice *d, const char *file)
{
    if (strcmp(d->backend, "cpu") != 0 && strcmp(d->backend, "gpu") != 0)
        return kn_fail(KN_EFORMAT, "%s: backend is \"%s\": it must be cpu or gpu", file, d->backend);
    if (d->memory <= d->reserved || d->inside.bandwidth < 1 || d->between.bandwidth < 1 || d->overlap > 1)
        return kn_fail(KN_EFORMAT,
                       "%s: a device needs memory beyond what is reserved, a bandwidth of at least 1 inside and "
                       "between nodes, and an overlap of at most 1",
                       file);
    static const char *const classes[] = {"matmul", "attention", "memory"};
    for (int i = 0; i < 3; i++)
        if (kn_device_rate(d, classes[i], KN_F32, 0, 1) == 0)
            return kn_fail(KN_EFORMAT, "%s: there is no rate of kind %s for f32, the one that every device must have",
                           file, classes[i]);
    return KN_OK;
}

/* Devices under way: one that is read, and the one whose `like` named it. */
typedef struct Reading {
    const char *name;
    const struct Reading *asked_by;
} Reading;

static int load(KnDevice *device, const Reading *reading);

static int read_like(const Reading *reading, int place, const KnYamlNode *value, KnDevice *device)
{
    if (value->kind != KN_YAML_SCALAR)
        return wrong(reading->name, value, "like", "the name of a device or of a file");
    if (place > 0)
        return wrong(reading->name, value, "like", "the first key: those that follow say what is different");
    for (const Reading *r = reading; r; r = r->asked_by)
        if (strcmp(r->name, value->text) == 0)
            return kn_fail(KN_EFORMAT, "%s:%d:%d: like leads back to %s: one device of the circle must stand alone",
                           reading->name, value->line, value->column, value->text);
    int code = load(device, &(Reading){value->text, reading});
    return code < 0 ? kn_fail_prefix(code, "%s:%d:%d: like", reading->name, value->line, value->column) : KN_OK;
}

static int read_device(KnDevice *device, const Reading *reading, const KnYamlNode *root)
{
    if (root->kind != KN_YAML_MAPPING)
        return wrong(reading->name, root, "a device", "made of keys such as `memory:`");
    for (int i = 0; i < root->count; i++) {
        const char *key = root->keys[i]->text;
        KN_TRY(strcmp(key, "like") == 0 ? read_like(reading, i, root->values[i], device)
                                        : read_key(reading->name, key, root->values[i], device));
    }
    return check(device, reading->name);
}

static int load(KnDevice *device, const Reading *reading)
{
    const char *name = reading->name;
    KnArena *arena = kn_arena_create();
    KnYamlNode *root = NULL;
    int row = 0;
    while (row < BUILT_IN_COUNT && strcmp(name, built_in[row].name) != 0)
        row++;
    int code = row < BUILT_IN_COUNT ? kn_yaml_parse(arena, built_in[row].yaml, strlen(built_in[row].yaml), name, &root)
               : kn_file_exists(name) ? kn_yaml_read(arena, name, &root)
                                      : kn_fail(KN_EINPUT,
                                                "there is no device \"%s\" and no file of that name: the devices are "
                                                "%s, and `kinora bench calibrate --out FILE.yaml` writes one",
                                                name, kn_device_names());
    if (code == KN_OK)
        code = read_device(device, reading, root);
    kn_arena_destroy(arena);
    return code;
}

int kn_device_load(KnDevice *device, const char *name)
{
    *device = (KnDevice){.ranks_per_node = 1};
    int code = load(device, &(Reading){.name = name});
    if (code < 0)
        kn_device_clear(device);
    return code;
}

/* --- Writing ------------------------------------------------------------------------------------------------------ */

static void append_rate(KnText *out, const KnRate *rate)
{
    kn_text_appendf(out, "- {kind: %s", rate->kind);
    if (rate->dtype < KN_DTYPE_COUNT)
        kn_text_appendf(out, ", dtype: %s", kn_dtype_name((KnDtype)rate->dtype));
    if (rate->width)
        kn_text_appendf(out, ", width: %lld", (long long)rate->width);
    kn_text_append(out, ", points: [");
    for (int i = 0; i < rate->count; i++)
        kn_text_appendf(out, "%s[%.6g, %.4g]", i ? ", " : "", rate->points[i].size, rate->points[i].rate);
    kn_text_append(out, "]}\n");
}

char *kn_device_to_yaml(const KnDevice *d)
{
    KnText out = {0};
    kn_text_appendf(&out, "name: %s\nbackend: %s\nmemory: %.0fB\nreserved: %.0fB\noverhead: %.3g\n", d->name,
                    d->backend, d->memory, d->reserved, d->overhead);
    kn_text_appendf(&out, "launch: %.3g\nlatency: %.3g\nattention: %s\n", d->launch, d->latency,
                    d->own_attention ? "own" : "cudnn");
    kn_text_appendf(&out, "peak: {bf16: %.4g, f32: %.4g}\noverlap: %.3g\nranks_per_node: %lld\n", d->peak[KN_BF16],
                    d->peak[KN_F32], d->overlap, (long long)d->ranks_per_node);
    kn_text_appendf(&out, "limit: {bf16: %.4g, f32: %.4g, memory: %.4g}\n", d->limit[KN_BF16], d->limit[KN_F32],
                    d->memory_limit);
    kn_text_appendf(&out, "inside: {latency: %.3g, bandwidth: %.4g}\nbetween: {latency: %.3g, bandwidth: %.4g}\n",
                    d->inside.latency, d->inside.bandwidth, d->between.latency, d->between.bandwidth);
    kn_text_append(&out, "rates:\n");
    for (int i = 0; i < d->rate_count; i++)
        append_rate(&out, &d->rates[i]);
    kn_text_append(&out, "notes:\n");
    for (int i = 0; i < d->notes.count; i++)
        kn_text_appendf(&out, "- \"%s\"\n", d->notes.items[i]);
    return kn_text_take(&out);
}
