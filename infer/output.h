/* What a generated video leaves on disk: the video, and next to it NAME.json with all that made it. */
#ifndef KN_INFER_OUTPUT_H
#define KN_INFER_OUTPUT_H

#include "dist/model_file.h"
#include "infer/request.h"

/* Finds out before hours of denoising whether the video and its JSON can be written: makes folders, tries the suffix,
 * the size, the encoder and the permission, and leaves nothing. */
int kn_output_check(const KnRequest *request);

/* Writes the video; `comment` goes into its metadata. */
int kn_output_video(const KnRequest *request, const uint8_t *pixels, const char *comment);

/* Both of them, for a model that was opened from a file. */
int kn_output_write(const KnRequest *request, const KnModelFile *file, const uint8_t *pixels);

/* "dir/name.json" for "dir/name.mp4", "dir/frames.json" for "dir/frames/"; free() it. */
char *kn_output_json_path(const char *out);

/* What a NAME.json says of the model that made its video, beside the request. Strings live in the arena. */
typedef struct KnOutputOrigin {
    const char *model, *model_hash, *program, *instructions;
} KnOutputOrigin;

/* Reads a NAME.json back; `request->out` becomes the video beside it. KN_EFORMAT where it is none of ours. */
int kn_output_read(const char *path, KnRequest *request, KnOutputOrigin *origin, KnArena *arena);

#endif
