/* Shards: HDF5 files of clips cut into patches.
 *
 * One file has one writer. It is built under a temporary name, completed, fsynced and renamed, so a file with its
 * final name is whole. `docs/formats.md` gives the layout; in short: /patches [tokens, patch_dim] with each clip's
 * patches contiguous in (t, y, x) order, /clip columns, /caption and /source strings as bytes + offsets, attributes.
 * Any HDF5 tool reads it. A 512-byte user block in front and a trailer behind carry the file's length and a SHA-256 of
 * every byte that is not patch data, checked before HDF5 sees the file; patch data has HDF5's Fletcher32 (checked at
 * every read) and a SHA-256 for each clip (checked on request). So any damaged byte is found by reading it.
 *
 * A reader may be used from several threads at once (calls wait for each other: HDF5 itself is single-threaded). */
#ifndef KN_DATA_SHARD_H
#define KN_DATA_SHARD_H

#include <stddef.h>
#include <stdint.h>

enum { KN_SHARD_VERSION = 1 };

typedef enum KnValueKind {
    KN_VALUE_PIXELS, /* u8, 0..255, RGB */
    KN_VALUE_LATENTS /* bf16 as u16 */
} KnValueKind;
const char *kn_value_kind_name(KnValueKind kind); /* "pixels", "latents" */

/* What all shards of a data set share. */
typedef struct KnShardFormat {
    KnValueKind kind;
    int64_t patch[3]; /* pt, ph, pw */
    int64_t channels;
    int64_t patch_dim;    /* channels * pt * ph * pw; filled by the library */
    size_t element_bytes; /* filled by the library */
    char autoencoder[96]; /* which one made the latents; "" for pixels */
    char config_hash[65]; /* hex SHA-256 of the settings that made the clips */
} KnShardFormat;

/* One clip. Strings belong to the shard or data set. */
typedef struct KnClip {
    int64_t tokens;                /* grid[0] * grid[1] * grid[2] */
    int64_t grid[3];               /* frames, height, width in patches */
    int64_t frames, height, width; /* in pixels, what the patches unpatchify to */
    double fps;                    /* 0 for an image */
    double start_seconds;          /* where it begins in its source */
    const char *source;            /* absolute path of the video it came from */
    int64_t segment;               /* 0, 1, ...: which consecutive piece of the source */
    int64_t captions;              /* number of captions */
    uint8_t sha256[32];            /* of its patches as stored */
} KnClip;

/* One input that a shard covers: its clips that are here, and whether it is finished. */
typedef struct KnSource {
    const char *path;
    const char *reason; /* "" or why it gave no clip: "unreadable", "too short", ... */
    const char *detail; /* the sentence that goes with the reason, or "" */
    int64_t bytes;      /* its size when read */
    int64_t damaged;    /* packets and frames skipped */
    int64_t clips;      /* of the whole input, over all shards, once complete */
    int complete;       /* it was read to its end */
} KnSource;

/* ---- writing ---- */

typedef struct KnShardWriter KnShardWriter;

/* Starts `path` under a temporary name in the same folder. */
int kn_shard_writer_open(KnShardWriter **writer, const char *path, const KnShardFormat *format);

/* Following clips belong to this source. The writer copies the strings; `complete`, `reason`, `detail` and `damaged`
 * can be given later by kn_shard_writer_source_end. */
int kn_shard_writer_source(KnShardWriter *writer, const KnSource *source);
void kn_shard_writer_source_end(KnShardWriter *writer, const KnSource *source);

/* One clip: begin with its grid's height and width, fps, start_seconds and segment (the rest of `clip` is ignored),
 * add whole frames of patches as they come (`grid_frames` x grid height x grid width rows), then end it with its
 * captions, or drop it as if it had never begun. */
int kn_shard_writer_clip_begin(KnShardWriter *writer, const KnClip *clip);
int kn_shard_writer_clip_add(KnShardWriter *writer, const void *patches, int64_t grid_frames);
int kn_shard_writer_clip_end(KnShardWriter *writer, const char *const *captions, int64_t caption_count);
int kn_shard_writer_clip_drop(KnShardWriter *writer);

int64_t kn_shard_writer_clips(const KnShardWriter *writer); /* ended so far */
int64_t kn_shard_writer_sources(const KnShardWriter *writer);
int64_t kn_shard_writer_bytes(const KnShardWriter *writer); /* of patches so far */

/* Completes, fsyncs and renames the file, and frees the writer, also on failure (then nothing is left behind). */
int kn_shard_writer_finish(KnShardWriter *writer);
void kn_shard_writer_abandon(KnShardWriter *writer); /* NULL is fine */

/* ---- reading ---- */

typedef struct KnShard KnShard;

/* Opens and checks every invariant; KN_EIO or KN_EFORMAT with one sentence that names the file. */
int kn_shard_open(KnShard **shard, const char *path);
void kn_shard_close(KnShard *shard); /* NULL is fine */

const char *kn_shard_path(const KnShard *shard);
const char *kn_shard_tool(const KnShard *shard); /* "kinora 0.1.0": the program that wrote it */
const KnShardFormat *kn_shard_format(const KnShard *shard);
int64_t kn_shard_tokens(const KnShard *shard);
int64_t kn_shard_clip_count(const KnShard *shard);
int64_t kn_shard_source_count(const KnShard *shard);
const KnClip *kn_shard_clip(const KnShard *shard, int64_t clip);
const char *kn_shard_caption(const KnShard *shard, int64_t clip, int64_t which); /* which < captions of the clip */
const KnSource *kn_shard_source(const KnShard *shard, int64_t source);

/* Reads a clip's patches: tokens * patch_dim * element_bytes bytes. Damage to them is KN_EFORMAT. */
int kn_shard_read_clip(KnShard *shard, int64_t clip, void *patches);

/* Gives the file handle back until the next read; the tables stay. */
void kn_shard_rest(KnShard *shard);

/* Reads everything and compares every hash. */
int kn_shard_verify(KnShard *shard);

/* Says what `path` holds, as text or as a JSON object (free() it); `verify` also checks every hash. */
int kn_shard_describe(const char *path, int verify, int json, char **description);

#endif
