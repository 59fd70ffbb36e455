/* Labels: slow */
/* Sampling on the CUDA backend, whose plugin is linked to libraries that need no GPU (tests/emulated), by `mpirun -n K`
 * of this program (mpirun.h): alone and with layouts of two and four ranks, over the emulated NCCL, it makes the
 * patches that one process makes on the CPU, within 1e-5. With a GPU at hand, `test_sampler_device --gpu` compares that
 * one, by kinora-cuda.so, within 1e-4, since its sums have another order. */
#include "built_path.h"
#include "dist/mpirun.h"
#include "infer/sampler_scenes.h"

#include "core/graph/devices.h"
#include "infer/workers.h"

static double bound = 1e-5;

static double run_scene(const Scene *scene, KnSampler *sampler)
{
    KnSampleClip clips[8];
    double worst = 0;
    for (int64_t i = 0; i < scene->count; i++) {
        clips[i] = scene->clips[i];
        clips[i].patches = kn_alloc((size_t)scene->values[i] * sizeof(float));
    }
    assert_ok(kn_sampler_run(sampler, &scene->settings, clips, scene->count, NULL, NULL));
    for (int64_t i = 0; i < scene->count; i++) {
        worst = fmax(worst, distance(clips[i].patches, scene->clips[i].patches, scene->values[i]));
        free(clips[i].patches);
    }
    return worst;
}

static double sample_on_device(KnComm *comm, const char *mesh, const Scene *scenes, int count)
{
    KnWorkers workers;
    KnModelFile file = {0};
    KnSampler *sampler;
    double worst = 0;
    assert_ok(kn_workers_create(&workers, mesh, 1, comm));
    assert_ok(kn_workers_open_model(&workers, getenv("KN_TEST_MODEL"), "cuda", &file));
    assert_string_equal(workers.backend->name, "cuda");
    const KnLayout *layout = kn_workers_layout(&workers);
    assert_ok(kn_sampler_create(&sampler, &file.model, &file.weights, layout, workers.backend));
    for (int i = 0; i < count; i++)
        worst = fmax(worst, run_scene(&scenes[i], sampler));
    kn_sampler_destroy(sampler);
    kn_workers_destroy(&workers, &file);
    return worst;
}

/* The emulated device takes its time. */
static int make_small_scene(Scene *scene, const KnModelFile *file)
{
    *scene = (Scene){.settings = {.steps = 2, .guidance = 3, .shift = 3, .dtype = KN_F32}};
    add_clip(scene, file, "a red circle moves left", 2, 12, 20);
    add_clip(scene, file, "a blue square stays still", 4, 12, 4);
    give_patches(scene, 4);
    scene->clips[1].negative = "a red circle";
    return 1;
}

static int run_meshes(KnComm *comm, const char *const *meshes, int mesh_count)
{
    Scene *scenes = kn_alloc(2 * sizeof *scenes);
    KnModelFile file;
    int wrong = 0;
    assert_ok(kn_model_open(&file, NULL, getenv("KN_TEST_MODEL")));
    int count = comm->ranks == 1 ? make_scenes(scenes, &file) : make_small_scene(scenes, &file);
    make_alone(scenes, count, &file);
    for (int i = 0; i < mesh_count; i++) {
        double worst = sample_on_device(comm, meshes[i], scenes, count);
        wrong += !(worst <= bound);
        printf("rank %d of mesh %s: %.1e%s\n", comm->rank, meshes[i] ? meshes[i] : "none", worst,
               worst <= bound ? "" : " WRONG");
    }
    clear_scenes(scenes, count);
    free(scenes);
    kn_model_close(&file);
    return wrong ? kn_fail(KN_EFORMAT, "%d meshes are wrong", wrong) : KN_OK;
}

static int alone(KnComm *comm)
{
    return run_meshes(comm, (const char *[]){NULL}, 1);
}

static int on_two(KnComm *comm)
{
    return run_meshes(comm, (const char *[]){"cfg=2", "ulysses=2", "ring=2", "tensor=2", "shard=2"}, 5);
}

static int on_four(KnComm *comm)
{
    return run_meshes(comm, (const char *[]){"ulysses=2,cfg=2"}, 1);
}

static const Scenario scenarios[] = {{"alone", alone}, {"on_two", on_two}, {"on_four", on_four}};

static void one_gpu_makes_the_patches_of_the_cpu(void **state)
{
    (void)state;
    succeeds_on(1, "alone");
}

static void so_do_several_with_every_kind_of_layout(void **state)
{
    (void)state;
    succeeds_on(2, "on_two");
    succeeds_on(4, "on_four");
}

static int set_up(void **state)
{
    if (make_test_folder(state))
        return -1;
    make_tiny_model_of(test_path("model"), NULL, 3);
    setenv("KN_TEST_MODEL", test_path("model"), 1);
    return 0;
}

static int use_plugin(const char *name)
{
    char *plugin = plugin_path(name);
    int built = access(plugin, R_OK) == 0;
    setenv("KINORA_CUDA_PLUGIN", plugin, 1);
    free(plugin);
    if (!built)
        printf("built without CUDA and NCCL: skipped\n");
    return built;
}

static int run_all(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_gpu_makes_the_patches_of_the_cpu),
        cmocka_unit_test(so_do_several_with_every_kind_of_layout),
    };
    return use_plugin("kinora-cuda-emulated.so") ? cmocka_run_group_tests(tests, set_up, remove_test_folder) : SKIPPED;
}

static int run_on_gpu(void)
{
    KnComm *comm;
    if (!use_plugin("kinora-cuda.so"))
        return SKIPPED;
    bound = 1e-4;
    assert_int_equal(set_up(NULL), 0);
    assert_ok(kn_comm_self_open(&comm));
    int code = kn_comm_close(comm, alone(comm));
    remove_test_folder(NULL);
    printf("%s\n", code < 0 ? kn_error_message() : "the GPU agrees with the CPU");
    return code < 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--gpu") == 0)
        return run_on_gpu();
    return mpirun_main(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, run_all);
}
