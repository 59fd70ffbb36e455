/* index.json of a data set, made from its shards alone, and the histogram of clip shapes. Private to this room. */
#ifndef KN_DATA_INDEX_H
#define KN_DATA_INDEX_H

#include <jansson.h>
#include <stdint.h>

/* Clips by shape. Starts as {0}. */
typedef struct KnShapes {
    struct KnShape {
        int64_t frames, height, width, clips, tokens;
    } * items;
    int64_t count, capacity;
} KnShapes;

void kn_shapes_add(KnShapes *shapes, int64_t frames, int64_t height, int64_t width, int64_t tokens);
json_t *kn_shapes_json(KnShapes *shapes); /* sorted, most clips first; releases `shapes` */

/* A JSON string of a text that need not be UTF-8: other bytes become \xNN. */
json_t *kn_json_text(const char *text);

/* The shards of a folder ("*.h5"), sorted by name: `names` is a fresh array of fresh strings. */
int kn_index_list_shards(const char *folder, char ***names, int *count);

/* Writes index.json of an unfinished data set: the settings and their hash, nothing else. */
int kn_index_begin(const char *folder, const json_t *settings, const char *config_hash);

/* Reads all shards of the folder, writes the complete index.json and hands it out (json_decref it). The first reject's
 * sentence is in index["rejects"][0]. With no clip at all nothing is written. */
int kn_index_complete(const char *folder, const json_t *settings, const char *config_hash, json_t **index);

#endif
