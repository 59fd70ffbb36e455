/* The parts of `kinora prep`, for each other. The command (prep.c) divides inputs among ranks; prep_inputs.c finds them
 * and what is left of them; prep_clips.c turns one input into clips of shards. */
#ifndef KN_DATA_PREP_H
#define KN_DATA_PREP_H

#include "core/base/args.h"
#include "data/captions.h"
#include "data/shard.h"

#include <jansson.h>

/* What decides the clips; equal settings and inputs give equal clips. */
typedef struct KnPrepSettings {
    double fps;         /* 0 = each video's own */
    int64_t max_frames; /* of a clip; a multiple of patch[0] */
    int64_t min_frames; /* shorter clips are left out */
    int64_t max_pixels; /* of a frame; 0 = keep every size */
    int64_t patch[3];
    char captions_hash[65]; /* of the caption files; "" without */
} KnPrepSettings;

json_t *kn_prep_settings_json(const KnPrepSettings *settings);
void kn_prep_settings_hash(const KnPrepSettings *settings, char hex[65]);

/* One video or image to prepare. */
typedef struct KnPrepInput {
    char *path; /* absolute, without links */
    char *link; /* the absolute name under which it was found, where that is a link; else "" */
    int64_t bytes;
    char *segments; /* "1101...": which of its pieces finished shards hold; what is not reached is not held */
    char *rejected; /* reason and sentence of the last run, if it gave no clip then; else "" */
    int64_t clips;  /* how many pieces give a clip; -1 while it was never read to its end, or gave none */
    int done;       /* nothing is left to do */
} KnPrepInput;

typedef struct KnPrepInputs {
    KnPrepInput *items; /* sorted by path, each once */
    int64_t count, capacity;
    int64_t next_number; /* the first free shard number */
    int64_t clips_done;
} KnPrepInputs;

void kn_prep_inputs_clear(KnPrepInputs *inputs);

/* Walks `names` (files, and folders recursively for known suffixes; `out` itself is left out). KN_EIO for a name that
 * does not exist, KN_EINPUT when nothing is found. */
int kn_prep_find(KnPrepInputs *inputs, const KnArgList *names, const char *out);

/* Notes in `inputs` what the shards in `out` already cover; those that gave no clip are tried again. KN_EINPUT where an
 * input has changed since it gave clips. */
int kn_prep_resume(KnPrepInputs *inputs, const char *out);

/* What KnPrepInput.rejected says of an input. */
char *kn_prep_rejected(const char *reason, const char *detail);

/* Everything above as text, for the other ranks, and back. */
char *kn_prep_inputs_text(const KnPrepInputs *inputs);
int kn_prep_inputs_parse(KnPrepInputs *inputs, const char *text);

/* One rank's series of shards. */
typedef struct KnPrepWriter {
    const char *out;
    const KnPrepSettings *settings;
    KnCaptions *captions;
    int64_t clips_per_shard, bytes_per_shard;
    int64_t next_number, number_step; /* of shards */
    int decoder_threads;
    KnShardWriter *shard; /* NULL until needed */
    int has_news;         /* the open shard says something that finished ones do not */
    int64_t clips, tokens, rejects, uncaptioned;
} KnPrepWriter;

/* Adds what is left of one input. An input that gives no clip is recorded with its reason, and is no failure. */
int kn_prep_add(KnPrepWriter *writer, const KnPrepInput *input);
int kn_prep_writer_finish(KnPrepWriter *writer); /* completes the open shard */
void kn_prep_writer_abandon(KnPrepWriter *writer);

#endif
