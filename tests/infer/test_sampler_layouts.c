/* Every way of cutting 1, 2, 3 and 4 ranks into data x shard x cfg x ring x ulysses x tensor, at every ZeRO stage in
 * turn, against one process: the patches of clips of mixed sizes, before they are clamped. The model has 3 heads, the
 * clips token counts that nothing divides, some given patches, and there are fewer clips than ranks or more than one
 * wave of passes. Ranks are threads. */
#include "infer/sampler_scenes.h"

#include "dist/thread_comm.h"

typedef struct Trial {
    const Scene *scenes;
    int scene_count;
    KnParallelConfig parallel;
    const char *model, *hash;
    /* by rank */
    double worst[THREAD_RANKS_MAX];  /* over all scenes */
    uint64_t bits[THREAD_RANKS_MAX]; /* a sum over all values */
    int64_t held[THREAD_RANKS_MAX];  /* elements of the weights */
} Trial;

/* ---- a long scene ---- */

/* 300 clips of 15 patches, with guidance 9000: more than a pass holds. */
static int make_long_scene(Scene *scenes, const KnModelFile *file)
{
    scenes[0] = (Scene){.name = "many", .settings = {.steps = 1, .guidance = 2, .shift = 1, .dtype = KN_F32}};
    for (int i = 0; i < MOST_CLIPS; i++)
        add_clip(&scenes[0], file, i % 2 ? "a red circle" : "a blue square", 2, 12, 20);
    return 1;
}

/* ---- one rank ---- */

static uint64_t sum_of_bits(uint64_t sum, const float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        sum = sum * 1099511628211u + bits;
    }
    return sum;
}

static int run_scene(Trial *trial, const Scene *scene, KnSampler *sampler, int rank)
{
    KnSampleClip *clips = kn_alloc((size_t)scene->count * sizeof *clips);
    for (int64_t i = 0; i < scene->count; i++) {
        clips[i] = scene->clips[i];
        clips[i].patches = kn_alloc((size_t)scene->values[i] * sizeof(float));
    }
    int code = kn_sampler_run(sampler, &scene->settings, clips, scene->count, NULL, NULL);
    for (int64_t i = 0; i < scene->count; i++) {
        double worst = distance(clips[i].patches, scene->clips[i].patches, scene->values[i]);
        trial->worst[rank] = fmax(trial->worst[rank], worst);
        trial->bits[rank] = sum_of_bits(trial->bits[rank], clips[i].patches, scene->values[i]);
        free(clips[i].patches);
    }
    free(clips);
    return code;
}

/* Weights cut as averages are from stage 1 on: what sample clips of a training run are drawn with. */
static int cut_as_averages(const KnModelFile *file, const KnLayout *layout, KnParameterValues *values)
{
    KN_TRY(kn_zero_values(&layout->zero, 1, values, "averages"));
    for (int i = 0; i < layout->part.count; i++) {
        int64_t first, count;
        float *to = kn_zero_part(values, &layout->part.list[i], &first, &count);
        if (count)
            memcpy(to, kn_parameter_data(&file->weights, &layout->part.list[i]) + first, (size_t)count * sizeof(float));
    }
    return KN_OK;
}

static int run_rank(KnComm *comm, void *argument)
{
    Trial *trial = argument;
    KnModelFile file;
    KnLayout layout;
    KnSampler *sampler = NULL;
    KnParameterValues averages = {0};
    KnLayoutOptions options = {.parallel = &trial->parallel, .world = comm};
    KN_TRY(kn_model_open_shared(&file, comm, trial->model, &options, &layout));
    if (strcmp(file.hash, trial->hash) != 0)
        return kn_fail(KN_EFORMAT, "the hash of the shared model is %s", file.hash);
    for (int b = 0; b < layout.part.block_count; b++)
        trial->held[comm->rank] += file.weights.count[b];
    if (trial->parallel.zero == 1)
        KN_TRY(cut_as_averages(&file, &layout, &averages));
    KN_TRY(kn_sampler_create(&sampler, &file.model, averages.blocks ? &averages : &file.weights, &layout,
                             kn_cpu_backend()));
    for (int i = 0; i < trial->scene_count; i++)
        KN_TRY(run_scene(trial, &trial->scenes[i], sampler, comm->rank));
    kn_sampler_destroy(sampler);
    kn_parameter_values_clear(&averages);
    kn_model_close(&file);
    kn_layout_destroy(&layout);
    return KN_OK;
}

/* ---- all layouts ---- */

static int64_t elements_of(const KnParameterSet *set)
{
    int64_t elements = 0;
    for (int b = 0; b < set->block_count; b++)
        elements += set->block_elements[b];
    return elements;
}

/* With ZeRO 3 no rank holds much more than its share; matrices are cut at rows. */
static int holds_its_share(const Trial *trial, int ranks, const KnModelFile *file)
{
    const KnParallelConfig *p = &trial->parallel;
    int64_t sharing = p->shard * p->ring * p->ulysses, most = 0;
    for (int r = 0; r < ranks; r++)
        most = trial->held[r] > most ? trial->held[r] : most;
    return p->zero < 3 || p->tensor > 1 ||
           (double)most <= 1.1 * (double)elements_of(&file->model.parameters) / (double)sharing;
}

static int try_layout(Trial *trial, const KnModelFile *file)
{
    const KnParallelConfig *p = &trial->parallel;
    int ranks = (int)(p->data * p->shard * p->cfg * p->ring * p->ulysses * p->tensor), same = 1;
    double worst = 0;
    int code = thread_ranks_run(ranks, run_rank, trial);
    for (int r = 0; r < ranks; r++) {
        worst = fmax(worst, trial->worst[r]);
        same &= trial->bits[r] == trial->bits[0];
    }
    int share = holds_its_share(trial, ranks, file), good = code == KN_OK && worst <= 1e-5 && same && share;
    print_message("data %d shard %d cfg %d ring %d ulysses %d tensor %d, zero %d: %.1e%s%s %s\n", (int)p->data,
                  (int)p->shard, (int)p->cfg, (int)p->ring, (int)p->ulysses, (int)p->tensor, (int)p->zero, worst,
                  same ? "" : ", RANKS DIFFER", share ? "" : ", HOLDS TOO MUCH",
                  code < 0 ? kn_error_message()
                  : good   ? ""
                           : "WRONG");
    return !good;
}

/* All ordered products of the axes; the model has heads for three tensor ranks. */
static void try_axes(Trial *trial, const KnModelFile *file, int ranks, int *tried, int *failures)
{
    for (int d = 1; d <= ranks; d++)
        for (int z = 1; z * d <= ranks; z++)
            for (int c = 1; c <= 2 && c * z * d <= ranks; c++)
                for (int r = 1; r * c * z * d <= ranks; r++)
                    for (int u = 1; u * r * c * z * d <= ranks; u++) {
                        int rest = ranks / (d * z * c * r * u);
                        if (rest * d * z * c * r * u != ranks || rest > 3)
                            continue;
                        Trial next = *trial;
                        next.parallel = (KnParallelConfig){.data = d,
                                                           .shard = z,
                                                           .cfg = c,
                                                           .ring = r,
                                                           .ulysses = u,
                                                           .tensor = rest,
                                                           .zero = 3 - (*tried)++ % 4};
                        *failures += try_layout(&next, file);
                    }
}

static void every_layout_makes_the_patches_of_one_process(void **state)
{
    Scene *scenes = kn_alloc(2 * sizeof *scenes);
    KnModelFile file;
    int tried = 0, failures = 0;
    (void)state;
    assert_ok(kn_model_open(&file, NULL, test_path("model")));
    int count = make_scenes(scenes, &file);
    make_alone(scenes, count, &file);
    Trial trial = {.scenes = scenes, .scene_count = count, .model = file.path, .hash = file.hash};
    for (int ranks = 1; ranks <= 4; ranks++)
        try_axes(&trial, &file, ranks, &tried, &failures);
    print_message("%d layouts\n", tried);
    assert_int_equal(tried, 1 + 6 + 5 + 19);
    assert_int_equal(failures, 0);
    clear_scenes(scenes, count);
    free(scenes);
    kn_model_close(&file);
}

static void more_clips_than_a_pass_holds_are_shared_in_waves(void **state)
{
    Scene *scenes = kn_alloc(sizeof *scenes);
    KnModelFile file;
    int failures = 0;
    (void)state;
    assert_ok(kn_model_open(&file, NULL, test_path("model")));
    int count = make_long_scene(scenes, &file);
    make_alone(scenes, count, &file);
    static const KnParallelConfig layouts[] = {
        {.data = 1, .shard = 2, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = 3},
        {.data = 2, .shard = 1, .ulysses = 2, .ring = 1, .tensor = 1, .cfg = 1, .zero = 0},
    };
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        Trial trial = {
            .scenes = scenes, .scene_count = count, .model = file.path, .hash = file.hash, .parallel = layouts[i]};
        failures += try_layout(&trial, &file);
    }
    assert_int_equal(failures, 0);
    clear_scenes(scenes, count);
    free(scenes);
    kn_model_close(&file);
}

static int set_up(void **state)
{
    if (make_test_folder(state))
        return -1;
    make_tiny_model_of(test_path("model"), NULL, 3);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_makes_the_patches_of_one_process),
        cmocka_unit_test(more_clips_than_a_pass_holds_are_shared_in_waves),
    };
    return cmocka_run_group_tests(tests, set_up, remove_test_folder);
}
