/* Saving a checkpoint: begin (all ranks agree what each writes), write (each its own file), commit (rank 0 writes the
 * manifest and gives the folder its name).
 *
 * Tensors that all ranks hold are given whole to the rank with the fewest bytes so far, largest first: a rule that
 * every rank evaluates alike, so that nothing needs to be sent. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/checkpoint_manifest.h"
#include "dist/comm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct Rows {
    int64_t start, count; /* count 0: this rank does not write the tensor */
} Rows;

/* How a written file is told to rank 0. */
typedef struct Part {
    int64_t bytes;
    char sha256[KN_SHA256_HEX_BYTES];
} Part;

typedef struct Writer {
    KnComm *comm;
    const KnCheckpointSave *save;
    char *folder;    /* RUN/checkpoints */
    char *path;      /* the final name */
    char *temporary; /* the name until then, the same on all ranks */
    Rows *rows;      /* [ranks][count]: who writes what */
} Writer;

static Rows *rank_rows(const Writer *writer, int rank)
{
    return writer->rows + (size_t)rank * (size_t)writer->save->count;
}

static size_t part_bytes(const KnCheckpointTensor *tensor, const Rows *rows)
{
    return (size_t)rows->count * kn_checkpoint_row_bytes(tensor);
}

static char *part_name(int rank)
{
    return kn_format("rank-%05d.safetensors", rank);
}

/* ---- begin ---- */

/* Names, types and shapes in order: what must be the same on all ranks. */
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

static int compare_lists(const Writer *writer)
{
    KnComm *comm = writer->comm;
    unsigned char mine[KN_SHA256_BYTES], *all = kn_alloc((size_t)comm->ranks * sizeof mine);
    digest_list(writer->save, mine);
    int code = comm->table->all_gather(comm, mine, all, sizeof mine, "tensors of the checkpoint");
    for (int rank = 1; rank < comm->ranks && code == KN_OK; rank++)
        if (memcmp(all, all + (size_t)rank * sizeof mine, sizeof mine) != 0)
            code = kn_fail(KN_EPEER, "rank 0 and rank %d save different tensors in one checkpoint", rank);
    free(all);
    return code;
}

typedef struct Candidate {
    size_t bytes;
    int index;
} Candidate;

static int larger_first(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->index - y->index;
}

/* Gives each tensor that all ranks hold to one of them. */
static void spread_whole_tensors(Writer *writer)
{
    const KnCheckpointSave *save = writer->save;
    int ranks = writer->comm->ranks, count = 0;
    size_t *loads = kn_alloc((size_t)ranks * sizeof *loads);
    Candidate *candidates = kn_alloc((size_t)save->count * sizeof *candidates);
    for (int i = 0; i < save->count; i++) {
        const KnCheckpointTensor *tensor = &save->tensors[i];
        Rows whole = {0, kn_checkpoint_rows(tensor)};
        if (rank_rows(writer, 0)[i].count == KN_ALL_ROWS)
            candidates[count++] = (Candidate){part_bytes(tensor, &whole), i};
        else
            for (int rank = 0; rank < ranks; rank++)
                loads[rank] += part_bytes(tensor, &rank_rows(writer, rank)[i]);
    }
    qsort(candidates, (size_t)count, sizeof *candidates, larger_first);
    for (int c = 0; c < count; c++) {
        int least = 0, index = candidates[c].index;
        for (int rank = 0; rank < ranks; rank++) {
            rank_rows(writer, rank)[index] = (Rows){0, 0};
            least = loads[rank] < loads[least] ? rank : least;
        }
        rank_rows(writer, least)[index] = (Rows){0, kn_checkpoint_rows(&save->tensors[index])};
        loads[least] += candidates[c].bytes;
    }
    free(candidates);
    free(loads);
}

/* Do the ranks' rows tile the tensor, in whatever order? All ranks see the same and say the same. */
static int check_tiling(const Writer *writer, int index)
{
    const KnCheckpointTensor *tensor = &writer->save->tensors[index];
    int64_t rows = kn_checkpoint_rows(tensor), next = 0;
    int whole = 0, ranks = writer->comm->ranks, found = 1;
    for (int rank = 0; rank < ranks; rank++)
        whole += rank_rows(writer, rank)[index].count == KN_ALL_ROWS;
    if (whole == ranks)
        return KN_OK;
    while (!whole && next < rows && found) {
        found = 0;
        for (int rank = 0; rank < ranks && !found; rank++) {
            const Rows *part = &rank_rows(writer, rank)[index];
            found = part->start == next && part->count > 0;
            next += found ? part->count : 0;
        }
    }
    int64_t held = 0;
    for (int rank = 0; rank < ranks; rank++)
        held += rank_rows(writer, rank)[index].count;
    if (whole || next != rows || held != rows)
        return kn_fail(KN_EINPUT,
                       "tensor '%s' cannot be saved: the rows held by the ranks are not its %lld rows once each",
                       tensor->name, (long long)rows);
    return KN_OK;
}

static int gather_rows(Writer *writer)
{
    const KnCheckpointSave *save = writer->save;
    KnComm *comm = writer->comm;
    size_t bytes = (size_t)save->count * sizeof(Rows);
    writer->rows = kn_alloc(bytes * (size_t)comm->ranks);
    Rows *mine = kn_alloc(bytes);
    for (int i = 0; i < save->count; i++)
        mine[i] = (Rows){save->tensors[i].row_start, save->tensors[i].row_count};
    int code = comm->table->all_gather(comm, mine, writer->rows, bytes, "rows of the checkpoint");
    free(mine);
    for (int i = 0; i < save->count && code == KN_OK; i++)
        code = check_tiling(writer, i);
    if (code == KN_OK)
        spread_whole_tensors(writer);
    return code;
}

static int make_folders(const Writer *writer)
{
    KN_TRY(kn_make_directories(writer->folder));
    KN_TRY(kn_remove_temporaries(writer->folder));
    return kn_make_directories(writer->temporary);
}

/* Rank 0 chooses the temporary name; all get it. */
static int choose_names(Writer *writer)
{
    KnComm *comm = writer->comm;
    writer->folder = kn_path_join(writer->save->run_dir, KN_CHECKPOINTS_FOLDER);
    writer->path = kn_checkpoint_step_path(writer->folder, writer->save->meta.step);
    char *mine = comm->rank == 0 ? kn_temporary_path(writer->path) : kn_strdup("");
    char **names = kn_alloc((size_t)comm->ranks * sizeof *names);
    int code = kn_comm_gather_text(comm, mine, names, "name of the checkpoint");
    writer->temporary = names[0];
    for (int rank = 1; rank < comm->ranks; rank++)
        free(names[rank]);
    free(names);
    free(mine);
    return code;
}

static int begin(Writer *writer)
{
    KN_TRY(compare_lists(writer));
    KN_TRY(gather_rows(writer));
    KN_TRY(choose_names(writer));
    return kn_comm_error_agree(writer->comm, writer->comm->rank == 0 ? make_folders(writer) : KN_OK);
}

/* ---- this rank's file: needs no other rank ---- */

static int write_part(const Writer *writer, Part *part)
{
    const KnCheckpointSave *save = writer->save;
    const Rows *rows = rank_rows(writer, writer->comm->rank);
    KnSafetensor *tensors = kn_alloc((size_t)save->count * sizeof *tensors);
    int count = 0;
    for (int i = 0; i < save->count; i++) {
        const KnCheckpointTensor *tensor = &save->tensors[i];
        if (rows[i].count == 0)
            continue;
        KnSafetensor *out = &tensors[count++];
        *out = (KnSafetensor){.name = tensor->name, .type = tensor->type, .dims = tensor->dims, .data = tensor->data};
        memcpy(out->shape, tensor->shape, sizeof out->shape);
        if (tensor->dims)
            out->shape[0] = rows[i].count;
    }
    char *name = part_name(writer->comm->rank), *path = kn_path_join(writer->temporary, name);
    int code = kn_safetensors_write(path, tensors, count, NULL, 0);
    if (code == KN_OK)
        code = kn_file_size(path, &part->bytes);
    if (code == KN_OK)
        code = kn_sha256_file(path, part->sha256);
    free(path);
    free(name);
    free(tensors);
    return code;
}

/* ---- commit ---- */

static int by_start(const void *a, const void *b)
{
    const KnManifestSlice *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static int write_manifest(const Writer *writer, const Part *parts)
{
    const KnCheckpointSave *save = writer->save;
    int ranks = writer->comm->ranks;
    KnManifest manifest = {.arena = kn_arena_create(),
                           .meta = save->meta,
                           .tool = "kinora " KINORA_VERSION,
                           .file_count = ranks,
                           .tensor_count = save->count};
    manifest.files = kn_arena_alloc(manifest.arena, (size_t)ranks * sizeof *manifest.files);
    manifest.tensors = kn_arena_alloc(manifest.arena, (size_t)save->count * sizeof *manifest.tensors);
    for (int rank = 0; rank < ranks; rank++) {
        manifest.files[rank] = (KnManifestFile){.bytes = parts[rank].bytes};
        manifest.files[rank].name = kn_arena_format(manifest.arena, "rank-%05d.safetensors", rank);
        memcpy(manifest.files[rank].sha256, parts[rank].sha256, KN_SHA256_HEX_BYTES);
    }
    for (int i = 0; i < save->count; i++) {
        KnManifestTensor *entry = &manifest.tensors[i];
        entry->tensor = save->tensors[i];
        entry->slices = kn_arena_alloc(manifest.arena, (size_t)ranks * sizeof *entry->slices);
        for (int rank = 0; rank < ranks; rank++) {
            const Rows *rows = &rank_rows(writer, rank)[i];
            if (rows->count)
                entry->slices[entry->slice_count++] = (KnManifestSlice){rank, rows->start, rows->count};
        }
        qsort(entry->slices, (size_t)entry->slice_count, sizeof *entry->slices, by_start);
    }
    int code = kn_manifest_write(&manifest, writer->temporary);
    kn_manifest_clear(&manifest);
    return code;
}

/* The new folder under the name of an older checkpoint of the same step, so that one of the two always has it. */
static int replace_folder(const char *temporary, const char *path, const char *folder)
{
    KN_TRY(kn_sync_directory(temporary));
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) != 0) {
        /* Not every file system can exchange: the old one steps aside first. */
        char *aside = kn_temporary_path(path);
        int refused = rename(path, aside);
        if (refused)
            kn_fail(KN_EIO, "cannot replace %s: %s", path, strerror(errno));
        int code = refused ? KN_EIO : kn_directory_publish(temporary, path);
        if (code == KN_OK)
            code = kn_remove_tree(aside);
        free(aside);
        return code;
    }
    KN_TRY(kn_sync_directory(folder));
    return kn_remove_tree(temporary);
}

static int commit_on_first_rank(const Writer *writer, const Part *parts)
{
    KN_TRY(write_manifest(writer, parts));
    KnManifest check; /* what cannot be read again must not get a final name */
    KN_TRY(kn_manifest_read(&check, writer->temporary));
    kn_manifest_clear(&check);
    if (kn_file_exists(writer->path))
        return replace_folder(writer->temporary, writer->path, writer->folder);
    return kn_directory_publish(writer->temporary, writer->path);
}

static int commit(const Writer *writer, const Part *mine)
{
    KnComm *comm = writer->comm;
    Part *parts = kn_alloc((size_t)comm->ranks * sizeof *parts);
    int code = comm->table->all_gather(comm, mine, parts, sizeof *mine, "files of the checkpoint");
    if (code == KN_OK)
        code = kn_comm_error_agree(comm, comm->rank == 0 ? commit_on_first_rank(writer, parts) : KN_OK);
    free(parts);
    return code;
}

/* Removes checkpoints older than the `keep_last` that end with the present one. Those of later steps, left from a run
 * that was taken up again further back, are neither counted nor touched. */
static int prune(const Writer *writer)
{
    int64_t *steps, kept = 0;
    int count, code = kn_checkpoint_steps(writer->folder, &steps, &count);
    for (int i = 0; i < count && code == KN_OK; i++) {
        if (steps[i] > writer->save->meta.step || kept++ < writer->save->keep_last)
            continue;
        char *path = kn_checkpoint_step_path(writer->folder, steps[i]), *aside = kn_temporary_path(path);
        if (rename(path, aside) != 0) /* half removed under its own name it would look damaged */
            code = kn_fail(KN_EIO, "cannot remove %s: %s", path, strerror(errno));
        else
            code = kn_remove_tree(aside);
        free(aside);
        free(path);
    }
    free(steps);
    return code;
}

int kn_checkpoint_save(KnComm *comm, const KnCheckpointSave *save)
{
    Writer writer = {.comm = comm, .save = save};
    Part part = {0};
    int code = begin(&writer);
    if (code == KN_OK)
        code = kn_comm_error_agree(comm, write_part(&writer, &part));
    if (code == KN_OK)
        code = commit(&writer, &part);
    if (code == KN_OK && comm->rank == 0 && save->keep_last > 0 && prune(&writer) < 0)
        kn_warn("an old checkpoint stays: %s", kn_error_message());
    if (code < 0 && comm->rank == 0 && writer.temporary && kn_file_exists(writer.temporary)) {
        char *sentence = kn_strdup(kn_error_message());
        if (kn_remove_tree(writer.temporary) < 0)
            kn_warn("%s", kn_error_message());
        kn_fail(code, "%s", sentence);
        free(sentence);
    }
    free(writer.folder);
    free(writer.path);
    free(writer.temporary);
    free(writer.rows);
    return code;
}
