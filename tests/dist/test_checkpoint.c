/* Checkpoints: saved by any number of ranks, loaded by any other, every damage caught, never half there. Ranks are
 * threads here (thread_comm.h); test_comm_mpi.c saves and loads under mpirun. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "dist/checkpoint.h"
#include "dist/comm.h"
#include "thread_comm.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- a state to save ---- */

static const KnCheckpointTensor state_tensors[] = {
    {.name = "blocks.0.weight", .type = KN_SAFETENSORS_F32, .dims = 2, .shape = {7, 3}},
    {.name = "blocks.0.bias", .type = KN_SAFETENSORS_BF16, .dims = 1, .shape = {5}},
    {.name = "step", .type = KN_SAFETENSORS_I64, .dims = 0},
    {.name = "optimizer.m", .type = KN_SAFETENSORS_F32, .dims = 3, .shape = {9, 2, 2}},
    {.name = "mask", .type = KN_SAFETENSORS_U8, .dims = 2, .shape = {3, 11}},
    {.name = "nothing", .type = KN_SAFETENSORS_F32, .dims = 2, .shape = {0, 4}},
};
enum { TENSORS = sizeof state_tensors / sizeof *state_tensors, LARGEST = 256 };

static size_t elements_of(const KnCheckpointTensor *tensor)
{
    size_t elements = 1;
    for (int d = 0; d < tensor->dims; d++)
        elements *= (size_t)tensor->count[d];
    return elements;
}

/* Byte `index` of a tensor at a step. */
static unsigned char byte_of(int tensor, size_t index, int64_t step)
{
    return (unsigned char)(index * 7 + (size_t)tensor * 31 + (size_t)step * 13 + 5);
}

/* Element `index` of a tensor's box, counted in the whole tensor: by division, as the code under test does not. */
static size_t place_in_whole(const KnCheckpointTensor *tensor, size_t index)
{
    size_t place = 0, stride = 1;
    for (int d = tensor->dims - 1; d >= 0; d--) {
        place += ((size_t)tensor->start[d] + index % (size_t)tensor->count[d]) * stride;
        index /= (size_t)tensor->count[d];
        stride *= (size_t)tensor->shape[d];
    }
    return place;
}

static unsigned char expected_byte(const KnCheckpointTensor *tensor, int number, size_t byte, int64_t step)
{
    size_t size = kn_safetensors_type_bytes(tensor->type);
    return byte_of(number, place_in_whole(tensor, byte / size) * size + byte % size, step);
}

/* How the ranks hold a tensor: COLUMNS cut the last dimension, GRID two groups of ranks cut the last and each its rows,
 * COPIES two ranks hold the same rows. */
typedef enum Layout { WHOLE, ROWS, MIXED, COLUMNS, GRID, COPIES, LAYOUTS } Layout;

typedef struct SaveCase {
    const char *run_dir;
    int64_t step, keep_last, keep_every;
    Layout layout;
    int odd_rank; /* this rank saves a list of its own; -1: none */
    int gap;      /* leaves out a row */
    int overlap;  /* the first box is longer by a row than it should be */
    int poison;   /* a value that is not finite, which is refused */
} SaveCase;

/* Part `index` of `parts` of a dimension: unevenly, and some get none. */
static void cut(KnCheckpointTensor *tensor, int dimension, int64_t index, int64_t parts)
{
    int64_t size = tensor->shape[dimension];
    tensor->start[dimension] = size * index * index / (parts * parts);
    tensor->count[dimension] = size * (index + 1) * (index + 1) / (parts * parts) - tensor->start[dimension];
}

static void choose_box(KnCheckpointTensor *tensor, int index, const SaveCase *what, const KnComm *comm)
{
    int64_t ranks = comm->ranks, rank = (comm->rank + index) % ranks;
    kn_checkpoint_whole(tensor);
    if (what->layout == WHOLE || tensor->dims == 0 || (what->layout == MIXED && index % 2))
        return;
    if (what->layout == COPIES) {
        cut(tensor, 0, rank / 2, (ranks + 1) / 2);
    } else if (what->layout == COLUMNS) {
        cut(tensor, tensor->dims - 1, rank, ranks);
    } else if (what->layout == GRID && ranks % 2 == 0 && tensor->dims > 1) {
        cut(tensor, tensor->dims - 1, rank % 2, 2);
        cut(tensor, 0, rank / 2, ranks / 2);
    } else {
        cut(tensor, 0, rank, ranks);
    }
    if (what->gap && index == 0 && tensor->count[0] > 1)
        tensor->count[0]--;
    if (what->overlap && index == 0 && tensor->start[0] == 0 && tensor->count[0] < tensor->shape[0])
        tensor->count[0]++;
}

static int save_on_rank(KnComm *comm, void *argument)
{
    const SaveCase *what = argument;
    KnCheckpointTensor tensors[TENSORS];
    unsigned char bytes[TENSORS][LARGEST];
    for (int i = 0; i < TENSORS; i++) {
        tensors[i] = state_tensors[i];
        choose_box(&tensors[i], i, what, comm);
        size_t size = kn_safetensors_type_bytes(tensors[i].type);
        for (size_t k = 0; k < elements_of(&tensors[i]) * size; k++)
            bytes[i][k] = expected_byte(&tensors[i], i, k, what->step);
        tensors[i].data = bytes[i];
    }
    if (what->poison)
        memcpy(bytes[0], &(float){INFINITY}, sizeof(float));
    if (what->odd_rank == comm->rank)
        tensors[0].name = "blocks.1.weight";
    KnCheckpointSave save = {.run_dir = what->run_dir,
                             .meta = {.step = what->step,
                                      .config = "train:\n  steps: 100 # \"quoted\"\n",
                                      .model_json = "{\"hidden\": 128}",
                                      .data_json = "{\"epoch\": 3, \"next\": [1, 2]}"},
                             .tensors = tensors,
                             .count = TENSORS,
                             .keep_last = what->keep_last,
                             .keep_every = what->keep_every,
                             .refuse_not_finite = what->poison};
    return kn_checkpoint_save(comm, &save);
}

static int save_state(const char *run_dir, int ranks, int64_t step, Layout layout)
{
    SaveCase what = {.run_dir = run_dir, .step = step, .layout = layout, .odd_rank = -1};
    return thread_ranks_run(ranks, save_on_rank, &what);
}

/* One reader's boxes of all tensors, of rows or of columns. */
static void check_boxes(const KnCheckpoint *checkpoint, int reader, int readers, int columns, int64_t step)
{
    KnCheckpointTensor tensors[TENSORS];
    unsigned char bytes[TENSORS][LARGEST];
    for (int i = 0; i < TENSORS; i++) {
        tensors[i] = state_tensors[i];
        kn_checkpoint_whole(&tensors[i]);
        if (tensors[i].dims)
            cut(&tensors[i], columns ? tensors[i].dims - 1 : 0, reader, readers);
        tensors[i].data = bytes[i];
    }
    assert_int_equal(kn_checkpoint_load(checkpoint, tensors, TENSORS), KN_OK);
    for (int i = 0; i < TENSORS; i++)
        for (size_t k = 0; k < elements_of(&tensors[i]) * kn_safetensors_type_bytes(tensors[i].type); k++)
            assert_int_equal(bytes[i][k], expected_byte(&tensors[i], i, k, step));
}

/* Loads every tensor by `readers` and compares all bytes. */
static void check_state(const char *path, int readers, int64_t step)
{
    KnCheckpoint *checkpoint;
    assert_int_equal(kn_checkpoint_open(&checkpoint, path, KN_CHECK_HASHES), KN_OK);
    assert_int_equal(kn_checkpoint_meta(checkpoint)->step, step);
    assert_int_equal(kn_checkpoint_count(checkpoint), TENSORS);
    for (int reader = 0; reader < readers; reader++)
        for (int columns = 0; columns < 2; columns++)
            check_boxes(checkpoint, reader, readers, columns, step);
    kn_checkpoint_close(checkpoint);
}

/* ---- folders ---- */

static char root[4096]; /* everything is written below it */

static char *new_run(void)
{
    static int number;
    return kn_format("%s/run-%d", root, number++);
}

static char *step_path(const char *run_dir, int64_t step)
{
    return kn_format("%s/checkpoints/step-%08lld", run_dir, (long long)step);
}

static void write_raw(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void write_manifest(const char *path, const char *bytes, size_t size)
{
    char *manifest = kn_format("%s/manifest.json", path), *hash = kn_format("%s.sha256", manifest);
    char hex[KN_SHA256_HEX_BYTES];
    kn_sha256_hex(bytes, size, hex);
    char *line = kn_format("%s  manifest.json\n", hex);
    write_raw(manifest, bytes, size);
    write_raw(hash, line, strlen(line));
    free(line);
    free(hash);
    free(manifest);
}

static int open_code(const char *path)
{
    KnCheckpoint *checkpoint;
    int code = kn_checkpoint_open(&checkpoint, path, KN_CHECK_HASHES);
    kn_checkpoint_close(checkpoint);
    return code;
}

static void assert_sentence(const char *part)
{
    if (!strstr(kn_error_message(), part))
        fail_msg("'%s' is not in: %s", part, kn_error_message());
}

/* ---- saving and loading ---- */

static void every_layout_of_writers_loads_on_every_number_of_readers(void **state)
{
    (void)state;
    for (int writers = 1; writers <= 5; writers++)
        for (int layout = WHOLE; layout < LAYOUTS; layout++) {
            char *run = new_run(), *path = step_path(run, 7);
            assert_int_equal(save_state(run, writers, 7, (Layout)layout), KN_OK);
            for (int readers = 1; readers <= 3; readers++)
                check_state(path, readers, 7);
            free(path);
            free(run);
        }
}

static void metadata_comes_back(void **state)
{
    (void)state;
    char *run = new_run(), *path = step_path(run, 12000);
    KnCheckpoint *checkpoint;
    assert_int_equal(save_state(run, 2, 12000, WHOLE), KN_OK);
    assert_int_equal(kn_checkpoint_open(&checkpoint, path, KN_CHECK_SIZES), KN_OK);
    const KnCheckpointMeta *meta = kn_checkpoint_meta(checkpoint);
    assert_int_equal(meta->step, 12000);
    assert_string_equal(meta->config, "train:\n  steps: 100 # \"quoted\"\n");
    assert_string_equal(meta->model_json, "{\"hidden\":128}");
    assert_string_equal(meta->data_json, "{\"epoch\":3,\"next\":[1,2]}");
    assert_string_equal(meta->mesh_json, "{}");
    assert_int_equal(kn_checkpoint_ranks(checkpoint), 2);
    assert_string_equal(kn_checkpoint_tool(checkpoint), "kinora " KINORA_VERSION);
    assert_int_equal(kn_checkpoint_find(checkpoint, "optimizer.m")->shape[0], 9);
    assert_null(kn_checkpoint_find(checkpoint, "optimizer.v"));
    kn_checkpoint_close(checkpoint);
    free(path);
    free(run);
}

static void whole_tensors_are_spread_by_bytes(void **state)
{
    (void)state;
    char *run = new_run(), *path = step_path(run, 1);
    int64_t smallest = INT64_MAX, largest = 0;
    assert_int_equal(save_state(run, 2, 1, WHOLE), KN_OK);
    for (int rank = 0; rank < 2; rank++) {
        char *file = kn_format("%s/rank-%05d.safetensors", path, rank);
        KnSafetensorsSet *set;
        int64_t bytes = 0;
        assert_int_equal(kn_safetensors_open(&set, file), KN_OK);
        for (int i = 0; i < kn_safetensors_count(set); i++)
            bytes += (int64_t)kn_safetensor_bytes(kn_safetensors_at(set, i));
        smallest = bytes < smallest ? bytes : smallest;
        largest = bytes > largest ? bytes : largest;
        kn_safetensors_close(set);
        free(file);
    }
    assert_int_equal(smallest + largest, 7 * 3 * 4 + 5 * 2 + 8 + 9 * 4 * 4 + 33);
    assert_true(largest <= 9 * 4 * 4); /* the largest tensor alone */
    free(path);
    free(run);
}

static void the_same_state_gives_the_same_bytes(void **state)
{
    (void)state;
    static const char *const files[] = {"manifest.json", "manifest.json.sha256", "rank-00000.safetensors",
                                        "rank-00001.safetensors"};
    char *run_a = new_run(), *run_b = new_run();
    assert_int_equal(save_state(run_a, 2, 5, MIXED), KN_OK);
    assert_int_equal(save_state(run_b, 2, 5, MIXED), KN_OK);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char hex[2][KN_SHA256_HEX_BYTES];
        char *a = kn_format("%s/checkpoints/step-00000005/%s", run_a, files[i]);
        char *b = kn_format("%s/checkpoints/step-00000005/%s", run_b, files[i]);
        assert_int_equal(kn_sha256_file(a, hex[0]), KN_OK);
        assert_int_equal(kn_sha256_file(b, hex[1]), KN_OK);
        assert_string_equal(hex[0], hex[1]);
        free(a);
        free(b);
    }
    free(run_a);
    free(run_b);
}

static void another_architecture_names_the_first_differing_tensor(void **state)
{
    (void)state;
    char *run = new_run(), *path = step_path(run, 1);
    unsigned char bytes[LARGEST], untouched[LARGEST];
    memset(bytes, 0xAB, sizeof bytes);
    memset(untouched, 0xAB, sizeof untouched);
    KnCheckpoint *checkpoint;
    assert_int_equal(save_state(run, 1, 1, WHOLE), KN_OK);
    assert_int_equal(kn_checkpoint_open(&checkpoint, path, KN_CHECK_SIZES), KN_OK);
    KnCheckpointTensor wanted[3] = {state_tensors[0], state_tensors[1], state_tensors[3]};
    for (int i = 0; i < 3; i++) {
        wanted[i].data = bytes;
        kn_checkpoint_whole(&wanted[i]);
    }
    wanted[1].shape[0] = wanted[1].count[0] = 6;
    wanted[2].name = "blocks.9.weight";
    assert_int_equal(kn_checkpoint_load(checkpoint, wanted, 3), KN_EINPUT);
    assert_sentence("tensor 'blocks.0.bias' is BF16 [5] and should be BF16 [6]");
    wanted[1].shape[0] = wanted[1].count[0] = 5;
    assert_int_equal(kn_checkpoint_load(checkpoint, wanted, 3), KN_EINPUT);
    assert_sentence("no tensor 'blocks.9.weight', which should be F32 [9, 2, 2]");
    wanted[0].type = KN_SAFETENSORS_I32;
    assert_int_equal(kn_checkpoint_load(checkpoint, wanted, 3), KN_EINPUT);
    assert_sentence("tensor 'blocks.0.weight' is F32 [7, 3] and should be I32 [7, 3]");
    assert_memory_equal(bytes, untouched, sizeof bytes);
    kn_checkpoint_close(checkpoint);
    free(path);
    free(run);
}

static void boxes_that_do_not_tile_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        Layout layout;
        int ranks, gap, overlap;
        const char *sentence;
    } cases[] = {
        {ROWS, 2, 1, 0, "tensor 'blocks.0.weight' cannot be saved: the ranks hold 18 of its 21 elements"},
        {ROWS, 2, 0, 1, "tensor 'blocks.0.weight' cannot be saved: [0:2, 0:3] of rank 0 and [1:7, 0:3] of rank 1 over"},
        {GRID, 4, 0, 1, "tensor 'blocks.0.weight' cannot be saved: [0:2, 0:3] of rank 1 and [1:7, 0:3] of rank 3"},
        {COPIES, 4, 0, 1, "tensor 'blocks.0.weight' cannot be saved: [0:2, 0:3] of rank 0 and [1:7, 0:3] of rank 2"},
    };
    char *run = new_run();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        SaveCase what = {.run_dir = run, .step = 1, .odd_rank = -1};
        what.layout = cases[i].layout;
        what.gap = cases[i].gap;
        what.overlap = cases[i].overlap;
        assert_int_equal(thread_ranks_run(cases[i].ranks, save_on_rank, &what), KN_EINPUT);
        assert_sentence(cases[i].sentence);
    }
    SaveCase what = {.run_dir = run, .step = 1, .odd_rank = 1};
    assert_int_equal(thread_ranks_run(3, save_on_rank, &what), KN_EPEER);
    assert_sentence("rank 0 and rank 1 save different tensors");
    free(run);
}

static void what_is_not_finite_is_refused_where_asked(void **state)
{
    (void)state;
    char *run = new_run(), *path = step_path(run, 1);
    SaveCase what = {.run_dir = run, .step = 1, .odd_rank = -1, .poison = 1};
    assert_int_equal(thread_ranks_run(2, save_on_rank, &what), KN_EFORMAT);
    assert_sentence("tensor 'blocks.0.weight' has a value that is not finite");
    assert_false(kn_file_exists(path));
    free(path);
    free(run);
}

/* ---- damage ---- */

static void for_each_file(const char *path, void (*act)(const char *folder, const char *file))
{
    KnStringList names = {0};
    assert_int_equal(kn_list_directory(path, &names), KN_OK);
    assert_int_equal(names.count, 4); /* two parts, manifest, its hash */
    for (int i = 0; i < names.count; i++) {
        char *file = kn_path_join(path, names.items[i]);
        act(path, file);
        free(file);
    }
    assert_int_equal(open_code(path), KN_OK); /* all is as it was */
    kn_string_list_clear(&names);
}

static void flip_every_byte(const char *folder, const char *file)
{
    char *bytes;
    size_t size;
    assert_int_equal(kn_file_read(file, &bytes, &size), KN_OK);
    int handle = open(file, O_WRONLY);
    for (size_t i = 0; i < size; i++) {
        char flipped = (char)(bytes[i] ^ (1 << i % 8));
        assert_int_equal(pwrite(handle, &flipped, 1, (off_t)i), 1);
        if (open_code(folder) == KN_OK)
            fail_msg("byte %zu of %s flipped and nobody noticed", i, file);
        assert_int_equal(pwrite(handle, &bytes[i], 1, (off_t)i), 1);
    }
    close(handle);
    free(bytes);
}

static void cut_and_lengthen(const char *folder, const char *file)
{
    char *bytes;
    size_t size;
    assert_int_equal(kn_file_read(file, &bytes, &size), KN_OK);
    for (size_t length = 0; length < size; length += 1 + size / 50) {
        write_raw(file, bytes, length);
        assert_int_not_equal(open_code(folder), KN_OK);
    }
    bytes = kn_realloc(bytes, size + 1);
    bytes[size] = '\n';
    write_raw(file, bytes, size + 1);
    assert_int_not_equal(open_code(folder), KN_OK);
    assert_int_equal(unlink(file), 0);
    assert_int_not_equal(open_code(folder), KN_OK);
    assert_int_equal(mkdir(file, 0777), 0);
    assert_int_not_equal(open_code(folder), KN_OK);
    assert_int_equal(rmdir(file), 0);
    write_raw(file, bytes, size);
    free(bytes);
}

/* Random bytes, and the first file of the checkpoint itself. */
static void replace_by_foreign(const char *folder, const char *file)
{
    char *bytes, *other, noise[700], *other_path = kn_path_join(folder, "rank-00000.safetensors");
    size_t size, other_size;
    assert_int_equal(kn_file_read(file, &bytes, &size), KN_OK);
    assert_int_equal(kn_file_read(other_path, &other, &other_size), KN_OK);
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (char)(i * i * 31 + i);
    write_raw(file, noise, sizeof noise);
    assert_int_not_equal(open_code(folder), KN_OK);
    if (strcmp(file, other_path) != 0) {
        write_raw(file, other, other_size);
        assert_int_not_equal(open_code(folder), KN_OK);
    }
    write_raw(file, bytes, size);
    free(other_path);
    free(other);
    free(bytes);
}

static void every_damage_is_caught(void (*act)(const char *folder, const char *file))
{
    char *run = new_run(), *path = step_path(run, 3);
    assert_int_equal(save_state(run, 2, 3, MIXED), KN_OK);
    for_each_file(path, act);
    free(path);
    free(run);
}

static void every_flipped_byte_is_caught(void **state)
{
    (void)state;
    every_damage_is_caught(flip_every_byte);
}

static void truncated_lengthened_and_missing_files_are_caught(void **state)
{
    (void)state;
    every_damage_is_caught(cut_and_lengthen);
}

static void foreign_files_are_caught(void **state)
{
    (void)state;
    every_damage_is_caught(replace_by_foreign);
    char *folder = new_run();
    assert_int_equal(kn_make_directories(folder), KN_OK);
    assert_int_equal(open_code(folder), KN_EFORMAT);
    assert_sentence("is not a checkpoint");
    assert_int_equal(open_code("/nowhere/at/all"), KN_EFORMAT);
    assert_sentence("/nowhere/at/all is not a checkpoint");
    free(folder);
}

/* A manifest that lies with a right hash: a sentence, never a crash. */
static void a_lying_manifest_is_refused(void **state)
{
    static const struct {
        const char *from, *to, *sentence;
    } lies[] = {
        {"kinora-checkpoint", "other-checkpoint!", "its format is not"},
        {"\"version\": 2", "\"version\": 9", "another version"},
        {"\"step\": 3", "\"step\":-3", "'step' is not a number"},
        {"rank-00000.safe", "../a/00000.safe", "impossible name"},
        {"\"type\": \"BF16\"", "\"type\": \"BF17\"", "unknown tensor type 'BF17'"},
        {"[1, 0, 0, 7, 3]", "[1, 1, 0, 7, 3]", "do not fit together"},
        {"[1, 0, 0, 7, 3]", "[1, 0, 0, 6, 3]", "the slices of tensor 'blocks.0.weight' hold 18 elements and it has 21"},
        {"[1, 0, 0, 7, 3]", "[1, 0, 0, 4, 3], [1, 3, 0, 3, 3]", "do not fit together"},
        {"[1, 0, 0, 7, 3]", "[1, 0, 0, 7, 1], [1, 0, 0, 7, 2]", "do not fit together"},
        {"[1, 0, 0, 7, 3]", "[1, 0, -1, 7, 3]", "do not fit together"},
        {"[1, 0, 0, 7, 3]", "[7, 0, 0, 7, 3]", "do not fit together"},
        {"[1, 0, 0, 7, 3]", "[1, 0, 0, 7]", "a slice is not a list of 5 whole numbers"},
        {"[1, 0, 0, 7, 3]", "[1, 0, 0, 7.5, 3]", "a slice is not a list of 5 whole numbers"},
        {"\"optimizer.m\"", "\"mask\",\"x\":1", "appears twice"},
        {"\"tensors\": [", "\"tensors\": 5,\"t\": [", "'tensors' is not a list"},
        {"\"blocks.0.bias\"", "\"blocks.1.bias\"", "does not hold tensor 'blocks.1.bias'"},
        {"{", "[", "manifest.json:"},
    };
    (void)state;
    char *run = new_run(), *path = step_path(run, 3), *manifest = kn_format("%s/manifest.json", path), *bytes;
    size_t size;
    assert_int_equal(save_state(run, 2, 3, WHOLE), KN_OK);
    assert_int_equal(kn_file_read(manifest, &bytes, &size), KN_OK);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        const char *at = strstr(bytes, lies[i].from);
        assert_non_null(at);
        char *changed = kn_format("%.*s%s%s", (int)(at - bytes), bytes, lies[i].to, at + strlen(lies[i].from));
        write_manifest(path, changed, strlen(changed));
        assert_int_equal(open_code(path), KN_EFORMAT);
        assert_sentence(lies[i].sentence);
        free(changed);
    }
    for (size_t i = 0; i < size; i++) { /* any byte, with the hash made right: opens or says why */
        char kept = bytes[i];
        bytes[i] = "09[]{}\",-:eE. n\0"[i * 7 % 16];
        write_manifest(path, bytes, size);
        open_code(path);
        bytes[i] = kept;
    }
    free(bytes);
    free(manifest);
    free(path);
    free(run);
}

/* ---- the newest ---- */

static int newest_on_rank(KnComm *comm, void *argument)
{
    char **path = argument, *mine;
    int code = kn_checkpoint_newest(comm, path[1], &mine);
    if (comm->rank == 0)
        path[0] = mine;
    else
        free(mine);
    return code == KN_END ? kn_fail(KN_END, "none") : code;
}

/* Changes the last byte of a file. */
static void spoil(const char *run, int64_t step, const char *name)
{
    char *path = kn_format("%s/checkpoints/step-%08lld/%s", run, (long long)step, name), *bytes;
    size_t size;
    assert_int_equal(kn_file_read(path, &bytes, &size), KN_OK);
    bytes[size - 1] ^= 1;
    write_raw(path, bytes, size);
    free(bytes);
    free(path);
}

static void the_newest_valid_one_is_found(void **state)
{
    (void)state;
    char *run = new_run(), *found[2] = {NULL, run};
    for (int ranks = 1; ranks <= 3; ranks++)
        assert_int_equal(thread_ranks_run(ranks, newest_on_rank, found), KN_END);
    for (int64_t step = 10; step <= 30; step += 10)
        assert_int_equal(save_state(run, 2, step, WHOLE), KN_OK);
    assert_int_equal(save_state(run, 2, 123456789, WHOLE), KN_OK); /* more digits than the name has zeros */
    static const struct {
        int64_t spoilt, newest;
        const char *file;
    } cases[] = {
        {123456789, 30, "manifest.json"}, {30, 20, "rank-00001.safetensors"}, {20, 10, "rank-00000.safetensors"}};
    char *stranger = kn_format("%s/checkpoints/step-00000099.old", run);
    assert_int_equal(kn_make_directories(stranger), KN_OK);
    free(stranger);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        spoil(run, cases[i].spoilt, cases[i].file);
        char *expected = step_path(run, cases[i].newest);
        for (int ranks = 1; ranks <= 3; ranks++) {
            assert_int_equal(thread_ranks_run(ranks, newest_on_rank, found), KN_OK);
            assert_string_equal(found[0], expected);
            free(found[0]);
        }
        free(expected);
    }
    spoil(run, 10, "manifest.json");
    assert_int_equal(thread_ranks_run(2, newest_on_rank, found), KN_EFORMAT);
    assert_sentence("none of the 4 checkpoints");
    free(run);
}

/* ---- what stays in the folder ---- */

static void assert_entries(const char *run, const char *expected)
{
    KnStringList names = {0};
    char *folder = kn_format("%s/checkpoints", run), text[512] = "";
    assert_int_equal(kn_list_directory(folder, &names), KN_OK);
    for (int i = 0; i < names.count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i ? " " : "", names.items[i]);
    assert_string_equal(text, expected);
    kn_string_list_clear(&names);
    free(folder);
}

static void leftovers_go_with_the_next_save(void **state)
{
    (void)state;
    char *run = new_run(), *path = step_path(run, 5), *left = kn_temporary_path(path), *part;
    assert_int_equal(kn_make_directories(left), KN_OK);
    part = kn_path_join(left, "rank-00000.safetensors");
    write_raw(part, "half", 4);
    assert_int_equal(save_state(run, 2, 6, WHOLE), KN_OK);
    assert_entries(run, "step-00000006");
    free(part);
    free(left);
    free(path);
    free(run);
}

static void only_the_last_and_multiples_are_kept(void **state)
{
    (void)state;
    char *run = new_run();
    SaveCase what = {.run_dir = run, .odd_rank = -1};
    for (what.step = 1; what.step <= 5; what.step++)
        assert_int_equal(thread_ranks_run(2, save_on_rank, &what), KN_OK);
    what.keep_last = 2;
    what.step = 4; /* the run was taken up again from 3; 5 is of its former life */
    assert_int_equal(thread_ranks_run(2, save_on_rank, &what), KN_OK);
    assert_entries(run, "step-00000003 step-00000004 step-00000005");
    what.keep_last = 1;
    what.keep_every = 3;
    for (what.step = 6; what.step <= 8; what.step++)
        assert_int_equal(thread_ranks_run(2, save_on_rank, &what), KN_OK);
    assert_entries(run, "step-00000003 step-00000006 step-00000008");
    free(run);
}

static void a_step_saved_again_replaces_the_older(void **state)
{
    (void)state;
    char *run = new_run(), *path = step_path(run, 8);
    assert_int_equal(save_state(run, 3, 8, ROWS), KN_OK);
    spoil(run, 8, "rank-00000.safetensors");
    assert_int_equal(save_state(run, 2, 8, WHOLE), KN_OK);
    check_state(path, 1, 8);
    assert_entries(run, "step-00000008");
    KnStringList names = {0};
    assert_int_equal(kn_list_directory(path, &names), KN_OK);
    assert_int_equal(names.count, 4); /* nothing of the third rank is left */
    kn_string_list_clear(&names);
    free(path);
    free(run);
}

static void an_unwritable_run_is_a_sentence(void **state)
{
    (void)state;
    char *run = new_run();
    write_raw(run, "a file", 6);
    assert_int_equal(save_state(run, 2, 1, WHOLE), KN_EIO);
    assert_sentence(run);
    free(run);
}

/* One big tensor, so that the second save does not fit. */
static int save_big(KnComm *comm, void *argument)
{
    const SaveCase *what = argument;
    enum { BIG = 300000 };
    KnCheckpointTensor big = {.name = "big", .type = KN_SAFETENSORS_U8, .dims = 1, .shape = {BIG}};
    kn_checkpoint_whole(&big);
    big.data = kn_alloc(BIG);
    KnCheckpointSave save = {.run_dir = what->run_dir, .meta = {.step = what->step}, .tensors = &big, .count = 1};
    int code = kn_checkpoint_save(comm, &save);
    free(big.data);
    return code;
}

static void a_full_disk_leaves_the_former_checkpoint(void **state)
{
    (void)state;
    char *run = new_run(), *former = step_path(run, 1);
    assert_int_equal(kn_make_directories(run), KN_OK);
    if (mount("none", run, "tmpfs", 0, "size=512k") != 0) {
        print_message("SKIPPED: a small file system cannot be mounted here (%s)\n", strerror(errno));
        free(former);
        free(run);
        skip();
    }
    for (int ranks = 1; ranks <= 2; ranks++) {
        SaveCase what = {.run_dir = run, .step = 1};
        assert_int_equal(thread_ranks_run(ranks, save_big, &what), KN_OK);
        what.step = 2;
        int code = thread_ranks_run(ranks, save_big, &what);
        char *sentence = kn_strdup(kn_error_message());
        assert_int_equal(open_code(former), KN_OK);
        assert_entries(run, "step-00000001");
        assert_int_equal(code, KN_EIO);
        assert_non_null(strstr(sentence, "No space left on device"));
        free(sentence);
        char *checkpoints = kn_path_join(run, "checkpoints");
        assert_int_equal(kn_remove_tree(checkpoints), KN_OK);
        free(checkpoints);
    }
    assert_int_equal(umount(run), 0);
    free(former);
    free(run);
}

static void a_checkpoint_describes_itself(void **state)
{
    (void)state;
    char *run = new_run(), *path = step_path(run, 3), *text;
    assert_int_equal(save_state(run, 2, 3, WHOLE), KN_OK);
    assert_int_equal(kn_checkpoint_describe(path, KN_CHECK_HASHES, 0, &text), KN_OK);
    assert_non_null(strstr(text, "step     3, written by kinora " KINORA_VERSION " on 2 ranks"));
    assert_non_null(strstr(text, "tensor   optimizer.m  F32 [9, 2, 2]"));
    assert_non_null(strstr(text, "hashes   all hold"));
    free(text);
    assert_int_equal(kn_checkpoint_describe(path, KN_CHECK_SIZES, 1, &text), KN_OK);
    assert_non_null(strstr(text, "\"verified\": false"));
    assert_non_null(strstr(text, "\"hidden\": 128"));
    free(text);
    spoil(run, 3, "rank-00001.safetensors");
    assert_int_equal(kn_checkpoint_describe(path, KN_CHECK_SIZES, 0, &text), KN_OK);
    free(text);
    assert_int_equal(kn_checkpoint_describe(path, KN_CHECK_HASHES, 0, &text), KN_EFORMAT);
    assert_sentence("rank-00001.safetensors is damaged");
    free(path);
    free(run);
}

int main(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/kinora-checkpoint-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(root))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_of_writers_loads_on_every_number_of_readers),
        cmocka_unit_test(metadata_comes_back),
        cmocka_unit_test(whole_tensors_are_spread_by_bytes),
        cmocka_unit_test(the_same_state_gives_the_same_bytes),
        cmocka_unit_test(another_architecture_names_the_first_differing_tensor),
        cmocka_unit_test(boxes_that_do_not_tile_are_refused_by_name),
        cmocka_unit_test(what_is_not_finite_is_refused_where_asked),
        cmocka_unit_test(every_flipped_byte_is_caught),
        cmocka_unit_test(truncated_lengthened_and_missing_files_are_caught),
        cmocka_unit_test(foreign_files_are_caught),
        cmocka_unit_test(a_lying_manifest_is_refused),
        cmocka_unit_test(the_newest_valid_one_is_found),
        cmocka_unit_test(leftovers_go_with_the_next_save),
        cmocka_unit_test(only_the_last_and_multiples_are_kept),
        cmocka_unit_test(a_step_saved_again_replaces_the_older),
        cmocka_unit_test(an_unwritable_run_is_a_sentence),
        cmocka_unit_test(a_full_disk_leaves_the_former_checkpoint),
        cmocka_unit_test(a_checkpoint_describes_itself),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return kn_remove_tree(root) < 0 || failed;
}
