/* Patchify: frames to patches and back, exactly.
 *
 * Frames [T, H, W, C] (channels last) are cut into boxes of patch = (pt, ph, pw). Tokens are in (t, y, x) order, and
 * the elements of one patch are flattened as (C, pt, ph, pw): the order in which Wan's patch embedding (a Conv3d weight
 * [hidden, C, pt, ph, pw]) expects them. Wan's output projection orders them (pt, ph, pw, C); that is the model's
 * matter. */
#ifndef KN_DATA_PATCHIFY_H
#define KN_DATA_PATCHIFY_H

#include <stddef.h>
#include <stdint.h>

typedef struct KnPatchLayout {
    int64_t frames, height, width, channels; /* of the frames; the first three are multiples of `patch` */
    int64_t patch[3];                        /* pt, ph, pw */
    size_t element_bytes;                    /* 1 for u8 pixels, 2 for bf16, 4 for f32 */
} KnPatchLayout;

int64_t kn_patch_tokens(const KnPatchLayout *layout);
int64_t kn_patch_dim(const KnPatchLayout *layout); /* C * pt * ph * pw */

/* `patches` is [tokens, patch_dim]. The two are inverses. Arrays must not overlap. */
void kn_patchify(const KnPatchLayout *layout, const void *frames, void *patches);
void kn_unpatchify(const KnPatchLayout *layout, const void *patches, void *frames);

#endif
