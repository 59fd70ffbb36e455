/* Describing videos, those made here together with the NAME.json beside them. */
#include "infer/inspect.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "data/index.h"
#include "data/video_read.h"
#include "infer/output.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static json_t *text_json(const char *text)
{
    json_t *value = json_string(text);
    return value ? value : json_null();
}

static void add_info(json_t *object, const KnVideoInfo *info)
{
    json_object_set_new(object, "container", text_json(info->container));
    json_object_set_new(object, "codec", text_json(info->codec));
    json_object_set_new(object, "pixel_format", text_json(info->pixel_format));
    json_object_set_new(object, "width", json_integer(info->width));
    json_object_set_new(object, "height", json_integer(info->height));
    if (!info->is_image) {
        json_object_set_new(object, "fps", json_real(info->native_fps));
        json_object_set_new(object, "seconds", json_real(info->duration_seconds));
    }
    if (info->rotation)
        json_object_set_new(object, "rotation", json_integer(info->rotation));
    if (info->comment[0])
        json_object_set_new(object, "comment", text_json(info->comment));
}

/* Decodes every frame. */
static int add_frames(json_t *object, KnVideo *video, const char *path)
{
    int64_t frames = 0;
    int code;
    while ((code = kn_video_skip(video)) == KN_OK)
        frames++;
    if (code != KN_END)
        return code;
    json_object_set_new(object, "frames", json_integer(frames));
    if (kn_video_damaged(video))
        return kn_fail(KN_EFORMAT, "%s: %lld packets or frames are damaged", path, (long long)kn_video_damaged(video));
    return KN_OK;
}

static int check_hash(const json_t *made, const char *video, const char *json)
{
    const char *known = json_string_value(json_object_get(made, "sha256"));
    char hash[KN_SHA256_HEX_BYTES];
    if (!known)
        return KN_OK;
    KN_TRY(kn_output_hash(video, json_integer_value(json_object_get(made, "frames")), hash));
    if (strcmp(known, hash))
        return kn_fail(KN_EFORMAT, "%s is not the video that %s describes: its SHA-256 is %.12s..., not %.12s...",
                       video, json, hash, known);
    return KN_OK;
}

/* The parsed NAME.json at `path` in *made, NULL where it is no description of a video. */
static int read_made(const char *path, json_t **made)
{
    KnArena *arena = kn_arena_create();
    KnRequest request;
    KnOutputOrigin origin;
    *made = NULL;
    int code = kn_output_read(path, &request, &origin, arena);
    kn_arena_destroy(arena);
    if (code == KN_OK)
        *made = json_load_file(path, 0, NULL);
    return code;
}

/* What stands beside a video made here, in *made; NULL where nothing does. Another program's NAME.json is none of our
 * business. */
static int find_made(const char *path, int verify, json_t **made)
{
    char *beside = kn_output_json_path(path);
    int code = KN_OK;
    *made = NULL;
    if (kn_file_exists(beside) && read_made(beside, made) == KN_OK && *made) {
        json_object_del(*made, "format");
        if (verify)
            code = check_hash(*made, path, beside);
    }
    free(beside);
    return code;
}

static int describe_video(const char *path, int verify, json_t *object)
{
    KnVideo *video = NULL;
    json_t *made = NULL;
    int code = find_made(path, verify, &made); /* says more than what a decoder makes of a changed byte */
    if (code == KN_OK)
        code = kn_video_open(&video, path, &(KnVideoOptions){0}, NULL);
    if (code == KN_OK) {
        json_object_set_new(object, "kind", json_string(kn_video_info(video)->is_image ? "image" : "video"));
        json_object_set_new(object, "path", kn_json_text(path));
        add_info(object, kn_video_info(video));
        code = verify ? add_frames(object, video, path) : KN_OK;
    }
    if (code == KN_OK && made)
        json_object_set(object, "made_by", made);
    json_decref(made);
    kn_video_close(video);
    return code;
}

int kn_inspect_video(const char *path, int verify, json_t **object)
{
    *object = json_object();
    int code = describe_video(path, verify, *object);
    if (code < 0)
        json_decref(*object);
    return code;
}

int kn_inspect_video_json(const char *path, int verify, json_t **object)
{
    json_t *made = NULL;
    KN_TRY(read_made(path, &made));
    if (!made)
        return kn_fail(KN_EFORMAT, "%s changed while it was read", path);
    char *folder = kn_path_folder(path);
    char *video = kn_path_join(folder, json_string_value(json_object_get(made, "out")));
    int code = KN_OK;
    if (verify && json_object_get(made, "sha256"))
        code = check_hash(made, video, path);
    json_object_del(made, "format");
    *object = json_pack("{ss so}", "kind", "description of a generated video", "path", kn_json_text(path));
    json_object_update_missing(*object, made);
    json_decref(made);
    free(folder);
    free(video);
    if (code < 0)
        json_decref(*object);
    return code;
}
