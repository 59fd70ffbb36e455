/* Clips for tests of the sampler, and what one process makes of them on the CPU: the patches of clips of mixed sizes,
 * before they are clamped. The model (tiny_model.h) has 3 heads, the clips token counts that nothing divides, and some
 * given patches. */
#ifndef KN_TESTS_SAMPLER_SCENES_H
#define KN_TESTS_SAMPLER_SCENES_H

#include "base/support.h"
#include "core/base/random.h"
#include "core/cpu/backend.h"
#include "infer/sampler.h"
#include "infer/tiny_model.h"

#include <math.h>

enum { MOST_CLIPS = 300 };

/* What is asked, and what one process makes of it. */
typedef struct Scene {
    const char *name;
    KnSampleSettings settings;
    KnSampleClip clips[MOST_CLIPS];
    int64_t count, values[MOST_CLIPS]; /* values: of each clip's patches */
} Scene;

static inline const KnModelConfig *config_of(const KnModelFile *file)
{
    return &file->model.config;
}

static inline void add_clip(Scene *scene, const KnModelFile *file, const char *prompt, int64_t frames, int64_t height,
                            int64_t width)
{
    int64_t index = scene->count++, tokens = kn_sample_tokens(config_of(file), frames, height, width);
    KnSampleClip *clip = &scene->clips[index];
    assert_true(tokens > 0);
    scene->values[index] = tokens * kn_model_patch_dim(config_of(file));
    *clip = (KnSampleClip){.prompt = prompt, .frames = frames, .height = height, .width = width};
    clip->seed = 17 + (uint64_t)index;
    clip->patches = kn_alloc((size_t)scene->values[index] * sizeof(float));
}

/* Every `step`th patch of the last clip. */
static inline void give_patches(Scene *scene, int64_t step)
{
    KnSampleClip *clip = &scene->clips[scene->count - 1];
    int64_t values = scene->values[scene->count - 1], tokens = values / (2 * 4 * 4 * 3);
    uint8_t *given = kn_alloc((size_t)tokens);
    float *patches = kn_alloc((size_t)values * sizeof *patches);
    for (int64_t t = 0; t < tokens; t += step)
        given[t] = 1;
    kn_random_normal_fill(kn_random_key(3, KN_RANDOM_TEST, 0, 0), 0, patches, values);
    clip->given = given;
    clip->given_patches = patches;
}

/* Mixed sizes with guidance, one clip without, and more clips than fit one wave. */
static inline int make_scenes(Scene *scenes, const KnModelFile *file)
{
    KnSampleSettings settings = {.steps = 3, .guidance = 3, .shift = 3, .dtype = KN_F32, .solver = "unipc"};
    scenes[0] = (Scene){.name = "mixed", .settings = settings};
    add_clip(&scenes[0], file, "a red circle moves left", 6, 12, 20);
    add_clip(&scenes[0], file, NULL, 2, 4, 4);
    add_clip(&scenes[0], file, "a blue square stays still", 10, 20, 12);
    give_patches(&scenes[0], 4);
    scenes[0].clips[2].negative = "a red circle";
    add_clip(&scenes[0], file, "a red square", 4, 28, 4);
    add_clip(&scenes[0], file, "a blue circle", 2, 12, 12);
    give_patches(&scenes[0], 1); /* all of it */
    settings.guidance = 1;
    settings.solver = "euler";
    scenes[1] = (Scene){.name = "one", .settings = settings};
    add_clip(&scenes[1], file, "a red circle moves left", 2, 20, 20);
    return 2;
}

static inline void make_alone(Scene *scenes, int count, const KnModelFile *file)
{
    KnSampler *sampler = NULL;
    assert_ok(kn_sampler_create(&sampler, &file->model, &file->weights, NULL, kn_cpu_backend()));
    for (int i = 0; i < count; i++)
        assert_ok(kn_sampler_run(sampler, &scenes[i].settings, scenes[i].clips, scenes[i].count, NULL, NULL));
    kn_sampler_destroy(sampler);
}

static inline void clear_scenes(Scene *scenes, int count)
{
    for (int s = 0; s < count; s++)
        for (int64_t i = 0; i < scenes[s].count; i++) {
            free((void *)(uintptr_t)scenes[s].clips[i].given);
            free((void *)(uintptr_t)scenes[s].clips[i].given_patches);
            free(scenes[s].clips[i].patches);
        }
}

/* The largest distance, in parts of the largest value. */
static inline double distance(const float *got, const float *expected, int64_t count)
{
    double largest = 1e-30, worst = 0;
    for (int64_t i = 0; i < count; i++)
        largest = fmax(largest, fabs((double)expected[i]));
    for (int64_t i = 0; i < count; i++)
        worst = fmax(worst, isfinite(got[i]) ? fabs((double)got[i] - expected[i]) / largest : INFINITY);
    return worst;
}

#endif
