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

/* Takes clip `index`: u8 [frames][height][width][3], valid during the call. A negative code ends the job. */
typedef int (*KnClipTaker)(void *context, int index, const uint8_t *pixels);

typedef struct KnGenerateJob {
    const KnModel *model;
    const KnParameterValues *weights;
    KnRequest *requests; /* checked and complete; what their files turn out to be is filled in */
    int count;
    KnArena *arena; /* of what is filled in */
    int silent;     /* no progress line */
    KnClipTaker take;
    void *context;
} KnGenerateJob;

/* The lowest layer for this model: its run's sample.* keys where it has a configuration, else built-in values. */
int kn_generate_defaults(const KnModelFile *file, KnRequest *request, KnArena *arena);

/* What can be refused is refused before anything is denoised: KN_EINPUT for sizes that do not fit the patch (with near
 * ones), impossible settings and given pictures; begins with the request's `out` where there are several. */
int kn_generate_check(const KnGenerateJob *job);
int kn_generate(const KnGenerateJob *job); /* after kn_generate_check */

#endif
