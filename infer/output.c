/* Writing videos and the JSON beside them. The JSON holds no time and no host: the same request on the same model gives
 * the same bytes of both files. */
#include "infer/output.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/text.h"
#include "core/cpu/isa.h"
#include "data/video_write.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char format_name[] = "kinora-video";
static const char *const origin_keys[] = {"format",     "program",    "instructions", "model",
                                          "model_hash", "model_step", "sha256",       NULL};

/* ---- names ---- */

static size_t trimmed_length(const char *path)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    return length;
}

char *kn_output_json_path(const char *out)
{
    size_t length = trimmed_length(out);
    if (length == strlen(out)) { /* not written as a folder: cut the suffix off */
        const char *dot = strrchr(kn_path_name(out), '.');
        if (dot && dot != kn_path_name(out))
            length = (size_t)(dot - out);
    }
    return kn_format("%.*s.json", (int)length, out);
}

/* The name of `out` as it stands in its folder, a final slash kept. */
static char *name_in_folder(const char *out)
{
    size_t length = trimmed_length(out), start = length;
    while (start > 0 && out[start - 1] != '/')
        start--;
    return kn_strdup(out + start);
}

/* ---- before ---- */

static KnVideoWriteOptions write_options(const KnRequest *r, const char *comment)
{
    return (KnVideoWriteOptions){.width = (int)r->size.width,
                                 .height = (int)r->size.height,
                                 .fps = r->fps,
                                 .upscale = (int)r->upscale,
                                 .crf = (int)r->crf,
                                 .full_colour = r->full_colour,
                                 .lossless = r->lossless,
                                 .comment = comment};
}

static int try_file(const char *path)
{
    KnFileWriter *writer = NULL;
    KN_TRY(kn_file_writer_open(&writer, path));
    kn_file_writer_abort(writer);
    return KN_OK;
}

int kn_output_check(const KnRequest *request)
{
    KnVideoWriter *writer = NULL;
    KnVideoWriteOptions options = write_options(request, NULL);
    if (!request->out || !request->out[0])
        return kn_fail(KN_EINPUT, "nothing says where the video goes: give --out FILE.mp4 (or .gif, .png, a folder/)");
    if (request->frames > 1 && kn_ends_with(request->out, ".png") && !strchr(request->out, '%') &&
        !kn_is_directory(request->out))
        return kn_fail(KN_EINPUT,
                       "%s: a PNG holds one frame of %lld: use --frames 1, put %%04d into the name, or end it with / "
                       "for a folder",
                       request->out, (long long)request->frames);
    char *folder = kn_path_folder(request->out), *json = kn_output_json_path(request->out);
    int code = kn_make_directories(folder);
    if (code == KN_OK)
        code = try_file(json);
    if (code == KN_OK && !strcmp(json, request->out))
        code = kn_fail(KN_EINPUT, "%s: the suffix .json is for what describes the video: use .mp4, .gif or .png", json);
    if (code == KN_OK)
        code = kn_video_writer_open(&writer, request->out, &options);
    kn_video_writer_abandon(writer);
    free(folder);
    free(json);
    return code;
}

/* ---- after ---- */

/* What a longer video left in the folder is no part of this one. */
static int remove_frames(const char *out, int64_t from)
{
    for (;; from++) {
        char *path = kn_video_frame_path(out, from);
        int there = kn_file_exists(path), code = there ? kn_remove_tree(path) : KN_OK;
        free(path);
        if (!there || code < 0)
            return code;
    }
}

static int is_empty_folder(const char *path)
{
    KnStringList names = {0};
    int empty = kn_list_directory(path, &names) == KN_OK && names.count == 0;
    kn_string_list_clear(&names);
    return empty;
}

static int write_folder(const KnRequest *request, const uint8_t *pixels, const KnVideoWriteOptions *options)
{
    if (kn_file_exists(request->out) && !is_empty_folder(request->out)) {
        KN_TRY(kn_video_write(request->out, pixels, request->frames, options));
        return remove_frames(request->out, request->frames);
    }
    char *temporary = kn_temporary_path(request->out), *folder = kn_format("%s/", temporary);
    int code = kn_video_write(folder, pixels, request->frames, options);
    if (code == KN_OK)
        code = kn_directory_publish(temporary, request->out);
    else
        rmdir(temporary); /* the frames are gone already */
    free(temporary);
    free(folder);
    return code;
}

int kn_output_video(const KnRequest *request, const uint8_t *pixels, const char *comment)
{
    KnVideoWriteOptions options = write_options(request, comment);
    if (kn_ends_with(request->out, "/") || kn_is_directory(request->out))
        return write_folder(request, pixels, &options);
    return kn_video_write(request->out, pixels, request->frames, &options);
}

int kn_output_hash(const char *out, int64_t frames, char hash[KN_SHA256_HEX_BYTES])
{
    unsigned char digest[KN_SHA256_BYTES];
    char *path = kn_video_frame_path(out, 0);
    int code = KN_OK;
    if (!path)
        return kn_sha256_file(out, hash);
    KnSha256 *stream = kn_sha256_create();
    for (int64_t i = 0; i < frames && code == KN_OK; i++) {
        char *bytes = NULL;
        size_t size = 0;
        free(path);
        path = kn_video_frame_path(out, i);
        code = kn_file_read(path, &bytes, &size);
        if (code == KN_OK)
            kn_sha256_update(stream, bytes, size);
        free(bytes);
    }
    free(path);
    kn_sha256_finish(stream, digest);
    kn_hex(digest, sizeof digest, hash);
    return code;
}

const char *kn_output_maker(const KnBackend *backend)
{
    return backend->device ? backend->device : kn_cpu_isa_name(kn_cpu_isa());
}

static int write_json(const KnRequest *request, const KnModelFile *file, const KnBackend *backend)
{
    char hash[KN_SHA256_HEX_BYTES];
    KN_TRY(kn_output_hash(request->out, request->frames, hash));
    KnRequest kept = *request;
    char *name = name_in_folder(request->out), *path = kn_output_json_path(request->out);
    json_t *object = json_object(), *model = json_string(file->path);
    kept.out = name;
    json_object_set_new(object, "format", json_string(format_name));
    json_object_set_new(object, "program", json_string("kinora " KINORA_VERSION));
    json_object_set_new(object, "instructions", json_string(kn_output_maker(backend)));
    json_object_set_new(object, "model", model ? model : json_null());
    json_object_set_new(object, "model_hash", json_string(file->hash));
    if (file->step >= 0)
        json_object_set_new(object, "model_step", json_integer(file->step));
    kn_request_to_json(&kept, object);
    json_object_set_new(object, "sha256", json_string(hash));
    char *text = json_dumps(object, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    json_decref(object);
    KN_ASSERT(text);
    KnText line = {0};
    kn_text_appendf(&line, "%s\n", text);
    int code = kn_file_write(path, line.bytes, line.length);
    kn_text_clear(&line);
    free(text);
    free(path);
    free(name);
    return code;
}

int kn_output_write(const KnRequest *request, const KnModelFile *file, const KnBackend *backend, const uint8_t *pixels)
{
    char *comment = kn_format("kinora " KINORA_VERSION ", model %.12s, seed %lld: %s", file->hash,
                              (long long)request->seed, request->prompt);
    int code = kn_output_video(request, pixels, comment);
    free(comment);
    return code < 0 ? code : write_json(request, file, backend);
}

/* ---- reading back ---- */

static const char *take_text(const json_t *object, const char *key, KnArena *arena)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? kn_arena_strdup(arena, text) : NULL;
}

static int read_object(const json_t *object, const char *path, KnRequest *request, KnOutputOrigin *origin,
                       KnArena *arena)
{
    const char *format = json_string_value(json_object_get(object, "format"));
    if (!format || strcmp(format, format_name))
        return kn_fail(KN_EFORMAT, "%s does not describe a generated video", path);
    *origin = (KnOutputOrigin){.model = take_text(object, "model", arena),
                               .model_hash = take_text(object, "model_hash", arena),
                               .program = take_text(object, "program", arena),
                               .instructions = take_text(object, "instructions", arena),
                               .hash = take_text(object, "sha256", arena)};
    if (!origin->model || !origin->model_hash || !origin->program || !origin->instructions)
        return kn_fail(KN_EFORMAT, "%s does not say which model made its video", path);
    KN_TRY(kn_request_from_json(request, object, origin_keys, path, arena));
    if (!request->out)
        return kn_fail(KN_EFORMAT, "%s does not name its video", path);
    char *folder = kn_path_folder(path), *beside = kn_path_join(strcmp(folder, ".") ? folder : "", request->out);
    request->out = kn_arena_strdup(arena, beside);
    free(folder);
    free(beside);
    return KN_OK;
}

int kn_output_read(const char *path, KnRequest *request, KnOutputOrigin *origin, KnArena *arena)
{
    char *bytes = NULL;
    size_t size = 0;
    json_error_t error;
    kn_request_init(request);
    KN_TRY(kn_file_read(path, &bytes, &size));
    json_t *object = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error);
    free(bytes);
    if (!object)
        return kn_fail(KN_EFORMAT, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    int code = read_object(object, path, request, origin, arena);
    json_decref(object);
    return code;
}

/* ---- whether it stands ---- */

/* Given pictures are the same where their bytes are. A name that cannot be read has no hash: that is another request,
 * and making it says why. */
static void compare_by_content(KnRequest *made, KnRequest *asked, char hashes[3][KN_SHA256_HEX_BYTES])
{
    const char **made_paths[] = {&made->first_frame, &made->last_frame, &made->extend};
    const char **paths[] = {&asked->first_frame, &asked->last_frame, &asked->extend};
    const char **known[] = {&asked->first_frame_hash, &asked->last_frame_hash, &asked->extend_hash};
    for (int i = 0; i < 3; i++) {
        if (!*paths[i] || !*made_paths[i])
            continue;
        *made_paths[i] = *paths[i];
        *known[i] = kn_sha256_file(*paths[i], hashes[i]) == KN_OK ? hashes[i] : "";
    }
}

static int is_as_asked(const KnRequest *request, const KnModelFile *file, const char *json, KnArena *arena,
                       char why[KN_OUTPUT_WHY_BYTES])
{
    KnRequest made, asked = *request;
    KnOutputOrigin origin;
    char hashes[3][KN_SHA256_HEX_BYTES], hash[KN_SHA256_HEX_BYTES];
    if (kn_output_read(json, &made, &origin, arena) < 0)
        return snprintf(why, KN_OUTPUT_WHY_BYTES, "what is written beside it cannot be read"), 0;
    compare_by_content(&made, &asked, hashes);
    made.out = asked.out;
    if (asked.extend_frames == 0) /* as many as the rest of the request decides */
        asked.extend_frames = made.extend_frames;
    const char *difference = strcmp(origin.model_hash, file->hash) ? "model" : kn_request_difference(&made, &asked);
    if (difference)
        return snprintf(why, KN_OUTPUT_WHY_BYTES, "it was made with another %s", difference), 0;
    if (kn_output_hash(request->out, request->frames, hash) < 0)
        return snprintf(why, KN_OUTPUT_WHY_BYTES, "the video cannot be read"), 0;
    if (!origin.hash || strcmp(hash, origin.hash))
        return snprintf(why, KN_OUTPUT_WHY_BYTES, "the video is not the one that was made"), 0;
    return 1;
}

int kn_output_is_made(const KnRequest *request, const KnModelFile *file, char why[KN_OUTPUT_WHY_BYTES])
{
    char *json = kn_output_json_path(request->out);
    int made = 0;
    why[0] = '\0';
    if (kn_file_exists(json)) {
        KnArena *arena = kn_arena_create();
        made = is_as_asked(request, file, json, arena, why);
        kn_arena_destroy(arena);
    }
    free(json);
    return made;
}
