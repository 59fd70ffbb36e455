/* safetensors: named tensors in a file, the format of published weights and of our checkpoints.
 *
 * A file is 8 bytes of header length, a JSON header {"name": {"dtype", "shape", "data_offsets"}, "__metadata__":
 * {...}} and the data, without holes. The reader maps the file and believes nothing: lengths, types, shapes, offsets,
 * overlaps and UTF-8 are checked on opening, so that a tensor it returns may be read without further care.
 * Format: https://github.com/huggingface/safetensors, "Format". */
#ifndef KN_BASE_SAFETENSORS_H
#define KN_BASE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

enum { KN_SAFETENSORS_MAX_DIMS = 8 };

typedef enum KnSafetensorsType {
    KN_SAFETENSORS_F32,
    KN_SAFETENSORS_BF16,
    KN_SAFETENSORS_F16,
    KN_SAFETENSORS_I32,
    KN_SAFETENSORS_I64,
    KN_SAFETENSORS_U8
} KnSafetensorsType;

const char *kn_safetensors_type_name(KnSafetensorsType type); /* "F32", ... */
size_t kn_safetensors_type_bytes(KnSafetensorsType type);

/* One tensor, read or to be written. `dims` 0 is a scalar of one element. */
typedef struct KnSafetensor {
    const char *name;
    KnSafetensorsType type;
    int dims;
    int64_t shape[KN_SAFETENSORS_MAX_DIMS];
    const void *data; /* little-endian; from a reader, aligned for no type: use memcpy or kn_safetensor_read_f32 */
} KnSafetensor;

int64_t kn_safetensor_elements(const KnSafetensor *tensor);
size_t kn_safetensor_bytes(const KnSafetensor *tensor);

/* ---- reading ---- */

/* One file, or the several of a sharded model, as one set of tensors. `path` is a .safetensors file, an
 * "*.safetensors.index.json", or a folder that holds one of either (an index comes first; several files without an
 * index are refused). Names and data belong to the set. KN_EIO, KN_EFORMAT, KN_EMEMORY. */
typedef struct KnSafetensorsSet KnSafetensorsSet;
int kn_safetensors_open(KnSafetensorsSet **set, const char *path);
void kn_safetensors_close(KnSafetensorsSet *set); /* NULL is fine */

int kn_safetensors_count(const KnSafetensorsSet *set);
const KnSafetensor *kn_safetensors_at(const KnSafetensorsSet *set, int index);            /* in file order */
const KnSafetensor *kn_safetensors_find(const KnSafetensorsSet *set, const char *name);   /* NULL when absent */
const char *kn_safetensors_metadata(const KnSafetensorsSet *set, const char *key);        /* NULL when absent */
const char *kn_safetensors_path(const KnSafetensorsSet *set, const KnSafetensor *tensor); /* the file that holds it */

/* The tensor called `name` as `elements` floats into `out` (F32, BF16 and F16 convert; integers are refused). A name
 * that is absent or a count that differs is KN_EFORMAT with file, name and shape. */
int kn_safetensors_read_f32(const KnSafetensorsSet *set, const char *name, float *out, int64_t elements);

/* ---- writing ---- */

typedef struct KnSafetensorsPair {
    const char *key, *value;
} KnSafetensorsPair;

/* Writes `path` atomically: these tensors in this order, and `metadata` as "__metadata__" (0 pairs: none). The data
 * section starts at a multiple of 64 bytes. KN_EIO; KN_EINPUT for a name twice, not UTF-8, or reserved. */
int kn_safetensors_write(const char *path, const KnSafetensor *tensors, int count, const KnSafetensorsPair *metadata,
                         int metadata_count);

/* The same as a stream, for data that is not in memory at once: `data` of the tensors is ignored, their bytes follow
 * by any number of writes, in order. Commit refuses a total that differs from the header's; it releases the writer
 * whatever it returns. */
typedef struct KnSafetensorsWriter KnSafetensorsWriter;
int kn_safetensors_writer_open(KnSafetensorsWriter **writer, const char *path, const KnSafetensor *tensors, int count,
                               const KnSafetensorsPair *metadata, int metadata_count);
/* The same; commit puts the SHA-256 of the whole file into `hex` [KN_SHA256_HEX_BYTES]. */
int kn_safetensors_writer_open_hashed(KnSafetensorsWriter **writer, const char *path, const KnSafetensor *tensors,
                                      int count, char *hex);
int kn_safetensors_writer_write(KnSafetensorsWriter *writer, const void *bytes, size_t size);
int kn_safetensors_writer_commit(KnSafetensorsWriter *writer);
void kn_safetensors_writer_abort(KnSafetensorsWriter *writer); /* NULL is fine */

#endif
