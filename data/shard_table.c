/* Columns, strings and attributes of a shard in HDF5: rows of structs in memory, one data set a column in the file. */
#include "data/shard_table.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMN_CHUNK = 4096, BYTES_CHUNK = 65536 };

const KnColumn kn_clip_columns[] = {
    {"/clip/first_token", KN_COLUMN_I64, offsetof(KnClipRow, first_token)},
    {"/clip/grid_frames", KN_COLUMN_I64, offsetof(KnClipRow, grid_frames)},
    {"/clip/grid_height", KN_COLUMN_I64, offsetof(KnClipRow, grid_height)},
    {"/clip/grid_width", KN_COLUMN_I64, offsetof(KnClipRow, grid_width)},
    {"/clip/frames", KN_COLUMN_I64, offsetof(KnClipRow, frames)},
    {"/clip/height", KN_COLUMN_I64, offsetof(KnClipRow, height)},
    {"/clip/width", KN_COLUMN_I64, offsetof(KnClipRow, width)},
    {"/clip/source", KN_COLUMN_I64, offsetof(KnClipRow, source)},
    {"/clip/segment", KN_COLUMN_I64, offsetof(KnClipRow, segment)},
    {"/clip/first_caption", KN_COLUMN_I64, offsetof(KnClipRow, first_caption)},
    {"/clip/captions", KN_COLUMN_I64, offsetof(KnClipRow, captions)},
    {"/clip/fps", KN_COLUMN_F64, offsetof(KnClipRow, fps)},
    {"/clip/start_seconds", KN_COLUMN_F64, offsetof(KnClipRow, start_seconds)},
    {"/clip/sha256", KN_COLUMN_SHA256, offsetof(KnClipRow, sha256)},
};
const int kn_clip_column_count = sizeof kn_clip_columns / sizeof kn_clip_columns[0];

const KnColumn kn_source_columns[] = {
    {"/source/bytes", KN_COLUMN_I64, offsetof(KnSourceRow, bytes)},
    {"/source/damaged", KN_COLUMN_I64, offsetof(KnSourceRow, damaged)},
    {"/source/clips", KN_COLUMN_I64, offsetof(KnSourceRow, clips)},
    {"/source/complete", KN_COLUMN_I64, offsetof(KnSourceRow, complete)},
};
const int kn_source_column_count = sizeof kn_source_columns / sizeof kn_source_columns[0];

static const size_t type_bytes[] = {8, 8, 32};

static hid_t memory_type(KnColumnType type)
{
    return type == KN_COLUMN_I64 ? H5T_NATIVE_INT64 : type == KN_COLUMN_F64 ? H5T_NATIVE_DOUBLE : H5T_NATIVE_UINT8;
}

static hid_t file_type(KnColumnType type)
{
    return type == KN_COLUMN_I64 ? H5T_STD_I64LE : type == KN_COLUMN_F64 ? H5T_IEEE_F64LE : H5T_STD_U8LE;
}

/* ---- the lock ---- */

static pthread_mutex_t h5_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t h5_once = PTHREAD_ONCE_INIT;

static void h5_start(void)
{
    H5dont_atexit(); /* every file is closed by us; one that could not be must not be tried again at exit */
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void kn_h5_lock(void)
{
    pthread_mutex_lock(&h5_mutex);
    pthread_once(&h5_once, h5_start);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* a thread-safe HDF5 keeps it for each thread */
}

void kn_h5_unlock(void)
{
    pthread_mutex_unlock(&h5_mutex);
}

/* ---- strings ---- */

void kn_strings_add(KnStrings *strings, const char *text)
{
    if (strings->count + 2 > strings->capacity) {
        strings->capacity = strings->capacity ? 2 * strings->capacity : 16;
        strings->offsets = kn_realloc(strings->offsets, (size_t)strings->capacity * sizeof *strings->offsets);
    }
    if (strings->count == 0)
        strings->offsets[0] = 0;
    kn_text_append(&strings->bytes, text);
    strings->offsets[++strings->count] = (int64_t)strings->bytes.length;
}

void kn_strings_clear(KnStrings *strings)
{
    kn_text_clear(&strings->bytes);
    free(strings->offsets);
    *strings = (KnStrings){0};
}

/* ---- writing ---- */

/* A whole data set with Fletcher32, [rows] or [rows, width]; an empty one cannot have chunks, hence no checksum. */
static int write_array(hid_t file, const char *name, hid_t stored, hid_t given, const void *values, int64_t rows,
                       int64_t width, int64_t chunk)
{
    hsize_t extent[2] = {(hsize_t)rows, (hsize_t)width}, block[2] = {(hsize_t)(rows < chunk ? rows : chunk), extent[1]};
    int rank = width > 1 ? 2 : 1;
    hid_t space = H5Screate_simple(rank, extent, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);
    hid_t links = H5Pcreate(H5P_LINK_CREATE);
    int ok = space >= 0 && plist >= 0 && links >= 0 && H5Pset_create_intermediate_group(links, 1) >= 0;
    if (ok && rows > 0)
        ok = H5Pset_chunk(plist, rank, block) >= 0 && H5Pset_fletcher32(plist) >= 0;
    hid_t set = ok ? H5Dcreate2(file, name, stored, space, links, plist, H5P_DEFAULT) : -1;
    ok = set >= 0 && (rows == 0 || H5Dwrite(set, given, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
    if (set >= 0 && H5Dclose(set) < 0)
        ok = 0;
    H5Pclose(links);
    H5Pclose(plist);
    H5Sclose(space);
    return ok ? 0 : -1;
}

int kn_h5_write_columns(hid_t file, const KnColumn *columns, int count, const void *rows, int64_t row_count,
                        size_t row_bytes)
{
    int result = 0;
    char *values = kn_alloc((size_t)row_count * sizeof((KnClipRow *)0)->sha256);
    for (int i = 0; i < count && result == 0; i++) {
        size_t bytes = type_bytes[columns[i].type];
        for (int64_t row = 0; row < row_count; row++)
            memcpy(values + (size_t)row * bytes, (const char *)rows + (size_t)row * row_bytes + columns[i].offset,
                   bytes);
        result = write_array(file, columns[i].name, file_type(columns[i].type), memory_type(columns[i].type), values,
                             row_count, columns[i].type == KN_COLUMN_SHA256 ? (int64_t)bytes : 1, COLUMN_CHUNK);
    }
    free(values);
    return result;
}

int kn_h5_write_strings(hid_t file, const char *group, const char *name, const KnStrings *strings)
{
    static const int64_t none[1] = {0};
    char bytes_name[64], offsets_name[64];
    snprintf(bytes_name, sizeof bytes_name, "%s/%sbytes", group, name);
    snprintf(offsets_name, sizeof offsets_name, "%s/%soffsets", group, name);
    if (write_array(file, bytes_name, H5T_STD_U8LE, H5T_NATIVE_UINT8, strings->bytes.bytes,
                    (int64_t)strings->bytes.length, 1, BYTES_CHUNK) < 0)
        return -1;
    return write_array(file, offsets_name, H5T_STD_I64LE, H5T_NATIVE_INT64, strings->count ? strings->offsets : none,
                       strings->count + 1, 1, COLUMN_CHUNK);
}

static int write_attribute(hid_t file, const char *name, hid_t stored, hid_t given, const void *values, hid_t space)
{
    hid_t attribute = H5Acreate2(file, name, stored, space, H5P_DEFAULT, H5P_DEFAULT);
    int ok = attribute >= 0 && H5Awrite(attribute, given, values) >= 0;
    if (attribute >= 0 && H5Aclose(attribute) < 0)
        ok = 0;
    H5Sclose(space);
    return ok ? 0 : -1;
}

int kn_h5_write_integers(hid_t file, const char *attribute, const int64_t *values, int64_t count)
{
    hsize_t extent = (hsize_t)count;
    hid_t space = count == 1 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &extent, NULL);
    return write_attribute(file, attribute, H5T_STD_I64LE, H5T_NATIVE_INT64, values, space);
}

int kn_h5_write_text(hid_t file, const char *attribute, const char *text)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, strlen(text) + 1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    int result = write_attribute(file, attribute, type, type, text, H5Screate(H5S_SCALAR));
    H5Tclose(type);
    return result;
}

/* ---- reading ---- */

/* Opens a data set of [rows] or [rows, width]; -1 with a sentence when it is absent, shaped otherwise or too large. */
static hid_t open_array(hid_t file, const char *path, const char *name, int64_t width, size_t bytes, int64_t limit,
                        int64_t *rows)
{
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
    if (set < 0) {
        kn_fail(KN_EFORMAT, "%s: not a shard: it has no %s", path, name);
        return -1;
    }
    hid_t space = H5Dget_space(set);
    hsize_t extent[2] = {0, 1};
    int rank = space >= 0 ? H5Sget_simple_extent_ndims(space) : -1;
    int ok = rank == (width > 1 ? 2 : 1) && H5Sget_simple_extent_dims(space, extent, NULL) == rank &&
             extent[1] == (hsize_t)width;
    if (space >= 0)
        H5Sclose(space);
    if (!ok || extent[0] > (hsize_t)limit / bytes) {
        kn_fail(KN_EFORMAT, "%s: %s has a wrong shape", path, name);
        H5Dclose(set);
        return -1;
    }
    *rows = (int64_t)extent[0];
    return set;
}

static int read_array(hid_t set, const char *path, const char *name, hid_t type, void *values, int64_t rows)
{
    int ok = rows == 0 || H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0;
    H5Dclose(set);
    return ok ? KN_OK : kn_fail(KN_EFORMAT, "%s: damaged: %s cannot be read", path, name);
}

int kn_h5_read_columns(hid_t file, const char *path, const KnColumn *columns, int count, int64_t limit, void **rows,
                       int64_t *row_count, size_t row_bytes)
{
    *rows = NULL;
    for (int i = 0; i < count; i++) {
        size_t bytes = type_bytes[columns[i].type];
        int64_t found = 0;
        hid_t set = open_array(file, path, columns[i].name, columns[i].type == KN_COLUMN_SHA256 ? (int64_t)bytes : 1,
                               bytes, limit, &found);
        if (set < 0)
            return KN_EFORMAT;
        if (i == 0) {
            *row_count = found;
            *rows = kn_alloc((size_t)found * row_bytes);
        } else if (found != *row_count) {
            H5Dclose(set);
            return kn_fail(KN_EFORMAT, "%s: %s has %lld rows, %s has %lld", path, columns[i].name, (long long)found,
                           columns[0].name, (long long)*row_count);
        }
        char *values = kn_alloc((size_t)found * bytes);
        int code = read_array(set, path, columns[i].name, memory_type(columns[i].type), values, found);
        for (int64_t row = 0; row < found; row++)
            memcpy((char *)*rows + (size_t)row * row_bytes + columns[i].offset, values + (size_t)row * bytes, bytes);
        free(values);
        KN_TRY(code);
    }
    return KN_OK;
}

static int check_offsets(const char *path, const char *name, const KnStrings *strings)
{
    int ok = strings->offsets[0] == 0 && strings->offsets[strings->count] == (int64_t)strings->bytes.length;
    for (int64_t i = 0; i < strings->count && ok; i++)
        ok = strings->offsets[i] <= strings->offsets[i + 1];
    return ok ? KN_OK : kn_fail(KN_EFORMAT, "%s: the offsets in %s do not fit its bytes", path, name);
}

int kn_h5_read_strings(hid_t file, const char *path, const char *group, const char *name, int64_t limit,
                       KnStrings *strings)
{
    char bytes_name[64], offsets_name[64];
    snprintf(bytes_name, sizeof bytes_name, "%s/%sbytes", group, name);
    snprintf(offsets_name, sizeof offsets_name, "%s/%soffsets", group, name);
    int64_t bytes = 0, offsets = 0;
    hid_t set = open_array(file, path, bytes_name, 1, 1, limit, &bytes);
    if (set < 0)
        return KN_EFORMAT;
    strings->bytes.bytes = kn_alloc((size_t)bytes + 1);
    strings->bytes.length = (size_t)bytes;
    strings->bytes.capacity = (size_t)bytes + 1;
    KN_TRY(read_array(set, path, bytes_name, H5T_NATIVE_UINT8, strings->bytes.bytes, bytes));
    set = open_array(file, path, offsets_name, 1, 8, limit, &offsets);
    if (set < 0)
        return KN_EFORMAT;
    strings->offsets = kn_alloc((size_t)offsets * sizeof *strings->offsets);
    KN_TRY(read_array(set, path, offsets_name, H5T_NATIVE_INT64, strings->offsets, offsets));
    if (offsets < 1)
        return kn_fail(KN_EFORMAT, "%s: %s is empty", path, offsets_name);
    strings->count = offsets - 1;
    return check_offsets(path, offsets_name, strings);
}

static hid_t open_attribute(hid_t file, const char *path, const char *name, H5T_class_t kind)
{
    hid_t attribute = H5Aexists(file, name) > 0 ? H5Aopen(file, name, H5P_DEFAULT) : -1;
    hid_t type = attribute >= 0 ? H5Aget_type(attribute) : -1;
    if (type >= 0 && H5Tget_class(type) == kind && !(kind == H5T_STRING && H5Tis_variable_str(type))) {
        H5Tclose(type);
        return attribute;
    }
    if (type >= 0)
        H5Tclose(type);
    if (attribute >= 0)
        H5Aclose(attribute);
    kn_fail(KN_EFORMAT, "%s: not a shard: its attribute \"%s\" is missing or of another type", path, name);
    return -1;
}

int kn_h5_read_integers(hid_t file, const char *path, const char *name, int64_t *values, int64_t count)
{
    hid_t attribute = open_attribute(file, path, name, H5T_INTEGER);
    if (attribute < 0)
        return KN_EFORMAT;
    hid_t space = H5Aget_space(attribute);
    int ok = H5Sget_simple_extent_npoints(space) == count && H5Aread(attribute, H5T_NATIVE_INT64, values) >= 0;
    H5Sclose(space);
    H5Aclose(attribute);
    return ok ? KN_OK : kn_fail(KN_EFORMAT, "%s: its attribute \"%s\" has a wrong shape", path, name);
}

int kn_h5_read_text(hid_t file, const char *path, const char *name, char *text, size_t room)
{
    hid_t attribute = open_attribute(file, path, name, H5T_STRING);
    if (attribute < 0)
        return KN_EFORMAT;
    hid_t space = H5Aget_space(attribute), type = H5Tcopy(H5T_C_S1), stored = H5Aget_type(attribute);
    H5Tset_cset(type, H5Tget_cset(stored));
    H5Tset_size(type, room);
    int ok =
        H5Sget_simple_extent_npoints(space) == 1 && H5Tget_size(stored) <= room && H5Aread(attribute, type, text) >= 0;
    text[room - 1] = '\0';
    H5Tclose(stored);
    H5Tclose(type);
    H5Sclose(space);
    H5Aclose(attribute);
    return ok ? KN_OK : kn_fail(KN_EFORMAT, "%s: its attribute \"%s\" is too long", path, name);
}
