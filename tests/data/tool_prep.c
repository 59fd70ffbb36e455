/* `kinora prep` as a program of its own, and what its tests ask of the result:
 *   tool_prep prep ARGUMENTS...   the command
 *   tool_prep clips DIR           a line for each clip: name of its source, segment, size, captions, SHA-256
 *   tool_prep same DIR            decodes every source again and compares it with the unpatchified clips
 *   tool_prep verify DIR          checks every hash
 *   tool_prep make FILE WxHxN     writes a video of N frames */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "data/commands.h"
#include "data/dataset.h"
#include "data/patchify.h"
#include "data/video_read.h"
#include "data/video_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int print_clips(const char *folder)
{
    KnDataset *dataset;
    KN_TRY(kn_dataset_open(&dataset, &folder, 1));
    for (int64_t i = 0; i < kn_dataset_clip_count(dataset); i++) {
        const KnClip *clip = kn_dataset_clip(dataset, i);
        char hex[65];
        kn_hex(clip->sha256, 32, hex);
        printf("%s %lld %lldx%lldx%lld %g %g %s", kn_path_name(clip->source), (long long)clip->segment,
               (long long)clip->width, (long long)clip->height, (long long)clip->frames, clip->fps, clip->start_seconds,
               hex);
        for (int64_t c = 0; c < clip->captions; c++)
            printf(" [%s]", kn_dataset_caption(dataset, i, c));
        printf("\n");
    }
    kn_dataset_close(dataset);
    return KN_OK;
}

/* The clip's frames against the reader's, cropped in the middle; sources must not have been scaled. */
static int compare_clip(KnDataset *dataset, int64_t index)
{
    const KnClip *clip = kn_dataset_clip(dataset, index);
    const KnShardFormat *format = kn_dataset_format(dataset);
    const KnPatchLayout layout = {
        clip->frames, clip->height, clip->width, 3, {format->patch[0], format->patch[1], format->patch[2]}, 1};
    size_t bytes = (size_t)(clip->frames * clip->height * clip->width) * 3;
    uint8_t *patches = kn_alloc(bytes), *frames = kn_alloc(bytes);
    KN_TRY(kn_dataset_read_clip(dataset, index, patches));
    kn_unpatchify(&layout, patches, frames);
    KnVideo *video;
    const uint8_t *rgb;
    KN_TRY(kn_video_open(&video, clip->source, &(KnVideoOptions){.fps = clip->fps}, NULL));
    const int64_t width = kn_video_info(video)->width, height = kn_video_info(video)->height;
    const int64_t left = (width - clip->width) / 2, top = (height - clip->height) / 2;
    int64_t first = clip->fps > 0 ? (int64_t)(clip->start_seconds * clip->fps + 0.5) : 0;
    int code = left >= format->patch[2] || top >= format->patch[1] ? kn_fail(KN_EFORMAT, "cropped too much") : KN_OK;
    for (int64_t i = 0; i < first && code == KN_OK; i++)
        code = kn_video_skip(video);
    for (int64_t f = 0; f < clip->frames && code == KN_OK; f++) {
        if (f == 0 || clip->fps > 0)
            code = kn_video_next(video, &rgb, NULL);
        for (int64_t y = 0; y < clip->height && code == KN_OK; y++)
            if (memcmp(frames + (size_t)((f * clip->height + y) * clip->width) * 3,
                       rgb + (size_t)((y + top) * width + left) * 3, (size_t)clip->width * 3) != 0)
                code =
                    kn_fail(KN_EFORMAT, "%s: frame %lld, row %lld differs", clip->source, (long long)f, (long long)y);
    }
    kn_video_close(video);
    free(frames);
    free(patches);
    return code;
}

static int compare(const char *folder)
{
    KnDataset *dataset;
    KN_TRY(kn_dataset_open(&dataset, &folder, 1));
    for (int64_t i = 0; i < kn_dataset_clip_count(dataset); i++)
        KN_TRY(compare_clip(dataset, i));
    kn_dataset_close(dataset);
    return KN_OK;
}

static int verify(const char *folder)
{
    char *text;
    KN_TRY(kn_dataset_describe(folder, 1, 1, &text));
    printf("%s\n", text);
    free(text);
    KN_TRY(kn_dataset_describe(folder, 1, 0, &text));
    printf("%s", text);
    free(text);
    return KN_OK;
}

static int make(const char *path, const char *size)
{
    int width, height, frames;
    if (sscanf(size, "%dx%dx%d", &width, &height, &frames) != 3)
        return kn_fail(KN_EINPUT, "%s: not WxHxN", size);
    size_t bytes = (size_t)width * (size_t)height * 3;
    uint8_t *rgb = kn_alloc(bytes * (size_t)frames);
    for (size_t i = 0; i < bytes * (size_t)frames; i++)
        rgb[i] = (uint8_t)(i / 7 + i / bytes * 29 + (i % 3) * 60);
    int code = kn_video_write(path, rgb, frames,
                              &(KnVideoWriteOptions){.width = width, .height = height, .fps = 10, .lossless = 1});
    free(rgb);
    return code;
}

int main(int argc, char **argv)
{
    int code = KN_EINPUT;
    const char *action = argc > 2 ? argv[1] : "";
    if (strcmp(action, "prep") == 0)
        code = kn_command_prep(argc - 1, argv + 1);
    else if (strcmp(action, "clips") == 0)
        code = print_clips(argv[2]);
    else if (strcmp(action, "same") == 0)
        code = compare(argv[2]);
    else if (strcmp(action, "verify") == 0)
        code = verify(argv[2]);
    else if (strcmp(action, "make") == 0 && argc > 3)
        code = make(argv[2], argv[3]);
    if (code < 0 && code != KN_END)
        fprintf(stderr, "kinora: error: %s\n", kn_error_message());
    return code < 0 && code != KN_END;
}
