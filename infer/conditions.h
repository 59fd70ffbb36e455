/* Given patches: a first frame, a last frame, or the end of a video to be continued.
 *
 * An image stands still for the frames of one patch: with patches of pt frames the first (or last) pt frames of the
 * result show it. A video's last frames become the result's first ones. Pictures are scaled until they cover the
 * result's size, keeping their aspect, and what juts out is cut off on both sides. */
#ifndef KN_INFER_CONDITIONS_H
#define KN_INFER_CONDITIONS_H

#include "infer/request.h"
#include "infer/sampler.h"

/* Fills clip->given and clip->given_patches (NULL where the request gives nothing) for a clip whose size is set, and
 * the request's hashes of the files it read. A hash that the request has already must agree. KN_EINPUT, KN_EIO or
 * KN_EFORMAT name the file. Release with kn_conditions_clear. */
int kn_conditions_load(const KnModelConfig *model, KnRequest *request, KnArena *arena, KnSampleClip *clip);
void kn_conditions_clear(KnSampleClip *clip);

#endif
