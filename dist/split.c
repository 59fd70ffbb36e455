/* The table of parameters that tensor parallelism cuts. */
#include "dist/split.h"

#include "core/base/error.h"

#include <string.h>

typedef enum Unit { UNIT_HEADS, UNIT_FFN } Unit;

static const struct {
    const char *suffix; /* behind "blocks.N" */
    int axis;
    Unit unit;
} rows[] = {
    {".to_q.weight", 0, UNIT_HEADS},         {".to_q.bias", 0, UNIT_HEADS},         {".to_k.weight", 0, UNIT_HEADS},
    {".to_k.bias", 0, UNIT_HEADS},           {".to_v.weight", 0, UNIT_HEADS},       {".to_v.bias", 0, UNIT_HEADS},
    {".norm_q.weight", 0, UNIT_HEADS},       {".norm_k.weight", 0, UNIT_HEADS},     {".to_out.0.weight", 1, UNIT_HEADS},
    {".ffn.net.0.proj.weight", 0, UNIT_FFN}, {".ffn.net.0.proj.bias", 0, UNIT_FFN}, {".ffn.net.2.weight", 1, UNIT_FFN},
};

static int ends_with(const char *text, const char *suffix)
{
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

KnSplit kn_parameter_split(const KnModelConfig *config, const KnParameter *whole, int rank, int ranks)
{
    KnSplit split = {.axis = -1};
    if (ranks == 1 || strncmp(whole->name, "blocks.", 7) != 0)
        return split;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!ends_with(whole->name, rows[i].suffix))
            continue;
        int64_t units = rows[i].unit == UNIT_HEADS ? config->heads : config->ffn;
        int64_t size = rows[i].unit == UNIT_HEADS ? config->hidden / config->heads : 1;
        split.axis = rows[i].axis;
        split.first = size * kn_cut(units, ranks, rank);
        split.count = size * kn_cut(units, ranks, rank + 1) - split.first;
        KN_ASSERT(whole->shape[split.axis] == units * size);
    }
    return split;
}

void kn_parameter_set_split(const KnModelConfig *config, const KnParameterSet *whole, int rank, int ranks,
                            KnParameterSet *part)
{
    *part = (KnParameterSet){0};
    for (int i = 0; i < whole->count; i++) {
        const KnParameter *from = &whole->list[i];
        KnSplit split = kn_parameter_split(config, from, rank, ranks);
        int64_t shape[KN_MAX_DIMS];
        memcpy(shape, from->shape, sizeof shape);
        if (split.axis >= 0)
            shape[split.axis] = split.count;
        KnParameter *made = kn_parameter_add(part, from->block, from->name, from->dims, shape);
        made->init = from->init;
        made->init_scale = from->init_scale;
        made->matrix = from->matrix;
    }
    kn_parameter_set_finish_parts(part);
}
