/* Captions: which texts belong to a video.
 *
 * Two places are looked at, and what both say is put together (tables first, in order, without repeats):
 *   - caption files given by the user: CSV (RFC 4180) or JSONL, with `path` or `video` and `caption` or `text`;
 *     several rows for a video are several captions; `caption` in JSONL may be a list;
 *   - sidecars next to the video: NAME.txt (each non-empty line a caption) and NAME.json (an object with `caption` or
 *     `text`, a string or a list; or a list of strings).
 * A row's path counts from the caption file's folder, or from the current folder, or is the end of the video's path. */
#ifndef KN_DATA_CAPTIONS_H
#define KN_DATA_CAPTIONS_H

#include <stdint.h>

typedef struct KnCaptions KnCaptions;

typedef struct KnCaptionList {
    int64_t count;
    char **items; /* UTF-8, trimmed, never empty */
} KnCaptionList;

KnCaptions *kn_captions_create(void);
void kn_captions_destroy(KnCaptions *captions); /* NULL is fine */

/* Adds a caption file, by suffix: .csv, .tsv, .jsonl. A malformed line is KN_EFORMAT with `file:line: what`. */
int kn_captions_load(KnCaptions *captions, const char *path);

/* The captions of the video at the absolute path `video`, and what its other name `link` adds to them ("" if it has
 * none); release with kn_caption_list_clear. None is no error. */
int kn_captions_find(KnCaptions *captions, const char *video, const char *link, KnCaptionList *list);
void kn_caption_list_clear(KnCaptionList *list);

#endif
