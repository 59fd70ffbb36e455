/* The shard reader. Opening checks the seal, then HDF5's view of the file against every invariant of the tables; from
 * then on the tables are in memory and only patches are read. The HDF5 handle is opened when first needed. */
#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "data/shard_seal.h"
#include "data/shard_table.h"

#include <stdlib.h>
#include <string.h>

struct KnShard {
    char *path;
    char tool[64];
    KnShardFormat format;
    int64_t file_bytes, tokens;
    KnClipRow *rows;
    KnClip *clips;
    int64_t clip_count;
    KnSource *sources;
    int64_t source_count;
    KnArena *strings;
    const char **captions;
    hid_t file, patches; /* -1 while resting */
};

static hid_t native_type(const KnShardFormat *format)
{
    return format->kind == KN_VALUE_PIXELS ? H5T_NATIVE_UINT8 : H5T_NATIVE_UINT16;
}

/* ---- the file handle (under the lock) ---- */

static void release_handles(KnShard *shard)
{
    if (shard->patches >= 0)
        H5Dclose(shard->patches);
    if (shard->file >= 0)
        H5Fclose(shard->file);
    shard->file = shard->patches = -1;
}

static int ensure_handles(KnShard *shard)
{
    if (shard->patches >= 0)
        return KN_OK;
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
#if H5_VERSION_GE(1, 10, 7)
    H5Pset_file_locking(access, 0, 1); /* finished shards never change; some cluster file systems cannot lock */
#endif
    shard->file = H5Fopen(shard->path, H5F_ACC_RDONLY, access);
    H5Pclose(access);
    if (shard->file < 0)
        return kn_fail(KN_EFORMAT, "%s: HDF5 cannot open it", shard->path);
    shard->patches = H5Dopen2(shard->file, "/patches", H5P_DEFAULT);
    if (shard->patches < 0)
        return kn_fail(KN_EFORMAT, "%s: not a shard: it has no /patches", shard->path);
    return KN_OK;
}

/* ---- opening ---- */

static int read_format(KnShard *shard)
{
    const char *path = shard->path;
    KnShardFormat *format = &shard->format;
    char name[32], kind[32];
    int64_t version = 0;
    KN_TRY(kn_h5_read_text(shard->file, path, "format", name, sizeof name));
    if (strcmp(name, "kinora-shard") != 0)
        return kn_fail(KN_EFORMAT, "%s: not a shard: its format is \"%s\"", path, name);
    KN_TRY(kn_h5_read_integers(shard->file, path, "version", &version, 1));
    if (version != KN_SHARD_VERSION)
        return kn_fail(KN_EFORMAT, "%s: shard format version %lld, this program reads version %d", path,
                       (long long)version, KN_SHARD_VERSION);
    KN_TRY(kn_h5_read_integers(shard->file, path, "patch", format->patch, 3));
    KN_TRY(kn_h5_read_integers(shard->file, path, "channels", &format->channels, 1));
    KN_TRY(kn_h5_read_text(shard->file, path, "value_kind", kind, sizeof kind));
    KN_TRY(kn_h5_read_text(shard->file, path, "autoencoder", format->autoencoder, sizeof format->autoencoder));
    KN_TRY(kn_h5_read_text(shard->file, path, "config_hash", format->config_hash, sizeof format->config_hash));
    KN_TRY(kn_h5_read_text(shard->file, path, "tool", shard->tool, sizeof shard->tool));
    const int64_t sizes[4] = {format->channels, format->patch[0], format->patch[1], format->patch[2]};
    for (int i = 0; i < 4; i++)
        if (sizes[i] < 1 || sizes[i] > 4096)
            return kn_fail(KN_EFORMAT, "%s: a patch of %lld channels, %lldx%lldx%lld is impossible", path,
                           (long long)sizes[0], (long long)sizes[1], (long long)sizes[2], (long long)sizes[3]);
    if (strcmp(kind, "pixels") != 0 && strcmp(kind, "latents") != 0)
        return kn_fail(KN_EFORMAT, "%s: values of kind \"%s\" are unknown to this program", path, kind);
    format->kind = strcmp(kind, "pixels") == 0 ? KN_VALUE_PIXELS : KN_VALUE_LATENTS;
    format->patch_dim = sizes[0] * sizes[1] * sizes[2] * sizes[3];
    format->element_bytes = format->kind == KN_VALUE_PIXELS ? 1 : 2;
    return KN_OK;
}

static int read_patches_shape(KnShard *shard)
{
    hid_t space = H5Dget_space(shard->patches), type = H5Dget_type(shard->patches);
    hsize_t extent[2] = {0, 0};
    int ok = H5Sget_simple_extent_ndims(space) == 2 && H5Sget_simple_extent_dims(space, extent, NULL) == 2;
    ok = ok && H5Tget_class(type) == H5T_INTEGER && H5Tget_size(type) == shard->format.element_bytes;
    ok = ok && extent[1] == (hsize_t)shard->format.patch_dim &&
         extent[0] <= (hsize_t)shard->file_bytes / (extent[1] * shard->format.element_bytes);
    H5Tclose(type);
    H5Sclose(space);
    shard->tokens = (int64_t)extent[0];
    return ok ? KN_OK : kn_fail(KN_EFORMAT, "%s: /patches has a wrong shape or type", shard->path);
}

/* NULL with a sentence where the texts and the rows do not go together. */
static const char **copy_strings(KnShard *shard, const KnStrings *strings, int64_t expected, const char *name)
{
    if (expected >= 0 && strings->count != expected) {
        kn_fail(KN_EFORMAT, "%s: %lld %s for %lld sources", shard->path, (long long)strings->count, name,
                (long long)expected);
        return NULL;
    }
    const char **list = kn_arena_alloc(shard->strings, ((size_t)strings->count + 1) * sizeof *list);
    for (int64_t i = 0; i < strings->count; i++) {
        size_t length = (size_t)(strings->offsets[i + 1] - strings->offsets[i]);
        char *text = kn_arena_alloc(shard->strings, length + 1);
        memcpy(text, strings->bytes.bytes + strings->offsets[i], length);
        list[i] = text;
    }
    return list;
}

static int read_strings(KnShard *shard, const char *group, const char *name, int64_t expected, const char ***list,
                        int64_t *count)
{
    KnStrings strings = {0};
    int code = kn_h5_read_strings(shard->file, shard->path, group, name, shard->file_bytes, &strings);
    if (code == KN_OK) {
        *list = copy_strings(shard, &strings, expected, name);
        *count = strings.count;
        code = *list ? KN_OK : KN_EFORMAT;
    }
    kn_strings_clear(&strings);
    return code;
}

static int read_sources(KnShard *shard)
{
    KnSourceRow *rows = NULL;
    const char **paths = NULL, **reasons = NULL, **details = NULL;
    int64_t count = 0, texts = 0;
    int code = kn_h5_read_columns(shard->file, shard->path, kn_source_columns, kn_source_column_count,
                                  shard->file_bytes, (void **)&rows, &count, sizeof *rows);
    if (code == KN_OK)
        code = read_strings(shard, "/source", "path_", count, &paths, &texts);
    if (code == KN_OK)
        code = read_strings(shard, "/source", "reason_", count, &reasons, &texts);
    if (code == KN_OK)
        code = read_strings(shard, "/source", "detail_", count, &details, &texts);
    if (code == KN_OK) {
        shard->sources = kn_alloc((size_t)count * sizeof *shard->sources);
        shard->source_count = count;
        for (int64_t i = 0; i < count; i++)
            shard->sources[i] = (KnSource){paths[i],        reasons[i],    details[i],           rows[i].bytes,
                                           rows[i].damaged, rows[i].clips, rows[i].complete != 0};
    }
    free(rows);
    return code;
}

/* Whether `row` describes a clip that begins at `first_token`, with everything it points to in range. */
static int row_is_sound(const KnShard *shard, const KnClipRow *row, int64_t first_token, int64_t captions)
{
    const int64_t *patch = shard->format.patch;
    const int64_t left = shard->tokens - first_token;
    return row->first_token == first_token && row->grid_frames > 0 && row->grid_height > 0 && row->grid_width > 0 &&
           row->grid_frames <= left && row->grid_height <= left / row->grid_frames &&
           row->grid_width <= left / (row->grid_frames * row->grid_height) &&
           row->frames == row->grid_frames * patch[0] && row->height == row->grid_height * patch[1] &&
           row->width == row->grid_width * patch[2] && row->source >= 0 && row->source < shard->source_count &&
           row->segment >= 0 && row->captions >= 0 && row->first_caption >= 0 && row->first_caption <= captions &&
           row->captions <= captions - row->first_caption && row->fps >= 0 && row->fps < 1e9;
}

static int check_clips(KnShard *shard, int64_t captions)
{
    int64_t token = 0;
    shard->clips = kn_alloc((size_t)shard->clip_count * sizeof *shard->clips);
    for (int64_t i = 0; i < shard->clip_count; i++) {
        const KnClipRow *row = &shard->rows[i];
        if (!row_is_sound(shard, row, token, captions))
            return kn_fail(KN_EFORMAT, "%s: the table entries of clip %lld contradict each other", shard->path,
                           (long long)i);
        KnClip *clip = &shard->clips[i];
        *clip = (KnClip){.tokens = row->grid_frames * row->grid_height * row->grid_width,
                         .grid = {row->grid_frames, row->grid_height, row->grid_width},
                         .frames = row->frames,
                         .height = row->height,
                         .width = row->width,
                         .fps = row->fps,
                         .start_seconds = row->start_seconds,
                         .source = shard->sources[row->source].path,
                         .segment = row->segment,
                         .captions = row->captions};
        memcpy(clip->sha256, row->sha256, sizeof clip->sha256);
        token += clip->tokens;
    }
    if (token != shard->tokens)
        return kn_fail(KN_EFORMAT, "%s: its clips have %lld tokens, /patches has %lld rows", shard->path,
                       (long long)token, (long long)shard->tokens);
    return KN_OK;
}

static int read_all(KnShard *shard)
{
    int64_t captions = 0;
    KN_TRY(ensure_handles(shard));
    KN_TRY(read_format(shard));
    KN_TRY(read_patches_shape(shard));
    KN_TRY(read_sources(shard));
    KN_TRY(read_strings(shard, "/caption", "", -1, &shard->captions, &captions));
    KN_TRY(kn_h5_read_columns(shard->file, shard->path, kn_clip_columns, kn_clip_column_count, shard->file_bytes,
                              (void **)&shard->rows, &shard->clip_count, sizeof *shard->rows));
    return check_clips(shard, captions);
}

int kn_shard_open(KnShard **out, const char *path)
{
    kn_activity_advance();
    *out = NULL;
    int64_t bytes = 0;
    KN_TRY(kn_shard_seal_check(path, &bytes));
    KnShard *shard = kn_alloc(sizeof *shard);
    shard->path = kn_strdup(path);
    shard->file_bytes = bytes;
    shard->strings = kn_arena_create();
    shard->file = shard->patches = -1;
    kn_h5_lock();
    int code = read_all(shard);
    kn_h5_unlock();
    if (code < 0) {
        kn_shard_close(shard);
        return code;
    }
    *out = shard;
    return KN_OK;
}

void kn_shard_rest(KnShard *shard)
{
    kn_h5_lock();
    release_handles(shard);
    kn_h5_unlock();
}

void kn_shard_close(KnShard *shard)
{
    if (!shard)
        return;
    kn_shard_rest(shard);
    kn_arena_destroy(shard->strings);
    free(shard->sources);
    free(shard->clips);
    free(shard->rows);
    free(shard->path);
    free(shard);
}

/* ---- reading ---- */

const char *kn_shard_path(const KnShard *shard)
{
    return shard->path;
}

const char *kn_shard_tool(const KnShard *shard)
{
    return shard->tool;
}

const KnShardFormat *kn_shard_format(const KnShard *shard)
{
    return &shard->format;
}

int64_t kn_shard_tokens(const KnShard *shard)
{
    return shard->tokens;
}

int64_t kn_shard_clip_count(const KnShard *shard)
{
    return shard->clip_count;
}

int64_t kn_shard_source_count(const KnShard *shard)
{
    return shard->source_count;
}

const KnClip *kn_shard_clip(const KnShard *shard, int64_t clip)
{
    KN_ASSERT(clip >= 0 && clip < shard->clip_count);
    return &shard->clips[clip];
}

const char *kn_shard_caption(const KnShard *shard, int64_t clip, int64_t which)
{
    KN_ASSERT(clip >= 0 && clip < shard->clip_count && which >= 0 && which < shard->clips[clip].captions);
    return shard->captions[shard->rows[clip].first_caption + which];
}

const KnSource *kn_shard_source(const KnShard *shard, int64_t source)
{
    KN_ASSERT(source >= 0 && source < shard->source_count);
    return &shard->sources[source];
}

static int read_rows(KnShard *shard, int64_t clip, void *patches)
{
    KN_TRY(ensure_handles(shard));
    hsize_t start[2] = {(hsize_t)shard->rows[clip].first_token, 0};
    hsize_t extent[2] = {(hsize_t)shard->clips[clip].tokens, (hsize_t)shard->format.patch_dim};
    hid_t space = H5Dget_space(shard->patches), memory = H5Screate_simple(2, extent, NULL);
    int ok = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, extent, NULL) >= 0 &&
             H5Dread(shard->patches, native_type(&shard->format), memory, space, H5P_DEFAULT, patches) >= 0;
    H5Sclose(memory);
    H5Sclose(space);
    return ok ? KN_OK
              : kn_fail(KN_EFORMAT, "%s: the patches of clip %lld (%s) are damaged: their checksum is wrong",
                        shard->path, (long long)clip, shard->clips[clip].source);
}

int kn_shard_read_clip(KnShard *shard, int64_t clip, void *patches)
{
    kn_activity_advance();
    KN_ASSERT(clip >= 0 && clip < shard->clip_count);
    kn_h5_lock();
    int code = read_rows(shard, clip, patches);
    kn_h5_unlock();
    return code;
}

static size_t clip_bytes(const KnShard *shard, int64_t clip)
{
    return (size_t)(shard->clips[clip].tokens * shard->format.patch_dim) * shard->format.element_bytes;
}

static int verify_clip(KnShard *shard, int64_t clip, void *patches)
{
    unsigned char digest[KN_SHA256_BYTES];
    KN_TRY(kn_shard_read_clip(shard, clip, patches));
    kn_sha256(patches, clip_bytes(shard, clip), digest);
    if (memcmp(digest, shard->clips[clip].sha256, sizeof digest) != 0)
        return kn_fail(KN_EFORMAT, "%s: the patches of clip %lld (%s) are damaged: their SHA-256 is not the stored one",
                       shard->path, (long long)clip, shard->clips[clip].source);
    return KN_OK;
}

int kn_shard_verify(KnShard *shard)
{
    int64_t bytes = 0;
    size_t largest = 0;
    KN_TRY(kn_shard_seal_check(shard->path, &bytes));
    for (int64_t i = 0; i < shard->clip_count; i++)
        largest = clip_bytes(shard, i) > largest ? clip_bytes(shard, i) : largest;
    void *patches = NULL;
    KN_TRY(kn_alloc_large(&patches, largest, "a clip"));
    int code = KN_OK;
    for (int64_t i = 0; i < shard->clip_count && code == KN_OK; i++)
        code = verify_clip(shard, i, patches);
    kn_free_large(patches);
    return code;
}
