/* One input to clips: read, scale, crop, cut, patchify, store; a patch of frames at a time, so that memory holds one
 * such slab whatever the length of video or clip. Piece k of a video is its frames [k, k + 1) x max_frames, the same in
 * every run, so a run that goes on after a stop knows the pieces it has by number. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "data/patchify.h"
#include "data/prep.h"
#include "data/video_read.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNELS = 3 };

/* The input being worked on. */
typedef struct Work {
    KnPrepWriter *writer;
    const KnPrepInput *input;
    KnVideo *video;
    KnCaptionList captions;
    KnPatchLayout slab_layout;           /* patch[0] frames of the cropped size */
    int64_t scaled_width, scaled_height; /* before cropping */
    uint8_t *slab, *patches;
    int64_t slab_frames; /* filled of the slab */
    int64_t segment;     /* the present piece */
    int64_t clip_frames; /* stored of it */
    int in_clip;
    int64_t frames_read;
    int64_t clips; /* ended in this run */
    const char *reason;
    char *detail;
} Work;

/* ---- shards ---- */

static int open_shard(KnPrepWriter *writer)
{
    KnShardFormat format = {.kind = KN_VALUE_PIXELS, .channels = CHANNELS};
    memcpy(format.patch, writer->settings->patch, sizeof format.patch);
    kn_prep_settings_hash(writer->settings, format.config_hash);
    char *name = kn_format("clips-%05lld.h5", (long long)writer->next_number), *path = kn_path_join(writer->out, name);
    int code = kn_shard_writer_open(&writer->shard, path, &format);
    writer->next_number += writer->number_step;
    writer->has_news = 0;
    free(path);
    free(name);
    return code;
}

int kn_prep_writer_finish(KnPrepWriter *writer)
{
    KnShardWriter *shard = writer->shard;
    writer->shard = NULL;
    if (shard && writer->has_news)
        return kn_shard_writer_finish(shard);
    kn_shard_writer_abandon(shard);
    return KN_OK;
}

void kn_prep_writer_abandon(KnPrepWriter *writer)
{
    kn_shard_writer_abandon(writer->shard);
    writer->shard = NULL;
}

static int shard_is_full(const KnPrepWriter *writer)
{
    return kn_shard_writer_clips(writer->shard) >= writer->clips_per_shard ||
           kn_shard_writer_bytes(writer->shard) >= writer->bytes_per_shard;
}

static int finish_full_shard(KnPrepWriter *writer)
{
    return writer->shard && shard_is_full(writer) ? kn_prep_writer_finish(writer) : KN_OK;
}

/* Makes sure that a shard is open and knows the input. */
static int ensure_shard(Work *work)
{
    KnPrepWriter *writer = work->writer;
    if (writer->shard)
        return KN_OK;
    KN_TRY(open_shard(writer));
    return kn_shard_writer_source(writer->shard, &(KnSource){.path = work->input->path, .bytes = work->input->bytes});
}

/* ---- clips ---- */

static int end_clip(Work *work)
{
    if (!work->in_clip)
        return KN_OK;
    KnPrepWriter *writer = work->writer;
    work->in_clip = 0;
    int keep = work->clip_frames >= writer->settings->min_frames || kn_video_info(work->video)->is_image;
    if (!keep)
        return kn_shard_writer_clip_drop(writer->shard);
    KN_TRY(kn_shard_writer_clip_end(writer->shard, (const char *const *)work->captions.items, work->captions.count));
    work->clips++;
    writer->clips++;
    writer->has_news = 1;
    writer->uncaptioned += work->captions.count == 0;
    writer->tokens += kn_patch_tokens(&work->slab_layout) * (work->clip_frames / work->slab_layout.frames);
    return KN_OK;
}

static int begin_clip(Work *work)
{
    const KnVideoInfo *info = kn_video_info(work->video);
    const KnPatchLayout *layout = &work->slab_layout;
    KN_TRY(finish_full_shard(work->writer));
    KN_TRY(ensure_shard(work));
    KnClip clip = {.grid = {0, layout->height / layout->patch[1], layout->width / layout->patch[2]},
                   .fps = info->fps,
                   .segment = work->segment};
    if (info->fps > 0)
        clip.start_seconds = (double)(work->segment * work->writer->settings->max_frames) / info->fps;
    work->in_clip = 1;
    work->clip_frames = 0;
    return kn_shard_writer_clip_begin(work->writer->shard, &clip);
}

/* Stores a full slab; at the length of a piece the next one begins. */
static int store_slab(Work *work)
{
    if (!work->in_clip)
        KN_TRY(begin_clip(work));
    kn_patchify(&work->slab_layout, work->slab, work->patches);
    KN_TRY(kn_shard_writer_clip_add(work->writer->shard, work->patches, 1));
    work->slab_frames = 0;
    work->clip_frames += work->slab_layout.frames;
    if (work->clip_frames < work->writer->settings->max_frames)
        return KN_OK;
    KN_TRY(end_clip(work));
    work->segment++;
    return KN_OK;
}

/* Crops the scaled frame, centered, into the slab. */
static void take_frame(Work *work, const uint8_t *rgb)
{
    const KnPatchLayout *layout = &work->slab_layout;
    const int64_t left = (work->scaled_width - layout->width) / 2, top = (work->scaled_height - layout->height) / 2;
    const size_t row_bytes = (size_t)layout->width * CHANNELS;
    uint8_t *to = work->slab + (size_t)(work->slab_frames * layout->height) * row_bytes;
    for (int64_t y = 0; y < layout->height; y++)
        memcpy(to + (size_t)y * row_bytes, rgb + (size_t)((y + top) * work->scaled_width + left) * CHANNELS, row_bytes);
    work->slab_frames++;
}

/* Passes over the pieces that finished shards hold, from the present one on. */
static int skip_held(Work *work)
{
    const char *segments = work->input->segments;
    while (work->segment < (int64_t)strlen(segments) && segments[work->segment] == '1') {
        for (int64_t i = 0; i < work->writer->settings->max_frames; i++)
            KN_TRY(kn_video_skip(work->video));
        work->segment++;
    }
    return KN_OK;
}

/* Reads to the end; KN_END is the good outcome. */
static int read_frames(Work *work)
{
    const int is_image = kn_video_info(work->video)->is_image;
    for (;;) {
        const uint8_t *rgb;
        if (!work->in_clip && work->slab_frames == 0)
            KN_TRY(skip_held(work));
        KN_TRY(kn_video_next(work->video, &rgb, NULL));
        work->frames_read++;
        take_frame(work, rgb);
        while (is_image && work->slab_frames < work->slab_layout.frames)
            take_frame(work, rgb); /* a patch that is several frames deep shows the image in each */
        if (work->slab_frames == work->slab_layout.frames)
            KN_TRY(store_slab(work));
    }
}

/* ---- sizes ---- */

static int reject(Work *work, const char *reason, char *detail)
{
    work->reason = reason;
    free(work->detail);
    work->detail = detail;
    return KN_END;
}

/* Scaled down only as far as max_pixels asks, aspect kept, then cropped to whole patches. KN_END: rejected. */
static int choose_size(Work *work)
{
    const KnPrepSettings *settings = work->writer->settings;
    const KnVideoInfo *info = kn_video_info(work->video);
    int64_t width = info->width, height = info->height;
    if (settings->max_pixels > 0 && width * height > settings->max_pixels) {
        double scale = sqrt((double)settings->max_pixels / ((double)width * (double)height));
        width = (int64_t)floor((double)width * scale + 1e-9);
        height = (int64_t)floor((double)height * scale + 1e-9);
    }
    KnPatchLayout *layout = &work->slab_layout;
    *layout = (KnPatchLayout){.frames = settings->patch[0],
                              .height = height - height % settings->patch[1],
                              .width = width - width % settings->patch[2],
                              .channels = CHANNELS,
                              .patch = {settings->patch[0], settings->patch[1], settings->patch[2]},
                              .element_bytes = 1};
    if (layout->height < 1 || layout->width < 1)
        return reject(work, "too small",
                      kn_format("%s: too small: %dx%d pixels, used as %lldx%lld, are less than one patch of %lldx%lld",
                                work->input->path, info->width, info->height, (long long)width, (long long)height,
                                (long long)settings->patch[2], (long long)settings->patch[1]));
    work->scaled_width = width;
    work->scaled_height = height;
    int code = kn_video_set_size(work->video, (int)width, (int)height);
    if (code == KN_EINPUT)
        return reject(work, "too large", kn_format("%s; ask for fewer with --max-pixels", kn_error_message()));
    KN_TRY(code);
    size_t bytes = (size_t)(layout->frames * layout->height * layout->width) * CHANNELS;
    code = kn_alloc_large((void **)&work->slab, bytes, "the frames of a patch");
    if (code == KN_OK)
        code = kn_alloc_large((void **)&work->patches, bytes, "the patches of a frame");
    return code < 0 ? kn_fail_prefix(code, "%s", work->input->path) : KN_OK;
}

/* ---- the input ---- */

/* KN_END when all was read or the input is rejected; other codes end the run. */
static int work_through(Work *work)
{
    const KnPrepSettings *settings = work->writer->settings;
    KnVideoFault fault;
    int64_t bytes;
    if (kn_file_exists(work->input->path) &&
        kn_file_size(work->input->path, &bytes) < 0) /* opening a pipe would wait */
        return reject(work, kn_video_fault_name(KN_VIDEO_FAULT_UNREADABLE), kn_strdup(kn_error_message()));
    const KnVideoOptions options = {.fps = settings->fps, .threads = work->writer->decoder_threads};
    int code = kn_captions_find(work->writer->captions, work->input->path, work->input->link, &work->captions);
    if (code == KN_EFORMAT || code == KN_EIO)
        return reject(work, "bad caption file", kn_strdup(kn_error_message()));
    KN_TRY(code);
    code = kn_video_open(&work->video, work->input->path, &options, &fault);
    if (code == KN_EFORMAT || code == KN_EIO)
        return reject(work, kn_video_fault_name(fault), kn_strdup(kn_error_message()));
    KN_TRY(code);
    KN_TRY(choose_size(work));
    code = read_frames(work);
    if (code == KN_EFORMAT) { /* pictures that cannot be converted: what came before them stays */
        code = KN_END;
        if (work->segment == 0 && !work->in_clip)
            return reject(work, "unreadable", kn_strdup(kn_error_message()));
    }
    return code;
}

/* Ends what is open, so that the input's row can be closed. */
static int conclude(Work *work)
{
    KN_TRY(end_clip(work));
    int64_t clips = work->clips;
    for (const char *segment = work->input->segments; *segment; segment++)
        clips += *segment == '1';
    if (clips == 0 && !work->reason)
        reject(work, "too short",
               kn_format("%s: too short: frames: %lld, a clip needs %lld", work->input->path,
                         (long long)work->frames_read, (long long)work->writer->settings->min_frames));
    work->writer->rejects += clips == 0;
    KN_TRY(ensure_shard(work));
    char *rejected = clips > 0 ? kn_strdup("") : kn_prep_rejected(work->reason, work->detail);
    work->writer->has_news |= clips > 0 || strcmp(rejected, work->input->rejected) != 0;
    free(rejected);
    kn_shard_writer_source_end(work->writer->shard,
                               &(KnSource){.reason = clips > 0 ? "" : work->reason,
                                           .detail = clips > 0 ? "" : work->detail,
                                           .damaged = work->video ? kn_video_damaged(work->video) : 0,
                                           .clips = clips,
                                           .complete = 1});
    return KN_OK;
}

int kn_prep_add(KnPrepWriter *writer, const KnPrepInput *input)
{
    Work work = {.writer = writer, .input = input};
    int code = finish_full_shard(writer);
    if (code == KN_OK && writer->shard)
        code = kn_shard_writer_source(writer->shard, &(KnSource){.path = input->path, .bytes = input->bytes});
    if (code == KN_OK)
        code = work_through(&work);
    if (code == KN_END)
        code = conclude(&work);
    kn_video_close(work.video);
    kn_caption_list_clear(&work.captions);
    kn_free_large(work.slab);
    kn_free_large(work.patches);
    free(work.detail);
    return code;
}
