/* What a path holds: a table of recognizers, asked in turn, the first that knows it tells. */
#ifndef KN_INFER_INSPECT_H
#define KN_INFER_INSPECT_H

#include <jansson.h>

/* A description of `path` as text or as a JSON object; free() it. `verify` also checks every hash there is, and reads
 * everything that has none. KN_EINPUT for what nobody knows; KN_EIO, KN_EFORMAT with the damage. */
int kn_inspect(const char *path, int verify, int json, char **description);

/* Describers of the kinds that are told here; each gives a new JSON object whose first keys are "kind" and "path". */
int kn_inspect_run(const char *path, int verify, json_t **object);
int kn_inspect_model(const char *path, int verify, json_t **object);
int kn_inspect_safetensors(const char *path, int verify, json_t **object);
int kn_inspect_video(const char *path, int verify, json_t **object);
int kn_inspect_video_json(const char *path, int verify, json_t **object); /* the NAME.json beside a video */

#endif
