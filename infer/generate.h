/* From requests to pixels: the one way in which every command of this room makes clips.
 *
 * Requests of the same settings are denoised together, as many at once as fill a pass; sizes and lengths may be mixed.
 * A request for one frame is the first frame of a clip as short as the patch allows. Finished clips are handed over
 * pass by pass, so that memory holds one pass and an interrupted job keeps what it has made. */
#ifndef KN_INFER_GENERATE_H
#define KN_INFER_GENERATE_H

#include "dist/model_file.h"
#include "infer/request.h"
#include "infer/sampler.h"

/* Takes clip `index`: u8 [frames][height][width][3], valid during the call. A negative code ends the job. Of several
 * ranks all take every clip, and `place` counts the clips of a pass: rank place % ranks is the one to write it, so that
 * files are written side by side. */
typedef int (*KnClipTaker)(void *context, int index, int place, const uint8_t *pixels);

typedef struct KnGenerateJob {
    const KnModel *model;
    const KnParameterValues *weights; /* whole, or what this rank of `layout` holds */
    const KnLayout *layout;           /* ranks that make all clips together and call with equal jobs: what fails on
                                         one fails on all, with its sentence; NULL = this process alone */
    KnBackend *backend;               /* what computes */
    KnRequest *requests;              /* checked and complete; what their files turn out to be is filled in */
    int count;
    KnArena *arena; /* of what is filled in */
    int silent;     /* no progress line */
    KnClipTaker take;
    void *context;
    /* Told of a clip that every rank has taken; NULL: nobody asks. A negative code ends the job. */
    int (*made)(void *context, int index);
    /* Told of a request that cannot be made, with its sentence recorded; the others go on unless it returns a negative
     * code. NULL: the first one ends the job. */
    int (*fail)(void *context, int index, int code);
} KnGenerateJob;

/* The lowest layer for this model: its run's sample.* keys where it has a configuration, else built-in values. */
int kn_generate_defaults(const KnModelFile *file, KnRequest *request, KnArena *arena);

/* What the requests and the model alone say is impossible, without opening a file: KN_EINPUT for sizes that do not fit
 * the patch (with near ones) and values out of range; begins with the request's `out` where there are several. */
int kn_generate_check_requests(const KnGenerateJob *job);

/* That, and given pictures: all that can be refused before anything is denoised. */
int kn_generate_check(const KnGenerateJob *job);
int kn_generate(const KnGenerateJob *job); /* after kn_generate_check */

/* ---- for those who choose themselves what is made when ---- */

/* A pass that is being filled; starts as {.enough = ...}. In tokens, with guidance's counted twice. */
typedef struct KnPassRoom {
    const KnRequest *first;
    int64_t enough, taken;
} KnPassRoom;

/* Whether the request may join: the first always may, others of the same settings until there is enough, where a pass
 * (KN_SAMPLE_PASS_TOKENS for each replica of the layout) has room for them. */
int kn_pass_has_room(const KnGenerateJob *job, const KnPassRoom *room, int index);
void kn_pass_take(const KnGenerateJob *job, KnPassRoom *room, int index);

/* Of one request: its tokens, those with guidance's counted twice, and the latter times the model's evaluations. After
 * kn_generate_check_requests. */
typedef struct KnRequestCost {
    int64_t tokens, pass_tokens, work;
} KnRequestCost;
KnRequestCost kn_generate_cost(const KnGenerateJob *job, int index);

/* Makes these requests, which fit one pass. A video's bits do not depend on those beside it. */
int kn_generate_pass(const KnGenerateJob *job, KnSampler *sampler, const int *indices, int count,
                     KnSampleProgress progress, void *context);

#endif
