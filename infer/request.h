/* Requests: everything that decides the bytes of one generated video, from wherever it is asked.
 *
 * Every setting is a row of one table (infer/request.c), which gives it its name in JSON, its range, and the way it is
 * layered: what is unset in a higher layer shows through from a lower one. The layers of `kinora generate`, lowest
 * first: built-in values, the model's own configuration, the command line, a line of a prompts file. A finished video's
 * FILE.json is the same table written out, and --from reads it back. */
#ifndef KN_INFER_REQUEST_H
#define KN_INFER_REQUEST_H

#include "core/base/args.h"
#include "core/base/config.h"
#include "core/base/memory.h"
#include "core/graph/graph.h"

#include <jansson.h>

/* Strings are borrowed: from argv or an arena. Unset: NULL, KN_UNSET, NAN. */
enum { KN_UNSET = -1 };
typedef struct KnRequest {
    const char *prompt, *negative;
    const char *out;                               /* .mp4, .gif, .png or a folder, see data/video_write.h */
    const char *first_frame, *last_frame, *extend; /* images and a video whose patches are given */
    const char *first_frame_hash, *last_frame_hash, *extend_hash; /* SHA-256 of those files, hex; in FILE.json */
    int64_t extend_frames; /* of `extend`, its last ones; 0 = as many as leave half to make */
    int64_t seed;
    KnArgSize size;
    int64_t frames, steps, upscale, crf; /* crf 0 = chosen by size */
    double fps, guidance, shift;
    const char *solver, *spacing, *dtype;
    int lossless, full_colour;
} KnRequest;

void kn_request_init(KnRequest *request); /* everything unset */

/* What `from` sets replaces what `to` has. */
void kn_request_overlay(KnRequest *to, const KnRequest *from);

/* The built-in values under those of a run's configuration (its sample.* keys; NULL: none). Strings that must live on
 * are copied to the arena. */
void kn_request_defaults(KnRequest *request, const KnConfig *config, KnArena *arena);

/* Sets what the JSON object names; `place` ("FILE:LINE") begins the sentence about an unknown key, a wrong type or an
 * impossible value. Keys of `ignored` (NULL-terminated; may be NULL) are passed over. */
int kn_request_from_json(KnRequest *request, const json_t *object, const char *const *ignored, const char *place,
                         KnArena *arena);

/* Sets the field of this JSON name from a text, as in a table's cell: "3", "0.5", "true". KN_END where there is no such
 * field; sentences as of kn_request_from_json. */
int kn_request_set_text(KnRequest *request, const char *key, const char *text, const char *place, KnArena *arena);

/* Adds every set field to the object. */
void kn_request_to_json(const KnRequest *request, json_t *object);

/* The JSON name of the first field in which two requests differ; NULL where they are the same. */
const char *kn_request_difference(const KnRequest *a, const KnRequest *b);

/* Checks the ranges of a request whose layers are all in place, and that it has a prompt. */
int kn_request_check(const KnRequest *request);

KnDtype kn_request_dtype(const KnRequest *request);

#endif
