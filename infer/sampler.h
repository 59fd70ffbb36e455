/* The sampler: from prompts and given patches to pixels, many clips in one stream.
 *
 * Clips of any sizes are denoised together: they lie end to end as in training, and guidance's two forwards are two
 * segments of the same pass. A clip's result depends on its own seed and settings alone, never on its neighbours.
 * Given patches are written into x before every evaluation and carry the conditioning row of sigma 0. */
#ifndef KN_INFER_SAMPLER_H
#define KN_INFER_SAMPLER_H

#include "dist/layout.h"

/* What all clips of one run share. */
typedef struct KnSampleSettings {
    const char *solver, *spacing; /* see infer/solver.h; NULL = default */
    int steps;
    double guidance; /* 1 = the prompt alone, one forward a step */
    double shift;
    KnDtype dtype; /* KN_F32 or KN_BF16: what the passes compute in */
} KnSampleSettings;

typedef struct KnSampleClip {
    const char *prompt, *negative; /* NULL = the empty caption */
    int64_t frames, height, width; /* of the result; multiples of the patch */
    uint64_t seed;
    const uint8_t *given;       /* [tokens]: 1 where a patch is given; NULL = none */
    const float *given_patches; /* [tokens, patch_dim] in -1..1; read where given */
    float *patches;             /* out: [tokens, patch_dim], unclamped; caller's */
} KnSampleClip;

typedef struct KnSampler KnSampler;

/* The model, its weights and the layout must outlive the sampler. Only models with a text encoder of their own so far.
 * `layout` NULL: one process, whole weights. Else all its ranks share every run, which is then collective: `weights` is
 * what this rank holds (whole, a tensor part, or a ZeRO range), the clips and settings are the same on all, and so are
 * the results. Clips are shared among the replicas (data x shard), tokens cut over the sequence, guidance's two
 * forwards over `cfg`. A replica without a clip makes another's once more where the weights are cut, since it must
 * gather them with the rest. The weights have twins on the backend's device, if it has one. */
int kn_sampler_create(KnSampler **sampler, const KnModel *model, const KnParameterValues *weights,
                      const KnLayout *layout, KnBackend *backend);
void kn_sampler_destroy(KnSampler *sampler); /* NULL is fine */

/* Called after every evaluation of the model, with how many of how many token-evaluations are done. */
typedef void (*KnSampleProgress)(void *context, int64_t done, int64_t total);

/* Denoises all clips, as many at once as fit a pass of `KN_SAMPLE_PASS_TOKENS` (one on each replica). What one rank
 * fails in before it waits for others (memory) fails on all of them, with its sentence. KN_EINPUT names what does not
 * fit the patch or the rotary table. */
enum { KN_SAMPLE_PASS_TOKENS = 8192 };
int kn_sampler_run(KnSampler *sampler, const KnSampleSettings *settings, const KnSampleClip *clips, int64_t count,
                   KnSampleProgress progress, void *context);

/* Tokens of a clip, or KN_EINPUT where its size is no multiple of the patch (says which sizes are near). */
int64_t kn_sample_tokens(const KnModelConfig *config, int64_t frames, int64_t height, int64_t width);

/* Patches in -1..1 (clamped) to u8 [frames][height][width][channels], and back. */
void kn_sample_to_pixels(const KnModelConfig *config, const KnSampleClip *clip, uint8_t *pixels);
void kn_sample_from_pixels(const KnModelConfig *config, int64_t frames, int64_t height, int64_t width,
                           const uint8_t *pixels, float *patches);

#endif
