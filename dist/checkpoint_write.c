/* Saving a checkpoint: begin (all ranks agree what each writes, and copy it), write (a thread, each rank its own file),
 * commit (rank 0's thread writes the manifest and gives the folder its name).
 *
 * Between the stages all ranks meet; no rank goes on to the next before every thread has come to its end. */
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/checkpoint_folder.h"
#include "dist/checkpoint_plan.h"
#include "dist/comm.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NAME_BYTES = 256, COPY_ALIGNMENT = 64, PIECE_BYTES = 1 << 20 };

/* How a written file is told to rank 0. */
typedef struct Part {
    int64_t bytes;
    char sha256[KN_SHA256_HEX_BYTES];
} Part;

/* A thread with one thing to do. */
typedef struct Worker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t done;
    int started, busy;
    int (*job)(KnCheckpointSaver *saver);
    int code;
    char *sentence;
} Worker;

typedef enum Stage { IDLE, WRITING, COMMITTING } Stage;

struct KnCheckpointSaver {
    KnComm *comm;
    KnSavePlan plan;
    unsigned char planned[KN_SHA256_BYTES]; /* what this rank told for the plan */
    unsigned char *copy;
    size_t copy_bytes;
    Worker worker;

    Stage stage; /* of the save under way, to which all below belongs */
    KnArena *arena;
    KnCheckpointSave save; /* without its tensors */
    char *folder;          /* RUN/checkpoints */
    char *path;            /* the final name */
    char *temporary;       /* the name until then, the same on all ranks */
    KnSafetensor *tensors; /* that this rank writes */
    int tensor_count;
    Part part, *parts; /* this rank's; all ranks' */
    KnCheckpointReport report;
    double began;
};

/* ---- the thread ---- */

static void *run_job(void *argument)
{
    KnCheckpointSaver *saver = argument;
    Worker *worker = &saver->worker;
    int code = worker->job(saver);
    pthread_mutex_lock(&worker->mutex);
    worker->code = code;
    worker->sentence = kn_strdup(code < 0 ? kn_error_message() : "");
    worker->busy = 0;
    pthread_cond_signal(&worker->done);
    pthread_mutex_unlock(&worker->mutex);
    return NULL;
}

static void start_job(KnCheckpointSaver *saver, int (*job)(KnCheckpointSaver *saver))
{
    Worker *worker = &saver->worker;
    sigset_t all, before; /* signals are for the threads of the program */
    worker->job = job;
    worker->busy = 1;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    worker->started = pthread_create(&worker->thread, NULL, run_job, saver) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!worker->started) /* no thread is to be had: then the caller waits */
        run_job(saver);
}

/* The job's result, with its sentence; KN_OK where there was none. */
static int end_job(Worker *worker)
{
    if (worker->started)
        pthread_join(worker->thread, NULL);
    int code = worker->code;
    if (code < 0)
        kn_fail(code, "%s", worker->sentence);
    free(worker->sentence);
    worker->sentence = NULL;
    worker->started = worker->code = 0;
    return code;
}

static int is_busy(Worker *worker)
{
    pthread_mutex_lock(&worker->mutex);
    int busy = worker->busy;
    pthread_mutex_unlock(&worker->mutex);
    return busy;
}

/* Waits for the job, but not so long that other ranks might think this one dead. */
static int is_busy_for_long(Worker *worker)
{
    enum { NANOSECONDS = 200000000, SECOND = 1000000000 };
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += NANOSECONDS;
    until.tv_sec += until.tv_nsec / SECOND;
    until.tv_nsec %= SECOND;
    pthread_mutex_lock(&worker->mutex);
    while (worker->busy && pthread_cond_timedwait(&worker->done, &worker->mutex, &until) == 0)
        continue;
    int busy = worker->busy;
    pthread_mutex_unlock(&worker->mutex);
    return busy;
}

/* ---- begin: who writes what ---- */

/* What every rank tells before the boxes. */
typedef struct Announcement {
    unsigned char list[KN_SHA256_BYTES]; /* names, types and shapes in order: the same on all ranks */
    int64_t bytes;                       /* of its boxes as text */
    int32_t changed;                     /* they are not those of the former plan */
} Announcement;

static void digest_list(const KnCheckpointSave *save, unsigned char digest[KN_SHA256_BYTES])
{
    KnSha256 *stream = kn_sha256_create();
    for (int i = 0; i < save->count; i++) {
        char *shape = kn_checkpoint_shape_text(&save->tensors[i]);
        kn_sha256_update(stream, save->tensors[i].name, strlen(save->tensors[i].name) + 1);
        kn_sha256_update(stream, shape, strlen(shape) + 1);
        free(shape);
    }
    kn_sha256_finish(stream, digest);
}

static int compare_lists(const KnComm *comm, const Announcement *all)
{
    for (int rank = 1; rank < comm->ranks; rank++)
        if (memcmp(all[0].list, all[rank].list, sizeof all->list) != 0)
            return kn_fail(KN_EPEER, "rank 0 and rank %d save different tensors in one checkpoint", rank);
    return KN_OK;
}

/* Every rank's boxes to all, and the plan from them. */
static int make_plan(KnCheckpointSaver *saver, const KnCheckpointSave *save, const KnText *told, size_t longest)
{
    KnComm *comm = saver->comm;
    unsigned char *mine = kn_alloc(longest), *all = kn_alloc(longest * (size_t)comm->ranks);
    if (told->length)
        memcpy(mine, told->bytes, told->length);
    int code = comm->table->all_gather(comm, mine, all, longest, "boxes of the checkpoint");
    if (code == KN_OK)
        code = kn_save_plan_make(&saver->plan, save->tensors, save->count, all, longest, comm->rank, comm->ranks);
    free(all);
    free(mine);
    return code;
}

/* What all ranks told for the former plan they need not tell again. */
static int agree_on_plan(KnCheckpointSaver *saver, const KnCheckpointSave *save)
{
    KnComm *comm = saver->comm;
    Announcement mine = {0}, *all = kn_alloc((size_t)comm->ranks * sizeof *all);
    KnText told = {0};
    unsigned char digests[2][KN_SHA256_BYTES], digest[KN_SHA256_BYTES];
    digest_list(save, mine.list);
    kn_save_plan_tell(save->tensors, save->count, &told);
    memcpy(digests[0], mine.list, sizeof digests[0]);
    kn_sha256(told.bytes ? told.bytes : "", told.length, digests[1]);
    kn_sha256(digests, sizeof digests, digest);
    mine.bytes = (int64_t)told.length;
    mine.changed = !saver->plan.arena || memcmp(digest, saver->planned, sizeof digest) != 0;
    memcpy(saver->planned, digest, sizeof digest);
    int code = comm->table->all_gather(comm, &mine, all, sizeof mine, "tensors of the checkpoint");
    if (code == KN_OK)
        code = compare_lists(comm, all);
    int changed = 0;
    int64_t longest = 1;
    for (int rank = 0; rank < comm->ranks; rank++) {
        changed |= all[rank].changed;
        longest = all[rank].bytes > longest ? all[rank].bytes : longest;
    }
    if (code < 0)
        kn_save_plan_clear(&saver->plan);
    else if (changed)
        code = make_plan(saver, save, &told, (size_t)longest);
    kn_text_clear(&told);
    free(all);
    return code;
}

/* ---- begin: names and folders ---- */

static int make_folders(const KnCheckpointSaver *saver)
{
    KN_TRY(kn_make_directories(saver->folder));
    KN_TRY(kn_remove_temporaries(saver->folder));
    return kn_make_directories(saver->temporary);
}

/* Rank 0 chooses the temporary name; all get it. */
static int choose_names(KnCheckpointSaver *saver, const KnCheckpointSave *save)
{
    KnComm *comm = saver->comm;
    char name[NAME_BYTES] = "";
    saver->folder = kn_path_join(save->run_dir, KN_CHECKPOINTS_FOLDER);
    saver->path = kn_checkpoint_step_path(saver->folder, save->meta.step);
    if (comm->rank == 0) {
        char *temporary = kn_temporary_path(saver->path);
        snprintf(name, sizeof name, "%s", kn_path_name(temporary));
        free(temporary);
    }
    KN_TRY(comm->table->broadcast(comm, name, sizeof name, 0, "name of the checkpoint"));
    saver->temporary = kn_path_join(saver->folder, name);
    return kn_comm_error_agree(comm, comm->rank == 0 ? make_folders(saver) : KN_OK);
}

static const char *keep(KnArena *arena, const char *text)
{
    return text ? kn_arena_strdup(arena, text) : NULL;
}

static void keep_save(KnCheckpointSaver *saver, const KnCheckpointSave *save)
{
    KnCheckpointMeta *meta = &saver->save.meta;
    saver->save = *save;
    saver->save.tensors = NULL;
    saver->save.run_dir = NULL;
    meta->config = keep(saver->arena, save->meta.config);
    meta->model_json = keep(saver->arena, save->meta.model_json);
    meta->mesh_json = keep(saver->arena, save->meta.mesh_json);
    meta->data_json = keep(saver->arena, save->meta.data_json);
}

/* ---- begin: the copy ---- */

static void list_tensors(KnCheckpointSaver *saver, const KnCheckpointSave *save)
{
    saver->tensors = kn_arena_alloc(saver->arena, (size_t)save->count * sizeof *saver->tensors);
    saver->tensor_count = 0;
    for (int i = 0; i < save->count; i++) {
        const KnCheckpointTensor *tensor = &save->tensors[i];
        if (!saver->plan.mine[i])
            continue;
        KnSafetensor *out = &saver->tensors[saver->tensor_count++];
        *out = (KnSafetensor){.name = kn_arena_strdup(saver->arena, tensor->name),
                              .type = tensor->type,
                              .dims = tensor->dims,
                              .data = tensor->data};
        memcpy(out->shape, tensor->count, sizeof out->shape);
    }
}

static size_t aligned(size_t bytes)
{
    return (bytes + COPY_ALIGNMENT - 1) / COPY_ALIGNMENT * COPY_ALIGNMENT;
}

static int reserve_copy(KnCheckpointSaver *saver)
{
    size_t bytes = 0;
    for (int i = 0; i < saver->tensor_count; i++)
        bytes += aligned(kn_safetensor_bytes(&saver->tensors[i]));
    if (bytes <= saver->copy_bytes)
        return KN_OK;
    kn_free_large(saver->copy);
    saver->copy_bytes = 0;
    void *memory;
    int code = kn_alloc_large(&memory, bytes, "the copy that a checkpoint is written from");
    saver->copy = memory;
    saver->copy_bytes = code == KN_OK ? bytes : 0;
    return code;
}

static void copy_tensors(KnCheckpointSaver *saver)
{
    double start = kn_seconds_now();
    size_t at = 0;
    for (int i = 0; i < saver->tensor_count; i++) {
        size_t bytes = kn_safetensor_bytes(&saver->tensors[i]);
        memcpy(saver->copy + at, saver->tensors[i].data, bytes);
        saver->tensors[i].data = saver->copy + at;
        at += aligned(bytes);
    }
    saver->report.copied_seconds = kn_seconds_now() - start;
}

/* Copies where every rank has the memory for it: *copied. */
static int copy_or_not(KnCheckpointSaver *saver, int *copied)
{
    unsigned char lacking = reserve_copy(saver) < 0, any;
    KN_TRY(kn_comm_any(saver->comm, lacking, &any));
    if (lacking)
        kn_warn("training waits for the checkpoint of step %lld: %s", (long long)saver->save.meta.step,
                kn_error_message());
    *copied = !any;
    if (*copied)
        copy_tensors(saver);
    return KN_OK;
}

/* ---- this rank's file: needs no other rank ---- */

/* Exponents of all ones are infinities and what is not a number. */
static int has_not_finite(const KnSafetensor *tensor)
{
    enum { EXPONENT = 0x7f800000 };
    const uint32_t *values = tensor->data;
    uint32_t found = 0;
    for (int64_t i = 0, count = kn_safetensor_elements(tensor); i < count; i++)
        found |= (values[i] & EXPONENT) == EXPONENT;
    return found != 0;
}

static int write_tensor(const KnCheckpointSaver *saver, KnSafetensorsWriter *writer, const KnSafetensor *tensor)
{
    size_t bytes = kn_safetensor_bytes(tensor);
    if (saver->save.refuse_not_finite && tensor->type == KN_SAFETENSORS_F32 && has_not_finite(tensor))
        return kn_fail(KN_EFORMAT, "tensor '%s' has a value that is not finite", tensor->name);
    for (size_t at = 0; at < bytes; at += PIECE_BYTES) /* hashed and written while it lies in the cache */
        KN_TRY(kn_safetensors_writer_write(writer, (const char *)tensor->data + at,
                                           bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES));
    return KN_OK;
}

static int write_file(KnCheckpointSaver *saver, const char *path)
{
    KnSafetensorsWriter *writer;
    KN_TRY(kn_safetensors_writer_open_hashed(&writer, path, saver->tensors, saver->tensor_count, saver->part.sha256));
    for (int i = 0; i < saver->tensor_count; i++) {
        int code = write_tensor(saver, writer, &saver->tensors[i]);
        if (code < 0) {
            kn_safetensors_writer_abort(writer);
            return code;
        }
    }
    KN_TRY(kn_safetensors_writer_commit(writer));
    return kn_file_size(path, &saver->part.bytes);
}

static int write_part(KnCheckpointSaver *saver)
{
    char *name = kn_format("rank-%05d.safetensors", saver->comm->rank), *path = kn_path_join(saver->temporary, name);
    int code = write_file(saver, path);
    free(path);
    free(name);
    return code;
}

/* ---- commit: rank 0 alone ---- */

static int write_manifest(const KnCheckpointSaver *saver)
{
    int ranks = saver->comm->ranks;
    KnManifestFile *files = kn_arena_alloc(saver->arena, (size_t)ranks * sizeof *files);
    for (int rank = 0; rank < ranks; rank++) {
        files[rank].name = kn_arena_format(saver->arena, "rank-%05d.safetensors", rank);
        files[rank].bytes = saver->parts[rank].bytes;
        memcpy(files[rank].sha256, saver->parts[rank].sha256, KN_SHA256_HEX_BYTES);
    }
    KnManifest manifest = {.meta = saver->save.meta,
                           .tool = "kinora " KINORA_VERSION,
                           .files = files,
                           .file_count = ranks,
                           .tensors = saver->plan.entries,
                           .tensor_count = saver->plan.count};
    KN_TRY(kn_manifest_write(&manifest, saver->temporary));
    KN_TRY(kn_manifest_read(&manifest, saver->temporary)); /* what cannot be read again gets no final name */
    kn_manifest_clear(&manifest);
    return KN_OK;
}

static int commit(KnCheckpointSaver *saver)
{
    const KnCheckpointSave *save = &saver->save;
    KN_TRY(write_manifest(saver));
    KN_TRY(kn_checkpoint_publish(saver->temporary, saver->path));
    if (save->keep_last > 0 &&
        kn_checkpoint_prune(saver->folder, save->meta.step, save->keep_last, save->keep_every) < 0)
        kn_warn("an old checkpoint stays: %s", kn_error_message());
    return KN_OK;
}

/* ---- from stage to stage ---- */

static void remove_temporary(const KnCheckpointSaver *saver)
{
    if (saver->comm->rank == 0 && saver->temporary && kn_file_exists(saver->temporary) &&
        kn_remove_tree(saver->temporary) < 0)
        kn_warn("%s", kn_error_message());
}

static void end_save(KnCheckpointSaver *saver, int code)
{
    char *sentence = kn_strdup(kn_error_message());
    end_job(&saver->worker);
    if (code < 0) {
        remove_temporary(saver);
        kn_fail(code, "%s", sentence);
    }
    free(sentence);
    free(saver->folder);
    free(saver->path);
    free(saver->temporary);
    free(saver->parts);
    kn_arena_destroy(saver->arena);
    saver->folder = saver->path = saver->temporary = NULL;
    saver->parts = NULL;
    saver->arena = NULL;
    saver->stage = IDLE;
    saver->report.seconds = kn_seconds_now() - saver->began;
}

/* All ranks' threads are done: have they written well? Then rank 0 commits. */
static int after_writing(KnCheckpointSaver *saver)
{
    KnComm *comm = saver->comm;
    KN_TRY(kn_comm_error_agree(comm, end_job(&saver->worker)));
    saver->parts = kn_alloc((size_t)comm->ranks * sizeof *saver->parts);
    KN_TRY(comm->table->all_gather(comm, &saver->part, saver->parts, sizeof saver->part, "files of the checkpoint"));
    for (int rank = 0; rank < comm->ranks; rank++)
        saver->report.bytes += saver->parts[rank].bytes;
    saver->stage = COMMITTING;
    if (comm->rank == 0)
        start_job(saver, commit);
    return KN_OK;
}

static int advance(KnCheckpointSaver *saver)
{
    int writing = saver->stage == WRITING;
    int code = writing ? after_writing(saver) : kn_comm_error_agree(saver->comm, end_job(&saver->worker));
    if (code < 0 || !writing)
        end_save(saver, code);
    return code;
}

static int wait_for_end(KnCheckpointSaver *saver)
{
    int code = KN_OK;
    while (saver->stage != IDLE && code == KN_OK) {
        unsigned char any = 0;
        code = kn_comm_any(saver->comm, (unsigned char)is_busy_for_long(&saver->worker), &any);
        if (code == KN_OK && !any)
            code = advance(saver);
    }
    return code;
}

/* Adds the time since `start` to what the caller was held up, and tells how things stand. */
static int tell(KnCheckpointSaver *saver, double start, int code, KnCheckpointReport *report)
{
    saver->report.held_seconds += kn_seconds_now() - start;
    saver->report.done = saver->stage == IDLE;
    *report = saver->report;
    return code;
}

static int prepare(KnCheckpointSaver *saver, const KnCheckpointSave *save)
{
    int copied = 0;
    KN_ASSERT(saver->stage == IDLE);
    saver->report = (KnCheckpointReport){.step = save->meta.step};
    saver->part = (Part){0};
    saver->arena = kn_arena_create();
    keep_save(saver, save);
    KN_TRY(agree_on_plan(saver, save));
    KN_TRY(choose_names(saver, save));
    list_tensors(saver, save);
    if (!save->wait)
        KN_TRY(copy_or_not(saver, &copied));
    saver->stage = WRITING;
    start_job(saver, write_part);
    return copied ? KN_OK : wait_for_end(saver);
}

int kn_checkpoint_saver_create(KnCheckpointSaver **saver, KnComm *comm)
{
    *saver = kn_alloc(sizeof **saver);
    (*saver)->comm = comm;
    pthread_mutex_init(&(*saver)->worker.mutex, NULL);
    pthread_cond_init(&(*saver)->worker.done, NULL);
    return KN_OK;
}

void kn_checkpoint_saver_destroy(KnCheckpointSaver *saver)
{
    if (!saver)
        return;
    if (saver->stage != IDLE)
        end_save(saver, KN_EINTERRUPTED);
    pthread_mutex_destroy(&saver->worker.mutex);
    pthread_cond_destroy(&saver->worker.done);
    kn_save_plan_clear(&saver->plan);
    kn_free_large(saver->copy);
    free(saver);
}

int kn_checkpoint_reserve(KnCheckpointSaver *saver, const KnCheckpointSave *save)
{
    KN_ASSERT(saver->stage == IDLE);
    saver->arena = kn_arena_create();
    int code = agree_on_plan(saver, save);
    if (code == KN_OK) {
        list_tensors(saver, save);
        reserve_copy(saver); /* what is not to be had is told by each save */
    }
    kn_arena_destroy(saver->arena);
    saver->arena = NULL;
    return code;
}

int kn_checkpoint_begin(KnCheckpointSaver *saver, const KnCheckpointSave *save, KnCheckpointReport *report)
{
    double start = kn_seconds_now();
    saver->began = start;
    int code = prepare(saver, save);
    if (code < 0 && saver->arena)
        end_save(saver, code);
    return tell(saver, start, code, report);
}

int kn_checkpoint_poll(KnCheckpointSaver *saver, KnCheckpointReport *report)
{
    double start = kn_seconds_now();
    KN_ASSERT(saver->stage != IDLE && !is_busy(&saver->worker));
    return tell(saver, start, advance(saver), report);
}

int kn_checkpoint_finish(KnCheckpointSaver *saver, KnCheckpointReport *report)
{
    double start = kn_seconds_now();
    *report = (KnCheckpointReport){0};
    return saver->stage == IDLE ? KN_OK : tell(saver, start, wait_for_end(saver), report);
}

int kn_checkpoint_is_writing(KnCheckpointSaver *saver)
{
    return is_busy(&saver->worker);
}

int kn_checkpoint_is_under_way(const KnCheckpointSaver *saver)
{
    return saver->stage != IDLE;
}

int kn_checkpoint_save(KnComm *comm, const KnCheckpointSave *save)
{
    KnCheckpointSaver *saver;
    KnCheckpointSave waiting = *save;
    KnCheckpointReport report;
    waiting.wait = 1;
    KN_TRY(kn_checkpoint_saver_create(&saver, comm));
    int code = kn_checkpoint_begin(saver, &waiting, &report);
    kn_checkpoint_saver_destroy(saver);
    return code;
}
