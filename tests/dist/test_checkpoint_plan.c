/* The plan of a save: fast for thousands of ranks and tensors, even among the holders of copies, and exact about what
 * tiles; and checkpoints of the former format, made by hand. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "dist/checkpoint_plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

typedef void (*ChooseBox)(KnCheckpointTensor *tensor, int index, int rank, int ranks);

/* The plan of one rank where `choose` says what each holds. */
static int plan_of(KnSavePlan *plan, KnCheckpointTensor *tensors, int count, ChooseBox choose, int rank, int ranks)
{
    KnText *texts = kn_alloc((size_t)ranks * sizeof *texts);
    size_t longest = 0;
    for (int r = 0; r < ranks; r++) {
        for (int i = 0; i < count; i++) {
            kn_checkpoint_whole(&tensors[i]);
            choose(&tensors[i], i, r, ranks);
        }
        kn_save_plan_tell(tensors, count, &texts[r]);
        longest = texts[r].length > longest ? texts[r].length : longest;
    }
    unsigned char *told = kn_alloc(longest * (size_t)ranks);
    for (int r = 0; r < ranks; r++) {
        memcpy(told + (size_t)r * longest, texts[r].bytes, texts[r].length);
        kn_text_clear(&texts[r]);
    }
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    int code = kn_save_plan_make(plan, tensors, count, told, longest, rank, ranks);
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (count > 1000)
        print_message("%d ranks x %d tensors planned in %.2f s\n", ranks, count,
                      (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec));
    free(told);
    free(texts);
    return code;
}

static KnCheckpointTensor *make_tensors(int count, char (*names)[32])
{
    KnCheckpointTensor *tensors = kn_alloc((size_t)count * sizeof *tensors);
    for (int i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "tensor.%d", i);
        tensors[i] = (KnCheckpointTensor){
            .name = names[i], .type = KN_SAFETENSORS_F32, .dims = 2, .shape = {4096 + 64 * (i % 7), 1024}};
    }
    return tensors;
}

/* Every rank a piece of every tensor, two ranks the same: rows of one of four column slices. */
static void rows_of_column_slices(KnCheckpointTensor *tensor, int index, int rank, int ranks)
{
    (void)index;
    int64_t pieces = ranks / 2 / 4, piece = rank / 2 / 4, rows = tensor->shape[0];
    tensor->start[0] = rows * piece / pieces;
    tensor->count[0] = rows * (piece + 1) / pieces - tensor->start[0];
    tensor->start[1] = rank / 2 % 4 * 256;
    tensor->count[1] = 256;
}

static void thousands_of_ranks_and_tensors_take_seconds(void **state)
{
    (void)state;
    enum { RANKS = 2048, TENSORS = 2000 };
    static char names[TENSORS][32];
    KnCheckpointTensor *tensors = make_tensors(TENSORS, names);
    KnSavePlan plan = {0};
    struct timespec begin, end; /* of this thread alone: the machine may be busy */
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    assert_int_equal(plan_of(&plan, tensors, TENSORS, rows_of_column_slices, 0, RANKS), KN_OK);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    assert_true(end.tv_sec - begin.tv_sec < 20);
    int64_t slices = 0;
    for (int i = 0; i < TENSORS; i++)
        slices += plan.entries[i].slice_count;
    assert_int_equal(slices, (int64_t)TENSORS * RANKS / 2);
    kn_save_plan_clear(&plan);
    free(tensors);
}

static void whole_everywhere(KnCheckpointTensor *tensor, int index, int rank, int ranks)
{
    (void)tensor, (void)index, (void)rank, (void)ranks;
}

static void copies_are_spread_evenly_and_written_once(void **state)
{
    (void)state;
    enum { RANKS = 5, TENSORS = 60 };
    static char names[TENSORS][32];
    KnCheckpointTensor *tensors = make_tensors(TENSORS, names);
    int64_t bytes[RANKS] = {0}, total = 0;
    int writers[TENSORS] = {0};
    for (int rank = 0; rank < RANKS; rank++) {
        KnSavePlan plan = {0};
        assert_int_equal(plan_of(&plan, tensors, TENSORS, whole_everywhere, rank, RANKS), KN_OK);
        for (int i = 0; i < TENSORS; i++)
            if (plan.mine[i]) {
                bytes[rank] += tensors[i].shape[0] * 1024 * 4;
                writers[i]++;
            }
        total += bytes[rank];
        kn_save_plan_clear(&plan);
    }
    for (int i = 0; i < TENSORS; i++)
        assert_int_equal(writers[i], 1);
    for (int rank = 0; rank < RANKS; rank++)
        assert_true(llabs(bytes[rank] - total / RANKS) < total / RANKS / 20);
    free(tensors);
}

/* ---- measures against counting every element ---- */

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 16;
}

static void a_measure_says_what_counting_every_element_says(void **state)
{
    (void)state;
    enum { SIDE = 3, ELEMENTS = SIDE * SIDE * SIDE };
    uint32_t random = 1;
    int tilings = 0;
    KnBox whole = {.dims = 3, .count = {SIDE, SIDE, SIDE}};
    for (int trial = 0; trial < 20000; trial++) {
        int covered[ELEMENTS] = {0}, exact = 1;
        uint64_t measure = 0;
        for (int n = 1 + (int)(next_random(&random) % 3); n > 0; n--) {
            KnBox box = {.dims = 3};
            for (int d = 0; d < 3; d++) {
                int full = next_random(&random) % 3 > 0;
                box.start[d] = full ? 0 : next_random(&random) % SIDE;
                box.count[d] = full ? SIDE : 1 + next_random(&random) % (uint32_t)(SIDE - box.start[d]);
            }
            measure = kn_box_measure(measure, &box);
            for (int e = 0; e < ELEMENTS; e++) {
                int at[3] = {e / SIDE / SIDE, e / SIDE % SIDE, e % SIDE}, inside = 1;
                for (int d = 0; d < 3; d++)
                    inside &= at[d] >= box.start[d] && at[d] < box.start[d] + box.count[d];
                covered[e] += inside;
            }
        }
        for (int e = 0; e < ELEMENTS; e++)
            exact &= covered[e] == 1;
        assert_int_equal(measure == kn_box_measure(0, &whole), exact);
        tilings += exact;
    }
    assert_true(tilings > 500 && tilings < 19500);
}

/* ---- version 1 ---- */

static void put(const char *folder, const char *name, const void *bytes, size_t size, char hex[KN_SHA256_HEX_BYTES])
{
    char *path = kn_path_join(folder, name);
    assert_int_equal(kn_file_write(path, bytes, size), KN_OK);
    kn_sha256_hex(bytes, size, hex);
    free(path);
}

/* A safetensors file with w [rows, 2], whose values count on from `first`, and, in the first, the scalar s. */
static void put_part(const char *folder, const char *name, int rows, float first, char hex[KN_SHA256_HEX_BYTES],
                     size_t *size)
{
    char file[512], header[256], scalar[96] = "";
    if (first == 0)
        snprintf(scalar, sizeof scalar, ",\"s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[%d,%d]}", rows * 8,
                 rows * 8 + 8);
    int length =
        snprintf(header, sizeof header, "{\"w\":{\"dtype\":\"F32\",\"shape\":[%d,2],\"data_offsets\":[0,%d]}%s}", rows,
                 rows * 8, scalar);
    uint64_t announced = (uint64_t)length;
    memcpy(file, &announced, 8);
    memcpy(file + 8, header, (size_t)length);
    *size = 8 + (size_t)length;
    for (int i = 0; i < 2 * rows; i++, *size += 4)
        memcpy(file + *size, &(float){first + (float)i}, 4);
    if (*scalar) {
        memcpy(file + *size, &(int64_t){77}, 8);
        *size += 8;
    }
    put(folder, name, file, *size, hex);
}

static void checkpoints_of_version_1_are_read(void **state)
{
    (void)state;
    char folder[] = "/tmp/kinora-old-XXXXXX", hex[2][KN_SHA256_HEX_BYTES], manifest_hex[KN_SHA256_HEX_BYTES];
    size_t sizes[2];
    assert_non_null(mkdtemp(folder));
    put_part(folder, "rank-00000.safetensors", 2, 0, hex[0], &sizes[0]);
    put_part(folder, "rank-00001.safetensors", 3, 4, hex[1], &sizes[1]);
    char *manifest = kn_format(
        "{\n \"format\": \"kinora-checkpoint\",\n \"version\": 1,\n \"tool\": \"kinora 0.1.0\",\n \"step\": 40,\n"
        " \"config\": \"\",\n \"model\": {},\n \"mesh\": {\"data\": 2},\n \"data\": {\"updates\": 40},\n"
        " \"files\": [{\"name\": \"rank-00000.safetensors\", \"bytes\": %zu, \"sha256\": \"%s\"},\n"
        "  {\"name\": \"rank-00001.safetensors\", \"bytes\": %zu, \"sha256\": \"%s\"}],\n"
        " \"tensors\": [{\"name\": \"w\", \"type\": \"F32\", \"shape\": [5, 2], \"slices\": [\n"
        "   {\"file\": 0, \"start\": 0, \"count\": 2}, {\"file\": 1, \"start\": 2, \"count\": 3}]},\n"
        "  {\"name\": \"s\", \"type\": \"I64\", \"shape\": [], \"slices\": [{\"file\": 0, \"start\": 0, \"count\": "
        "1}]}]"
        "\n}",
        sizes[0], hex[0], sizes[1], hex[1]);
    put(folder, "manifest.json", manifest, strlen(manifest), manifest_hex);
    char *line = kn_format("%s  manifest.json\n", manifest_hex), unused[KN_SHA256_HEX_BYTES];
    put(folder, "manifest.json.sha256", line, strlen(line), unused);

    KnCheckpoint *checkpoint;
    assert_int_equal(kn_checkpoint_open(&checkpoint, folder, KN_CHECK_HASHES), KN_OK);
    assert_int_equal(kn_checkpoint_meta(checkpoint)->step, 40);
    float column[3];
    int64_t scalar = 0;
    KnCheckpointTensor wanted[2] = {*kn_checkpoint_find(checkpoint, "w"), *kn_checkpoint_find(checkpoint, "s")};
    wanted[0].start[0] = 1; /* the second column of rows 1 to 3, out of both files */
    wanted[0].count[0] = 3;
    wanted[0].start[1] = wanted[0].count[1] = 1;
    wanted[0].data = column;
    wanted[1].data = &scalar;
    assert_int_equal(kn_checkpoint_load(checkpoint, wanted, 2), KN_OK);
    for (int i = 0; i < 3; i++)
        assert_true(column[i] == (float)(2 * (i + 1) + 1));
    assert_int_equal(scalar, 77);
    kn_checkpoint_close(checkpoint);
    free(line);
    free(manifest);
    assert_int_equal(kn_remove_tree(folder), KN_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thousands_of_ranks_and_tensors_take_seconds),
        cmocka_unit_test(copies_are_spread_evenly_and_written_once),
        cmocka_unit_test(a_measure_says_what_counting_every_element_says),
        cmocka_unit_test(checkpoints_of_version_1_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
