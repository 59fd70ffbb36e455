/* What a generated video leaves on disk: the video, and next to it NAME.json with all that made it. */
#ifndef KN_INFER_OUTPUT_H
#define KN_INFER_OUTPUT_H

#include "core/base/hash.h"
#include "dist/model_file.h"
#include "infer/request.h"

/* Finds out before hours of denoising whether the video and its JSON can be written: makes folders, tries the suffix,
 * the size, the encoder and the permission, and leaves nothing. */
int kn_output_check(const KnRequest *request);

/* Writes the video; `comment` goes into its metadata. A folder appears whole where there was none; in one that was
 * there the frames are replaced. */
int kn_output_video(const KnRequest *request, const uint8_t *pixels, const char *comment);

/* Both of them, for a model that was opened from a file, and computed on this. */
int kn_output_write(const KnRequest *request, const KnModelFile *file, const KnBackend *backend, const uint8_t *pixels);

/* What its bits depend on: the kind of the device, or the instruction set. */
const char *kn_output_maker(const KnBackend *backend);

/* "dir/name.json" for "dir/name.mp4", "dir/frames.json" for "dir/frames/"; free() it. */
char *kn_output_json_path(const char *out);

/* SHA-256, in hex, of the video, or of all its frames' files one after another. KN_EIO. */
int kn_output_hash(const char *out, int64_t frames, char hash[KN_SHA256_HEX_BYTES]);

/* Whether the video stands as asked: its NAME.json has the same request, given pictures by their content, and the same
 * model, and the video is the one it describes. If not, `why` says what is otherwise; "" where there is no NAME.json.
 */
enum { KN_OUTPUT_WHY_BYTES = 80 };
int kn_output_is_made(const KnRequest *request, const KnModelFile *file, char why[KN_OUTPUT_WHY_BYTES]);

/* What a NAME.json says of the model that made its video, beside the request. Strings live in the arena. */
typedef struct KnOutputOrigin {
    const char *model, *model_hash, *program, *instructions;
    const char *hash; /* of the video; NULL where it is not kept */
} KnOutputOrigin;

/* Reads a NAME.json back; `request->out` becomes the video beside it. KN_EFORMAT where it is none of ours. */
int kn_output_read(const char *path, KnRequest *request, KnOutputOrigin *origin, KnArena *arena);

#endif
