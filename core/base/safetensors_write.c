/* Writing safetensors: the header first, from names, types and shapes alone, then the data as a stream; atomic, since
 * it goes through core/base/file.h. */
#include "core/base/safetensors.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

struct KnSafetensorsWriter {
    KnFileWriter *file;
    char *path;
    uint64_t expected, written; /* bytes of data */
};

static json_t *describe_metadata(const KnSafetensorsPair *metadata, int count)
{
    json_t *pairs = json_object();
    for (int i = 0; i < count; i++)
        if (json_object_set_new(pairs, metadata[i].key, json_string(metadata[i].value)) != 0) {
            json_decref(pairs);
            return NULL;
        }
    return pairs;
}

static json_t *describe_tensor(const KnSafetensor *tensor, uint64_t begin)
{
    json_t *shape = json_array();
    KN_ASSERT(tensor->dims >= 0 && tensor->dims <= KN_SAFETENSORS_MAX_DIMS);
    for (int i = 0; i < tensor->dims; i++) {
        KN_ASSERT(tensor->shape[i] >= 0);
        json_array_append_new(shape, json_integer(tensor->shape[i]));
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", kn_safetensors_type_name(tensor->type), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)(begin + kn_safetensor_bytes(tensor)));
}

/* The header as JSON text, and how many bytes of data will follow. */
static int make_header(const char *path, const KnSafetensor *tensors, int count, const KnSafetensorsPair *metadata,
                       int metadata_count, char **text, uint64_t *data_bytes)
{
    json_t *header = json_object(), *pairs = describe_metadata(metadata, metadata_count);
    int code = pairs ? KN_OK : kn_fail(KN_EINPUT, "cannot write %s: its metadata is not UTF-8", path);
    if (metadata_count && pairs)
        json_object_set(header, "__metadata__", pairs);
    *data_bytes = 0;
    for (int i = 0; i < count && code == KN_OK; i++) {
        const char *name = tensors[i].name;
        if (strcmp(name, "__metadata__") == 0)
            code = kn_fail(KN_EINPUT, "cannot write %s: no tensor may be called __metadata__", path);
        else if (json_object_get(header, name))
            code = kn_fail(KN_EINPUT, "cannot write %s: two tensors are called %s", path, name);
        else if (json_object_set_new(header, name, describe_tensor(&tensors[i], *data_bytes)) != 0)
            code = kn_fail(KN_EINPUT, "cannot write %s: the name of tensor %d is not UTF-8", path, i);
        *data_bytes += kn_safetensor_bytes(&tensors[i]);
    }
    *text = code == KN_OK ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(pairs);
    json_decref(header);
    if (code == KN_OK && !*text)
        return kn_fail(KN_EMEMORY, "not enough memory for the header of %s", path);
    return code;
}

/* The length, the header, and spaces up to where the data may start. */
static int write_header(KnFileWriter *file, const char *text)
{
    static const char spaces[ALIGNMENT + 1] = "                                                                ";
    size_t length = strlen(text), padding = (ALIGNMENT - (sizeof(uint64_t) + length) % ALIGNMENT) % ALIGNMENT;
    uint64_t announced = length + padding;
    KN_TRY(kn_file_writer_write(file, &announced, sizeof announced));
    KN_TRY(kn_file_writer_write(file, text, length));
    return kn_file_writer_write(file, spaces, padding);
}

static int open_writer(KnSafetensorsWriter **writer, const char *path, const KnSafetensor *tensors, int count,
                       const KnSafetensorsPair *metadata, int metadata_count, char *hex)
{
    char *header;
    KnFileWriter *file = NULL;
    uint64_t expected;
    *writer = NULL;
    KN_TRY(make_header(path, tensors, count, metadata, metadata_count, &header, &expected));
    int code = kn_file_writer_open(&file, path);
    if (code == KN_OK && hex)
        kn_file_writer_hash(file, hex);
    if (code == KN_OK)
        code = write_header(file, header);
    free(header);
    if (code != KN_OK) {
        kn_file_writer_abort(file);
        return code;
    }
    *writer = kn_alloc(sizeof **writer);
    **writer = (KnSafetensorsWriter){.file = file, .path = kn_strdup(path), .expected = expected};
    return KN_OK;
}

int kn_safetensors_writer_open(KnSafetensorsWriter **writer, const char *path, const KnSafetensor *tensors, int count,
                               const KnSafetensorsPair *metadata, int metadata_count)
{
    return open_writer(writer, path, tensors, count, metadata, metadata_count, NULL);
}

int kn_safetensors_writer_open_hashed(KnSafetensorsWriter **writer, const char *path, const KnSafetensor *tensors,
                                      int count, char *hex)
{
    return open_writer(writer, path, tensors, count, NULL, 0, hex);
}

int kn_safetensors_writer_write(KnSafetensorsWriter *writer, const void *bytes, size_t size)
{
    writer->written += size;
    return kn_file_writer_write(writer->file, bytes, size);
}

int kn_safetensors_writer_commit(KnSafetensorsWriter *writer)
{
    int code;
    if (writer->written != writer->expected) {
        code = kn_fail(KN_EINPUT, "cannot write %s: its tensors have %llu bytes, but %llu were given", writer->path,
                       (unsigned long long)writer->expected, (unsigned long long)writer->written);
        kn_file_writer_abort(writer->file);
    } else {
        code = kn_file_writer_commit(writer->file);
    }
    free(writer->path);
    free(writer);
    return code;
}

void kn_safetensors_writer_abort(KnSafetensorsWriter *writer)
{
    if (!writer)
        return;
    kn_file_writer_abort(writer->file);
    free(writer->path);
    free(writer);
}

int kn_safetensors_write(const char *path, const KnSafetensor *tensors, int count, const KnSafetensorsPair *metadata,
                         int metadata_count)
{
    KnSafetensorsWriter *writer;
    KN_TRY(kn_safetensors_writer_open(&writer, path, tensors, count, metadata, metadata_count));
    for (int i = 0; i < count; i++) {
        int code = kn_safetensors_writer_write(writer, tensors[i].data, kn_safetensor_bytes(&tensors[i]));
        if (code != KN_OK) {
            kn_safetensors_writer_abort(writer);
            return code;
        }
    }
    return kn_safetensors_writer_commit(writer);
}
