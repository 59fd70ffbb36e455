/* Filling a training pass's inputs from a pack. */
#include "train/batch.h"

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/base/random.h"
#include "core/cpu/parallel.h"

#include <stdlib.h>
#include <string.h>

int kn_train_batch_create(KnTrainBatch *batch, const KnTrainBatchOptions *options)
{
    size_t tokens = (size_t)options->shape.tokens, values = tokens * (size_t)options->patch_dim;
    void *memory[2] = {0};
    *batch = (KnTrainBatch){0};
    kn_stream_create(&batch->stream, options->shape);
    KN_TRY(kn_alloc_large(&memory[0], values * sizeof(float), "a pack's noisy patches"));
    batch->patches = memory[0];
    KN_TRY(kn_alloc_large(&memory[1], values * sizeof(float), "a pack's targets"));
    batch->target = memory[1];
    batch->weight = kn_alloc(tokens * sizeof(float));
    batch->sigmas = kn_alloc(tokens * sizeof(float));
    batch->given = kn_alloc(tokens);
    return KN_OK;
}

void kn_train_batch_destroy(KnTrainBatch *batch)
{
    kn_stream_destroy(&batch->stream);
    kn_free_large(batch->patches);
    kn_free_large(batch->target);
    free(batch->weight);
    free(batch->sigmas);
    free(batch->given);
    *batch = (KnTrainBatch){0};
}

/* Pixels 0..255 become -1..1; latents are bf16. */
static void read_values(KnValueKind kind, const void *patches, int64_t first, int64_t count, float *values)
{
    if (kind == KN_VALUE_PIXELS) {
        const uint8_t *pixels = (const uint8_t *)patches + first;
        for (int64_t i = 0; i < count; i++)
            values[i] = (float)pixels[i] * (1 / 127.5f) - 1;
    } else {
        const uint16_t *latents = (const uint16_t *)patches + first;
        for (int64_t i = 0; i < count; i++)
            values[i] = kn_bf16_to_float(latents[i]);
    }
}

/* Number of a clip within its step, the same on any layout. */
static uint64_t clip_key(const KnBatch *pack, int64_t clip)
{
    return (uint64_t)pack->index << 32 | (uint64_t)clip;
}

static void add_clip(KnTrainBatch *batch, const KnTrainBatchOptions *o, const KnBatch *pack, int64_t index)
{
    const KnBatchClip *clip = &pack->clips[index];
    uint64_t key = clip_key(pack, index), step = (uint64_t)pack->step;
    uint8_t *given = batch->given + clip->first_token;
    double even = ((double)(clip->clip % 16) + 0.5) / 16;
    float sigma =
        o->validation ? (float)kn_flow_shift(even, o->flow->shift) : kn_flow_draw_sigma(o->flow, o->seed, step, key);
    int64_t given_count = 0;
    if (o->validation)
        memset(given, 0, (size_t)clip->tokens);
    else
        given_count = kn_flow_draw_given(o->flow, o->seed, step, key, clip->grid, given);
    kn_stream_add(&batch->stream, &(KnStreamClip){.grid = {clip->grid[0], clip->grid[1], clip->grid[2]},
                                                  .given = given,
                                                  .sigma = sigma,
                                                  .text = clip->text,
                                                  .text_tokens = clip->text_tokens});
    batch->denoised_tokens += clip->tokens - given_count;
    for (int64_t i = 0; i < clip->tokens; i++)
        batch->sigmas[clip->first_token + i] = sigma;
}

typedef struct Noising { /* of one clip */
    KnTrainBatch *batch;
    const KnTrainBatchOptions *options;
    const KnBatch *pack;
    const KnBatchClip *clip;
    int64_t first; /* of its tokens */
    uint64_t key;
} Noising;

/* One token: decode, draw its noise, mix. The target's memory holds x0, the input's the noise, until they are mixed. */
static void noise_token(const Noising *n, int64_t token)
{
    const KnTrainBatchOptions *o = n->options;
    const KnBatch *pack = n->pack;
    const KnBatchClip *clip = n->clip;
    KnTrainBatch *batch = n->batch;
    int64_t dim = o->patch_dim, at = clip->first_token + token;
    float *x = batch->patches + at * dim, *target = batch->target + at * dim;
    KnRandomKey random = o->validation ? kn_random_key(o->seed, KN_RANDOM_VALIDATION, 0, (uint64_t)clip->clip)
                                       : kn_random_key(o->seed, KN_RANDOM_NOISE, (uint64_t)pack->step, n->key);
    read_values(o->kind, pack->patches, at * dim, dim, target);
    kn_random_normal_fill(random, (uint64_t)(token * dim), x, dim);
    float weight = kn_flow_noise_token(o->flow, batch->sigmas[at], batch->given[at], dim, target, x, x, target);
    batch->weight[at] = weight / ((float)pack->step_tokens * (float)dim);
}

static void noise_tokens(const void *arguments, int64_t first, int64_t last)
{
    const Noising *n = arguments;
    for (int64_t token = first; token < last; token++)
        noise_token(n, n->first + token);
}

/* What [first, first + count) has of the wanted rows. */
static KnRows wanted_of(const KnTrainBatchOptions *o, int64_t first, int64_t count)
{
    int64_t end = first + count, last = o->rows.first + o->rows.count;
    first = first > o->rows.first ? first : o->rows.first;
    end = end < last ? end : last;
    return (KnRows){first, end > first ? end - first : 0};
}

static void fill_clip(KnTrainBatch *batch, const KnTrainBatchOptions *options, const KnBatch *pack, int64_t index)
{
    const KnBatchClip *clip = &pack->clips[index];
    KnRows rows = wanted_of(options, clip->first_token, clip->tokens);
    Noising noising = {batch, options, pack, clip, rows.first - clip->first_token, clip_key(pack, index)};
    /* to draw a normal is the work of several elements */
    kn_parallel_for((KnLoop){.count = rows.count, .block = 4, .work = 8 * options->patch_dim}, noise_tokens, &noising);
}

void kn_train_batch_fill(KnTrainBatch *batch, const KnTrainBatchOptions *options, const KnBatch *pack)
{
    size_t row = (size_t)options->patch_dim * sizeof(float);
    kn_stream_clear(&batch->stream);
    batch->denoised_tokens = 0;
    for (int64_t i = 0; i < pack->clip_count; i++)
        add_clip(batch, options, pack, i);
    for (int64_t i = 0; i < pack->clip_count; i++)
        fill_clip(batch, options, pack, i);
    KnRows unused = wanted_of(options, pack->tokens, options->shape.tokens - pack->tokens);
    memset(batch->patches + unused.first * options->patch_dim, 0, (size_t)unused.count * row);
    memset(batch->target + unused.first * options->patch_dim, 0, (size_t)unused.count * row);
    memset(batch->weight + unused.first, 0, (size_t)unused.count * sizeof(float));
}
