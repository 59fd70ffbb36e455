/* The tables of a shard as they lie in the file: one place that names every column, for writer and reader.
 * Private to shard*.c. */
#ifndef KN_DATA_SHARD_TABLE_H
#define KN_DATA_SHARD_TABLE_H

#include "core/base/text.h"
#include "data/shard.h"

#include <hdf5.h>

/* A row of /clip. */
typedef struct KnClipRow {
    int64_t first_token, grid_frames, grid_height, grid_width, frames, height, width;
    int64_t source, segment, first_caption, captions;
    double fps, start_seconds;
    uint8_t sha256[32];
} KnClipRow;

/* A row of /source, without its strings. */
typedef struct KnSourceRow {
    int64_t bytes, damaged, clips, complete;
} KnSourceRow;

typedef enum KnColumnType { KN_COLUMN_I64, KN_COLUMN_F64, KN_COLUMN_SHA256 } KnColumnType;

typedef struct KnColumn {
    const char *name; /* path in the file */
    KnColumnType type;
    size_t offset; /* in the row */
} KnColumn;

extern const KnColumn kn_clip_columns[];
extern const int kn_clip_column_count;
extern const KnColumn kn_source_columns[];
extern const int kn_source_column_count;

/* Strings as bytes and offsets: string i is bytes[offsets[i], offsets[i + 1]). */
typedef struct KnStrings {
    KnText bytes;
    int64_t *offsets; /* count + 1 of them, once there is a string */
    int64_t count, capacity;
} KnStrings;

void kn_strings_add(KnStrings *strings, const char *text);
void kn_strings_clear(KnStrings *strings);

/* HDF5 is not reentrant: every use of it stands between these two. The first also keeps its messages off the terminal.
 */
void kn_h5_lock(void);
void kn_h5_unlock(void);

/* All below return 0, or -1 where HDF5 refused; the caller makes the sentence. */
int kn_h5_write_columns(hid_t file, const KnColumn *columns, int count, const void *rows, int64_t row_count,
                        size_t row_bytes);
int kn_h5_write_strings(hid_t file, const char *group, const char *name, const KnStrings *strings);
int kn_h5_write_integers(hid_t file, const char *attribute, const int64_t *values, int64_t count);
int kn_h5_write_text(hid_t file, const char *attribute, const char *text);

/* Readers: KN_EFORMAT with the file's and the item's name. `limit` bounds what may be allocated (the file's size). */
int kn_h5_read_columns(hid_t file, const char *path, const KnColumn *columns, int count, int64_t limit, void **rows,
                       int64_t *row_count, size_t row_bytes);
int kn_h5_read_strings(hid_t file, const char *path, const char *group, const char *name, int64_t limit,
                       KnStrings *strings);
int kn_h5_read_integers(hid_t file, const char *path, const char *attribute, int64_t *values, int64_t count);
int kn_h5_read_text(hid_t file, const char *path, const char *attribute, char *text, size_t room);

#endif
