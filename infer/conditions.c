/* Reading given pictures and marking their patches. */
#include "infer/conditions.h"

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "data/video_read.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST_COVER = 1 << 15 };

typedef struct Given {
    const KnModelConfig *model;
    KnRequest *request;
    KnArena *arena;
    const KnSampleClip *clip;
    uint8_t *pixels; /* the whole clip's, black where not given */
    uint8_t *given;  /* [frames / pt]: 1 where a frame of patches is given */
} Given;

static size_t frame_bytes(const Given *g)
{
    return (size_t)g->clip->width * (size_t)g->clip->height * 3;
}

/* ---- one file ---- */

static int check_hash(const Given *g, const char *path, const char **known)
{
    char hash[KN_SHA256_HEX_BYTES];
    KN_TRY(kn_sha256_file(path, hash));
    if (*known && strcmp(*known, hash))
        return kn_fail(KN_EINPUT,
                       "%s is not the file it was when the video was made: its SHA-256 is %.12s..., not %.12s...; "
                       "name the file anew to use it all the same",
                       path, hash, *known);
    *known = kn_arena_strdup(g->arena, hash);
    return KN_OK;
}

/* Opens a file to be read at the size that just covers the clip's. */
static int open_covering(const Given *g, const char *path, double fps, KnVideo **video, int size[2])
{
    KN_TRY(kn_video_open(video, path, &(KnVideoOptions){.fps = fps}, NULL));
    const KnVideoInfo *info = kn_video_info(*video);
    double scale = fmax((double)g->clip->width / info->width, (double)g->clip->height / info->height);
    double width = fmax(round(info->width * scale), (double)g->clip->width);
    double height = fmax(round(info->height * scale), (double)g->clip->height);
    int code = KN_OK;
    if (width > LARGEST_COVER || height > LARGEST_COVER)
        code = kn_fail(KN_EINPUT, "%s: %dx%d is too long and narrow to fill %lldx%lld: crop it first", path,
                       info->width, info->height, (long long)g->clip->width, (long long)g->clip->height);
    size[0] = (int)width;
    size[1] = (int)height;
    if (code == KN_OK)
        code = kn_video_set_size(*video, size[0], size[1]);
    if (code < 0) {
        kn_video_close(*video);
        *video = NULL;
    }
    return code;
}

static void crop(const Given *g, const uint8_t *rgb, const int size[2], uint8_t *out)
{
    size_t left = (size_t)(size[0] - g->clip->width) / 2, top = (size_t)(size[1] - g->clip->height) / 2;
    size_t line = (size_t)g->clip->width * 3;
    for (size_t y = 0; y < (size_t)g->clip->height; y++)
        memcpy(out + y * line, rgb + ((top + y) * (size_t)size[0] + left) * 3, line);
}

/* The first picture of a file, at each of the pt frames of one frame of patches. */
static int place_image(Given *g, const char *path, const char **hash, int64_t patch_frame)
{
    KnVideo *video = NULL;
    const uint8_t *rgb = NULL;
    int size[2];
    int64_t pt = g->model->patch[0];
    KN_TRY(check_hash(g, path, hash));
    KN_TRY(open_covering(g, path, 0, &video, size));
    int code = kn_video_next(video, &rgb, NULL);
    if (code == KN_END)
        code = kn_fail(KN_EFORMAT, "%s holds no picture", path);
    for (int64_t i = 0; code == KN_OK && i < pt; i++)
        crop(g, rgb, size, g->pixels + (size_t)(patch_frame * pt + i) * frame_bytes(g));
    kn_video_close(video);
    g->given[patch_frame] = 1;
    return code;
}

/* ---- continuing a video ---- */

/* Reads all frames, keeping the last `most` in a ring; *count of them were there. */
static int read_ring(const Given *g, KnVideo *video, const int size[2], int64_t most, uint8_t *ring, int64_t *count)
{
    const uint8_t *rgb = NULL;
    int code;
    *count = 0;
    while ((code = kn_video_next(video, &rgb, NULL)) == KN_OK) {
        crop(g, rgb, size, ring + (size_t)(*count % most) * frame_bytes(g));
        ++*count;
    }
    return code == KN_END ? KN_OK : code;
}

static int check_extension(const Given *g, int64_t wanted)
{
    int64_t pt = g->model->patch[0], frames = g->clip->frames;
    if (wanted % pt)
        return kn_fail(KN_EINPUT, "--extend-frames %lld is no multiple of the %lld frames of a patch: use %lld",
                       (long long)wanted, (long long)pt, (long long)((wanted / pt + 1) * pt));
    if (wanted >= frames)
        return kn_fail(KN_EINPUT, "of %lld frames %lld are given, which leaves none to generate: ask for more --frames",
                       (long long)frames, (long long)(wanted ? wanted : pt));
    return KN_OK;
}

/* The video's last frames, in whole patches, become the clip's first. */
static int place_video(Given *g)
{
    KnRequest *r = g->request;
    int64_t pt = g->model->patch[0], asked = r->extend_frames, count = 0;
    int64_t most = asked ? asked : g->clip->frames / 2 / pt * pt;
    KnVideo *video = NULL;
    void *ring = NULL;
    int size[2];
    most = most ? most : pt;
    KN_TRY(check_extension(g, most));
    KN_TRY(check_hash(g, r->extend, &r->extend_hash));
    KN_TRY(open_covering(g, r->extend, r->fps, &video, size));
    int code = kn_alloc_large(&ring, (size_t)most * frame_bytes(g), "the frames of the video to extend");
    if (code == KN_OK)
        code = read_ring(g, video, size, most, ring, &count);
    int64_t kept = count < most ? count / pt * pt : most;
    if (code == KN_OK && (kept == 0 || (asked && kept < asked)))
        code = kn_fail(KN_EINPUT, "%s has %lld frames at %g a second, %lld are to be kept", r->extend, (long long)count,
                       r->fps, (long long)(asked ? asked : pt));
    for (int64_t i = 0; code == KN_OK && i < kept; i++) {
        int64_t from = (count - kept + i) % most;
        memcpy(g->pixels + (size_t)i * frame_bytes(g), (uint8_t *)ring + (size_t)from * frame_bytes(g), frame_bytes(g));
        g->given[i / pt] = 1;
    }
    if (code == KN_OK)
        r->extend_frames = kept;
    kn_free_large(ring);
    kn_video_close(video);
    return code;
}

/* ---- all together ---- */

static int place_all(Given *g)
{
    KnRequest *r = g->request;
    int64_t patch_frames = g->clip->frames / g->model->patch[0], left = 0;
    if (r->extend && r->first_frame)
        return kn_fail(KN_EINPUT, "--extend and --first-frame both say how the video begins: give one of them");
    if (r->extend)
        KN_TRY(place_video(g));
    if (r->first_frame)
        KN_TRY(place_image(g, r->first_frame, &r->first_frame_hash, 0));
    if (r->last_frame && g->given[patch_frames - 1])
        return kn_fail(KN_EINPUT, "the last frame is given twice: ask for more --frames");
    if (r->last_frame)
        KN_TRY(place_image(g, r->last_frame, &r->last_frame_hash, patch_frames - 1));
    for (int64_t t = 0; t < patch_frames; t++)
        left += !g->given[t];
    if (left == 0)
        return kn_fail(KN_EINPUT, "all %lld frames are given, which leaves none to generate: ask for at least %lld",
                       (long long)g->clip->frames, (long long)(g->clip->frames + g->model->patch[0]));
    return KN_OK;
}

static void hand_over(const Given *g, KnSampleClip *clip)
{
    int64_t frames = clip->frames / g->model->patch[0];
    int64_t tokens = kn_sample_tokens(g->model, clip->frames, clip->height, clip->width), each = tokens / frames;
    uint8_t *given = kn_alloc((size_t)tokens);
    float *patches = kn_alloc((size_t)(tokens * kn_model_patch_dim(g->model)) * sizeof *patches);
    for (int64_t t = 0; t < frames; t++)
        memset(given + t * each, g->given[t], (size_t)each);
    kn_sample_from_pixels(g->model, clip->frames, clip->height, clip->width, g->pixels, patches);
    clip->given = given;
    clip->given_patches = patches;
}

int kn_conditions_load(const KnModelConfig *model, KnRequest *request, KnArena *arena, KnSampleClip *clip)
{
    Given g = {.model = model, .request = request, .arena = arena, .clip = clip};
    void *pixels = NULL;
    clip->given = NULL;
    clip->given_patches = NULL;
    if (!request->first_frame && !request->last_frame && !request->extend)
        return KN_OK;
    KN_TRY(kn_alloc_large(&pixels, (size_t)clip->frames * frame_bytes(&g), "a clip's given frames"));
    g.pixels = pixels;
    g.given = kn_alloc((size_t)(clip->frames / model->patch[0]));
    int code = place_all(&g);
    if (code == KN_OK)
        hand_over(&g, clip);
    free(g.given);
    kn_free_large(pixels);
    return code;
}

void kn_conditions_clear(KnSampleClip *clip)
{
    free((void *)(uintptr_t)clip->given);
    free((void *)(uintptr_t)clip->given_patches);
    clip->given = NULL;
    clip->given_patches = NULL;
}
