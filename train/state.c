/* Starting, resuming and saving a run. */
#include "train/state.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/comm.h"
#include "dist/model_file.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* --- What must fit together --------------------------------------------------------------------------------------- */

static int check_data(const KnConfig *c, const KnDataset *dataset)
{
    const KnShardFormat *f = kn_dataset_format(dataset);
    const int64_t *patch = c->model.patch;
    if (f->channels != c->model.channels || memcmp(f->patch, patch, sizeof f->patch) != 0)
        return kn_fail(KN_EINPUT,
                       "the shards hold patches of %lld,%lld,%lld with %lld channels, model.patch and model.channels "
                       "say %lld,%lld,%lld with %lld: change the model or prepare the videos again",
                       (long long)f->patch[0], (long long)f->patch[1], (long long)f->patch[2], (long long)f->channels,
                       (long long)patch[0], (long long)patch[1], (long long)patch[2], (long long)c->model.channels);
    return KN_OK;
}

/* On another host the folders may hold another version. */
static int check_same_data(const KnDataset *dataset, KnComm *comm)
{
    const int64_t mine[2] = {kn_dataset_clip_count(dataset), kn_dataset_tokens(dataset)};
    int64_t(*all)[2] = kn_alloc((size_t)comm->ranks * sizeof *all);
    int code = comm->table->all_gather(comm, mine, all, sizeof mine, "clips and tokens of the data");
    for (int rank = 1; rank < comm->ranks && code == KN_OK; rank++)
        if (memcmp(all[rank], all[0], sizeof mine) != 0)
            code = kn_fail(
                KN_EINPUT,
                "data.shards hold %lld clips of %lld tokens on rank 0, but %lld of %lld on rank %d: give all "
                "ranks the same shards",
                (long long)all[0][0], (long long)all[0][1], (long long)all[rank][0], (long long)all[rank][1], rank);
    free(all);
    return code;
}

static int check_packs(const KnConfig *c, const KnLayout *layout)
{
    int replicas = kn_mesh_replicas(&layout->mesh);
    if (c->train.packs % replicas)
        return kn_fail(KN_EINPUT,
                       "train.packs is %lld, which %d ranks cannot share evenly (parallel.data x parallel.shard): make "
                       "it a multiple of %d",
                       (long long)c->train.packs, replicas, replicas);
    return KN_OK;
}

static double mean_pairs(const KnDataset *dataset)
{
    double pairs = 0, tokens = 0;
    for (int64_t i = 0; i < kn_dataset_clip_count(dataset); i++) {
        double count = (double)kn_dataset_clip(dataset, i)->tokens;
        pairs += count * count;
        tokens += count;
    }
    return tokens > 0 ? pairs / tokens : 0;
}

/* --- The run folder ----------------------------------------------------------------------------------------------- */

static int check_folder_is_free(const KnConfig *c, int resume)
{
    char *metrics = kn_path_join(c->run_dir, "metrics.jsonl");
    int taken = !resume && kn_file_exists(metrics); /* a start that failed before its first step left none */
    free(metrics);
    if (taken)
        return kn_fail(KN_EINPUT, "%s already holds a run: continue it with --resume, or choose another run.dir",
                       c->run_dir);
    return KN_OK;
}

/* The lock may have been waited for: what stands there is looked at once it is held, too. */
static int prepare_folder(KnTrainState *state, const KnConfig *c, int resume)
{
    KN_TRY(check_folder_is_free(c, resume));
    KN_TRY(kn_make_directories(c->run_dir));
    KN_TRY(kn_run_lock(&state->lock, c->run_dir));
    return check_folder_is_free(c, resume);
}

static int write_config(const KnConfig *c)
{
    char *path = kn_path_join(c->run_dir, "config.yaml"), *yaml = kn_config_to_yaml(c);
    int code = kn_file_write(path, yaml, strlen(yaml));
    free(path);
    free(yaml);
    return code;
}

static int open_log(const KnConfig *c, const KnComm *comm)
{
    char *log = kn_format("%s/log-%d.txt", c->run_dir, comm->rank);
    int code = kn_log_set_file(log);
    free(log);
    return code;
}

/* --- Model -------------------------------------------------------------------------------------------------------- */

static int learn_vocabulary(const KnConfig *c, const KnDataset *dataset, KnTokenizer **tokenizer)
{
    const char **captions = NULL;
    int64_t count = kn_loader_captions(dataset, &captions);
    int code = count ? kn_tokenizer_train(captions, count, c->text.vocabulary, tokenizer) : KN_EINPUT;
    free(captions);
    if (!count)
        return kn_fail(
            KN_EINPUT,
            "none of the %lld clips of data.shards has a caption, and model.text.kind is trained: prepare the "
            "videos again with NAME.txt beside each, or with --captions FILE",
            (long long)kn_dataset_clip_count(dataset));
    return code < 0 ? kn_fail_prefix(code, "learning a vocabulary from the captions of data.shards") : code;
}

static int load_tokenizer(const KnCheckpoint *checkpoint, KnTokenizer **tokenizer)
{
    const KnCheckpointTensor *found = kn_checkpoint_find(checkpoint, KN_CHECKPOINT_TOKENIZER);
    if (!found)
        return kn_fail(KN_EFORMAT, "%s holds no tokenizer, but model.text.kind is trained",
                       kn_checkpoint_path(checkpoint));
    KnCheckpointTensor tensor = *found;
    tensor.data = kn_alloc((size_t)tensor.shape[0]);
    int code = kn_checkpoint_load(checkpoint, &tensor, 1);
    if (code == KN_OK)
        code = kn_tokenizer_load(tensor.data, (size_t)tensor.shape[0], kn_checkpoint_path(checkpoint), tokenizer);
    free(tensor.data);
    return code;
}

/* --- Tensors of a checkpoint -------------------------------------------------------------------------------------- */

typedef struct TensorList {
    KnArena *arena;
    KnCheckpointTensor *tensors;
    int count;
} TensorList;

/* What this rank holds of every parameter, as boxes of the whole model's tensors. */
static void list_values(TensorList *list, const KnLayout *layout, const KnParameterValues *values, const char *prefix)
{
    list->tensors = kn_realloc(list->tensors, (size_t)(list->count + layout->part.count) * sizeof *list->tensors);
    for (int i = 0; i < layout->part.count; i++) {
        const KnParameter *whole = kn_parameter_find(&layout->model->parameters, layout->part.list[i].name);
        KnBox box = kn_layout_box(layout, values, i);
        KnCheckpointTensor *tensor = &list->tensors[list->count++];
        *tensor = (KnCheckpointTensor){.name = kn_arena_format(list->arena, "%s%s", prefix, whole->name),
                                       .type = KN_SAFETENSORS_F32,
                                       .dims = whole->dims,
                                       .data = box.data};
        memcpy(tensor->shape, whole->shape, (size_t)whole->dims * sizeof *tensor->shape);
        kn_checkpoint_whole(tensor);
        for (int d = 0; d < 2 && d < whole->dims; d++) {
            tensor->start[d] = box.start[d];
            tensor->count[d] = box.count[d];
        }
    }
}

static void list_fp8(TensorList *list, const KnFp8State *fp8)
{
    list->tensors = kn_realloc(list->tensors, (size_t)(list->count + 1) * sizeof *list->tensors);
    list->tensors[list->count] = (KnCheckpointTensor){.name = KN_CHECKPOINT_FP8,
                                                      .type = KN_SAFETENSORS_F32,
                                                      .dims = 2,
                                                      .shape = {KN_FP8_WINDOW, fp8->sites},
                                                      .data = fp8->largest};
    kn_checkpoint_whole(&list->tensors[list->count++]);
}

static TensorList list_tensors(const KnTrainState *state)
{
    const KnOptimizerState *o = &state->optimizer;
    TensorList list = {.arena = kn_arena_create()};
    list_values(&list, &state->layout, &o->weights, KN_CHECKPOINT_WEIGHTS);
    if (o->average.blocks)
        list_values(&list, &state->layout, &o->average, KN_CHECKPOINT_AVERAGE);
    list_values(&list, &state->layout, &o->moment1, "moment1.");
    list_values(&list, &state->layout, &o->moment2, "moment2.");
    return list;
}

static void free_list(TensorList *list)
{
    kn_arena_destroy(list->arena);
    free(list->tensors);
}

/* What shapes cannot show: the keys by which the weights, moments and averages of the checkpoint are to be read. */
static int check_meaning(const KnConfig *c, const KnCheckpoint *checkpoint)
{
    const char *path = kn_checkpoint_path(checkpoint), *yaml = kn_checkpoint_meta(checkpoint)->config;
    KnConfig saved;
    char *name = kn_format("the configuration in %s", path);
    kn_config_init(&saved);
    int code = yaml ? kn_config_parse(&saved, yaml, name) : KN_OK;
    char *difference = code == KN_OK && yaml ? kn_config_misreads(c, &saved) : NULL;
    if (difference)
        code = kn_fail(KN_EINPUT, "%s when %s was saved: set it back, or start a new run", difference, path);
    else if (code == KN_OK && yaml && c->optimizer.ema > 0 && !(saved.optimizer.ema > 0))
        code = kn_fail(KN_EINPUT, "%s holds no averaged weights, since optimizer.ema was 0: set it to 0 again", path);
    kn_config_clear(&saved);
    free(difference);
    free(name);
    return code;
}

static int64_t get_counter(const json_t *json, const char *key, int64_t otherwise)
{
    const json_t *found = json_object_get(json, key);
    return json_is_integer(found) ? json_integer_value(found) : otherwise;
}

static void load_counters(KnTrainState *state, const KnCheckpointMeta *meta)
{
    json_t *json = json_loads(meta->data_json ? meta->data_json : "{}", 0, NULL);
    const json_t *trend = json_object_get(json, "loss_trend");
    state->step = meta->step;
    state->updates = get_counter(json, "updates", meta->step);
    state->data_step = get_counter(json, "data_step", meta->step);
    state->trend = (KnLossTrend){.count = get_counter(trend, "count", 0),
                                 .mean = json_number_value(json_object_get(trend, "mean")),
                                 .variance = json_number_value(json_object_get(trend, "variance"))};
    json_decref(json);
}

/* Doubles with the 17 digits that bring every bit back. */
static char *counters_to_json(const KnTrainState *state)
{
    return kn_format("{\"updates\": %lld, \"data_step\": %lld, \"loss_trend\": {\"count\": %lld, \"mean\": %.17g, "
                     "\"variance\": %.17g}}",
                     (long long)state->updates, (long long)state->data_step, (long long)state->trend.count,
                     state->trend.mean, state->trend.variance);
}

/* Whether there are magnitudes to load: a run in another precision has saved none, and they begin anew. */
static int expect_fp8(KnTrainState *state, const KnCheckpoint *checkpoint)
{
    const KnCheckpointTensor *found = kn_checkpoint_find(checkpoint, KN_CHECKPOINT_FP8);
    if (!state->fp8.used)
        return 0;
    kn_fp8_state_forget(&state->fp8);
    if (found && found->dims == 2)
        kn_fp8_state_create(&state->fp8, found->shape[1]);
    return found && found->dims == 2;
}

static int load_state(KnTrainState *state, const KnCheckpoint *checkpoint)
{
    TensorList list = list_tensors(state);
    if (expect_fp8(state, checkpoint))
        list_fp8(&list, &state->fp8);
    int code = kn_checkpoint_load(checkpoint, list.tensors, list.count);
    free_list(&list);
    KN_TRY(code);
    load_counters(state, kn_checkpoint_meta(checkpoint));
    return KN_OK;
}

/* Saves, or only reserves the memory for it where `report` is NULL. */
static int save_or_reserve(const KnTrainState *state, const KnConfig *config, KnCheckpointSaver *saver, int wait,
                           KnCheckpointReport *report)
{
    TensorList list = list_tensors(state);
    if (state->fp8.sites)
        list_fp8(&list, &state->fp8);
    size_t bytes = 0;
    const void *tokenizer = state->model.tokenizer ? kn_tokenizer_model(state->model.tokenizer, &bytes) : NULL;
    if (tokenizer) {
        list.tensors = kn_realloc(list.tensors, (size_t)(list.count + 1) * sizeof *list.tensors);
        list.tensors[list.count++] = (KnCheckpointTensor){.name = KN_CHECKPOINT_TOKENIZER,
                                                          .type = KN_SAFETENSORS_U8,
                                                          .dims = 1,
                                                          .shape = {(int64_t)bytes},
                                                          .data = (void *)(uintptr_t)tokenizer};
        kn_checkpoint_whole(&list.tensors[list.count - 1]);
    }
    char *yaml = kn_config_to_yaml(config), *model = kn_model_to_json(&state->model);
    char *mesh = kn_mesh_to_json(&state->layout.mesh);
    char *data = counters_to_json(state);
    KnCheckpointSave save = {
        .run_dir = config->run_dir,
        .meta = {.step = state->step, .config = yaml, .model_json = model, .mesh_json = mesh, .data_json = data},
        .tensors = list.tensors,
        .count = list.count,
        .keep_last = config->train.keep_last,
        .keep_every = config->train.keep_every,
        .refuse_not_finite = 1,
        .wait = wait};
    int code = report ? kn_checkpoint_begin(saver, &save, report) : kn_checkpoint_reserve(saver, &save);
    free(yaml);
    free(model);
    free(mesh);
    free(data);
    free_list(&list);
    return code;
}

int kn_train_state_save(const KnTrainState *state, const KnConfig *config, KnCheckpointSaver *saver, int wait,
                        KnCheckpointReport *report)
{
    return save_or_reserve(state, config, saver, wait, report);
}

int kn_train_state_reserve(const KnTrainState *state, const KnConfig *config, KnCheckpointSaver *saver)
{
    return save_or_reserve(state, config, saver, 0, NULL);
}

/* --- Creating ----------------------------------------------------------------------------------------------------- */

static int create_layout(KnTrainState *state, const KnConfig *c, KnComm *comm)
{
    KnLayoutOptions options = {.parallel = &c->parallel,
                               .whole_matrices = kn_optimizer_whole_matrices(&c->optimizer),
                               .training = 1,
                               .world = comm};
    KN_TRY(kn_layout_create(&state->layout, &state->model, &options));
    return check_packs(c, &state->layout);
}

static int create_model(KnTrainState *state, const KnConfig *c, KnComm *comm, const KnCheckpoint *checkpoint)
{
    KnTokenizer *tokenizer = NULL;
    if (c->text.kind == KN_TEXT_TRAINED && checkpoint)
        KN_TRY(load_tokenizer(checkpoint, &tokenizer));
    else if (c->text.kind == KN_TEXT_TRAINED)
        KN_TRY(learn_vocabulary(c, state->dataset, &tokenizer));
    KN_TRY(kn_model_create(&state->model, &c->model, &c->text, c->flow.prediction, tokenizer));
    KN_TRY(create_layout(state, c, comm));
    KN_TRY(kn_optimizer_state_create(&state->optimizer, &state->layout.zero, &c->optimizer));
    if (checkpoint) {
        KN_TRY(check_meaning(c, checkpoint));
        return load_state(state, checkpoint);
    }
    kn_layout_init(&state->layout, &state->optimizer.weights, (uint64_t)c->run_seed);
    if (state->optimizer.average.blocks)
        kn_parameter_values_copy(&state->optimizer.average, &state->optimizer.weights);
    return KN_OK;
}

static int open_newest(const KnConfig *c, KnComm *comm, KnCheckpoint **checkpoint)
{
    char *path = NULL;
    KN_TRY(kn_checkpoint_newest(comm, c->run_dir, &path));
    int code = kn_checkpoint_open(checkpoint, path, KN_CHECK_SIZES);
    if (code == KN_OK)
        kn_log("resuming from %s", path);
    free(path);
    return code;
}

static int open_checkpoint(const KnConfig *c, KnComm *comm, int resume, KnCheckpoint **checkpoint)
{
    int code = resume ? open_newest(c, comm, checkpoint) : KN_OK;
    if (code == KN_END)
        kn_log("%s has no checkpoint yet: starting at step 0", c->run_dir);
    return code == KN_END ? KN_OK : code;
}

int kn_train_state_reload(KnTrainState *state, const KnConfig *config, KnComm *comm)
{
    KnCheckpoint *checkpoint = NULL;
    KN_TRY(open_newest(config, comm, &checkpoint));
    int code = load_state(state, checkpoint);
    kn_checkpoint_close(checkpoint);
    return kn_comm_error_agree(comm, code);
}

int kn_train_state_create(KnTrainState *state, const KnConfig *config, KnComm *comm, int resume)
{
    KnCheckpoint *checkpoint = NULL;
    *state = (KnTrainState){.fp8.used = config->train.precision == KN_PRECISION_FP8};
    if (!config->run_dir || !config->run_dir[0])
        return kn_fail(KN_EINPUT, "run.dir is not set: say where the run goes, as with --set run.dir=runs/first");
    if (config->data.shards.count == 0)
        return kn_fail(KN_EINPUT, "data.shards is empty: name the folders that kinora prep made");
    KN_TRY(kn_dataset_open(&state->dataset, (const char *const *)config->data.shards.items, config->data.shards.count));
    KN_TRY(check_data(config, state->dataset));
    KN_TRY(check_same_data(state->dataset, comm));
    state->pairs_per_token = mean_pairs(state->dataset);
    KN_TRY(kn_comm_error_agree(comm, comm->rank == 0 ? prepare_folder(state, config, resume) : KN_OK));
    KN_TRY(open_log(config, comm));
    KN_TRY(open_checkpoint(config, comm, resume, &checkpoint));
    int code = create_model(state, config, comm, checkpoint);
    kn_checkpoint_close(checkpoint);
    KN_TRY(code);
    return kn_comm_error_agree(comm, comm->rank == 0 ? write_config(config) : KN_OK);
}

void kn_train_state_destroy(KnTrainState *state)
{
    kn_optimizer_state_clear(&state->optimizer);
    kn_fp8_state_destroy(&state->fp8);
    kn_layout_destroy(&state->layout);
    kn_model_destroy(&state->model);
    kn_dataset_close(state->dataset);
    kn_locks_close(state->lock);
    *state = (KnTrainState){0};
}
