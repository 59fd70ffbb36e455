/* The shard writer. Patches are gathered into whole chunks, which are checksummed here, as HDF5's Fletcher32 filter
 * does but several times as fast, and handed to HDF5 as finished bytes; tables stay in memory until finish. A dropped
 * clip takes the file back to where the clip began. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "data/shard_seal.h"
#include "data/shard_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Large enough that a chunk's bookkeeping is small, small enough that a short clip does not drag in megabytes. */
enum { CHUNK_BYTES = 1 << 17, CHECKSUM_BYTES = 4, LANES = 16, BLOCK_WORDS = 256 * LANES };

/* Handing over finished bytes leaves no conversion to HDF5. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shards are written on little-endian machines");

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define KN_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define KN_VECTOR_CLONES
#endif

struct KnShardWriter {
    char *path, *temporary;
    KnShardFormat format;
    hid_t file, patches;
    size_t row_bytes;
    int64_t chunk_rows;
    unsigned char *chunk;      /* rows not yet in the file */
    int64_t stored_rows, rows; /* in the file (whole chunks); in all */
    KnClipRow *clips;
    int64_t clip_count, clip_capacity;
    KnSourceRow *sources;
    int64_t source_count, source_capacity;
    KnStrings paths, reasons, details, captions;
    KnSha256 *hash; /* of the clip being written; NULL between clips */
};

const char *kn_value_kind_name(KnValueKind kind)
{
    return kind == KN_VALUE_PIXELS ? "pixels" : "latents";
}

static int refused(const KnShardWriter *writer)
{
    int reason = errno;
    return kn_fail(KN_EIO, "%s: cannot be written%s%s", writer->path, reason ? ": " : "",
                   reason ? strerror(reason) : "");
}

static void fill_format(KnShardFormat *format)
{
    format->patch_dim = format->channels * format->patch[0] * format->patch[1] * format->patch[2];
    format->element_bytes = format->kind == KN_VALUE_PIXELS ? 1 : 2;
}

static hid_t stored_type(const KnShardFormat *format)
{
    return format->kind == KN_VALUE_PIXELS ? H5T_STD_U8LE : H5T_STD_U16LE;
}

static int create_patches(KnShardWriter *writer)
{
    hsize_t none[2] = {0, (hsize_t)writer->format.patch_dim}, endless[2] = {H5S_UNLIMITED, none[1]};
    hsize_t chunk[2] = {(hsize_t)writer->chunk_rows, none[1]};
    hid_t space = H5Screate_simple(2, none, endless), plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(plist, 2, chunk);
    H5Pset_fletcher32(plist);
    writer->patches =
        H5Dcreate2(writer->file, "/patches", stored_type(&writer->format), space, H5P_DEFAULT, plist, H5P_DEFAULT);
    H5Pclose(plist);
    H5Sclose(space);
    return writer->patches >= 0 ? 0 : -1;
}

static int write_attributes(const KnShardWriter *writer)
{
    const KnShardFormat *format = &writer->format;
    const int64_t version = KN_SHARD_VERSION;
    const struct {
        const char *name, *text;
    } texts[] = {
        {"format", "kinora-shard"},           {"value_kind", kn_value_kind_name(format->kind)},
        {"autoencoder", format->autoencoder}, {"config_hash", format->config_hash},
        {"tool", "kinora " KINORA_VERSION},
    };
    int result = kn_h5_write_integers(writer->file, "version", &version, 1);
    if (result == 0)
        result = kn_h5_write_integers(writer->file, "patch", format->patch, 3);
    if (result == 0)
        result = kn_h5_write_integers(writer->file, "channels", &format->channels, 1);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0] && result == 0; i++)
        result = kn_h5_write_text(writer->file, texts[i].name, texts[i].text);
    return result;
}

int kn_shard_writer_open(KnShardWriter **out, const char *path, const KnShardFormat *format)
{
    *out = NULL;
    KnShardWriter *writer = kn_alloc(sizeof *writer);
    writer->path = kn_strdup(path);
    writer->temporary = kn_temporary_path(path);
    writer->format = *format;
    fill_format(&writer->format);
    writer->row_bytes = (size_t)writer->format.patch_dim * writer->format.element_bytes;
    writer->chunk_rows = CHUNK_BYTES / (int64_t)writer->row_bytes;
    if (writer->chunk_rows < 1)
        writer->chunk_rows = 1;
    writer->chunk = kn_alloc((size_t)writer->chunk_rows * writer->row_bytes + CHECKSUM_BYTES);
    writer->file = writer->patches = -1;
    kn_h5_lock();
    errno = 0;
    writer->file = H5Fcreate(writer->temporary, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    int result = writer->file >= 0 ? write_attributes(writer) : -1;
    if (result == 0)
        result = create_patches(writer);
    int code = result == 0 ? KN_OK : refused(writer);
    kn_h5_unlock();
    if (code < 0) {
        kn_shard_writer_abandon(writer);
        return code;
    }
    *out = writer;
    return KN_OK;
}

/* ---- tables ---- */

int kn_shard_writer_source(KnShardWriter *writer, const KnSource *source)
{
    KN_RESERVE(writer->sources, writer->source_count, writer->source_capacity);
    writer->sources[writer->source_count++] = (KnSourceRow){.bytes = source->bytes};
    kn_strings_add(&writer->paths, source->path);
    return KN_OK;
}

void kn_shard_writer_source_end(KnShardWriter *writer, const KnSource *source)
{
    KN_ASSERT(writer->source_count > 0 && writer->reasons.count < writer->source_count);
    KnSourceRow *row = &writer->sources[writer->source_count - 1];
    row->damaged = source->damaged;
    row->clips = source->clips;
    row->complete = source->complete;
    kn_strings_add(&writer->reasons, source->reason ? source->reason : "");
    kn_strings_add(&writer->details, source->detail ? source->detail : "");
}

int64_t kn_shard_writer_clips(const KnShardWriter *writer)
{
    return writer->clip_count;
}

int64_t kn_shard_writer_sources(const KnShardWriter *writer)
{
    return writer->source_count;
}

int64_t kn_shard_writer_bytes(const KnShardWriter *writer)
{
    return writer->rows * (int64_t)writer->row_bytes;
}

/* ---- patches ---- */

/* Of big-endian words w[0..n), n a multiple of LANES: *sum = sum of w[i], *weighted = sum of (n - i) w[i]. Lane j sees
 * every LANES-th word; of its running sums and their running sums, i = LANES k + j makes the whole. For BLOCK_WORDS the
 * largest is below 2^32. */
KN_VECTOR_CLONES static void sum_block(const uint16_t *restrict words, size_t n, uint64_t *sum, uint64_t *weighted)
{
    uint32_t first[LANES] = {0}, second[LANES] = {0};
    for (size_t i = 0; i < n; i += LANES)
        for (size_t j = 0; j < LANES; j++) {
            first[j] += __builtin_bswap16(words[i + j]);
            second[j] += first[j];
        }
    *sum = *weighted = 0;
    for (size_t j = 0; j < LANES; j++) {
        *sum += first[j];
        *weighted += (uint64_t)LANES * second[j] - j * first[j];
    }
}

/* Ones' complement sums reach 0 only from nothing but zeros, else they end in 1..65535. */
static uint32_t fold(uint64_t sum)
{
    return sum == 0 ? 0 : (uint32_t)((sum - 1) % 65535 + 1);
}

/* The checksum of HDF5's filter: Fletcher's with 16-bit words, an odd last byte being the high one of a word. */
static uint32_t fletcher32(const unsigned char *bytes, size_t count)
{
    uint64_t first = 0, second = 0;
    size_t whole = count / 2 / LANES * LANES, at = 0;
    while (at < whole) {
        uint64_t n = whole - at < BLOCK_WORDS ? whole - at : BLOCK_WORDS, sum, weighted;
        sum_block((const uint16_t *)(const void *)bytes + at, n, &sum, &weighted);
        second = fold(second + n * first + weighted);
        first = fold(first + sum);
        at += n;
    }
    for (; at < count / 2; at++) {
        first += (uint32_t)bytes[2 * at] << 8 | bytes[2 * at + 1];
        second += first;
    }
    if (count % 2) {
        first += (uint32_t)bytes[count - 1] << 8;
        second += first;
    }
    return fold(second) << 16 | fold(first);
}

static int set_rows(KnShardWriter *writer, int64_t rows)
{
    hsize_t extent[2] = {(hsize_t)rows, (hsize_t)writer->format.patch_dim};
    return H5Dset_extent(writer->patches, extent) >= 0 ? 0 : -1;
}

/* Puts the first `count` rows of `chunk` into the file, after those there; the rest of the chunk becomes zeros. */
static int store_rows(KnShardWriter *writer, int64_t count)
{
    size_t bytes = (size_t)writer->chunk_rows * writer->row_bytes, used = (size_t)count * writer->row_bytes;
    memset(writer->chunk + used, 0, bytes - used);
    uint32_t checksum = fletcher32(writer->chunk, bytes);
    for (int i = 0; i < CHECKSUM_BYTES; i++)
        writer->chunk[bytes + (size_t)i] = (unsigned char)(checksum >> (8 * i));
    const hsize_t corner[2] = {(hsize_t)writer->stored_rows, 0};
    kn_h5_lock();
    errno = 0;
    int ok = set_rows(writer, writer->stored_rows + count) == 0 &&
             H5Dwrite_chunk(writer->patches, H5P_DEFAULT, 0, corner, bytes + CHECKSUM_BYTES, writer->chunk) >= 0;
    int code = ok ? KN_OK : refused(writer);
    kn_h5_unlock();
    return code;
}

/* Reads rows [first, first + count) of the file back into `chunk`. */
static int load_rows(KnShardWriter *writer, int64_t first, int64_t count)
{
    hsize_t start[2] = {(hsize_t)first, 0}, extent[2] = {(hsize_t)count, (hsize_t)writer->format.patch_dim};
    hid_t space = H5Dget_space(writer->patches), memory = H5Screate_simple(2, extent, NULL);
    hid_t type = writer->format.kind == KN_VALUE_PIXELS ? H5T_NATIVE_UINT8 : H5T_NATIVE_UINT16;
    int ok = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, extent, NULL) >= 0 &&
             H5Dread(writer->patches, type, memory, space, H5P_DEFAULT, writer->chunk) >= 0;
    H5Sclose(memory);
    H5Sclose(space);
    return ok ? 0 : -1;
}

int kn_shard_writer_clip_begin(KnShardWriter *writer, const KnClip *clip)
{
    KN_ASSERT(!writer->hash && writer->source_count > 0);
    KN_RESERVE(writer->clips, writer->clip_count, writer->clip_capacity);
    const int64_t *patch = writer->format.patch;
    writer->clips[writer->clip_count] = (KnClipRow){.first_token = writer->rows,
                                                    .grid_height = clip->grid[1],
                                                    .grid_width = clip->grid[2],
                                                    .height = clip->grid[1] * patch[1],
                                                    .width = clip->grid[2] * patch[2],
                                                    .source = writer->source_count - 1,
                                                    .segment = clip->segment,
                                                    .fps = clip->fps,
                                                    .start_seconds = clip->start_seconds};
    writer->hash = kn_sha256_create();
    return KN_OK;
}

int kn_shard_writer_clip_add(KnShardWriter *writer, const void *patches, int64_t grid_frames)
{
    KN_ASSERT(writer->hash);
    KnClipRow *clip = &writer->clips[writer->clip_count];
    int64_t left = grid_frames * clip->grid_height * clip->grid_width;
    const unsigned char *from = patches;
    kn_sha256_update(writer->hash, patches, (size_t)left * writer->row_bytes);
    while (left > 0) {
        int64_t held = writer->rows - writer->stored_rows, room = writer->chunk_rows - held;
        int64_t count = left < room ? left : room;
        memcpy(writer->chunk + (size_t)held * writer->row_bytes, from, (size_t)count * writer->row_bytes);
        writer->rows += count;
        from += (size_t)count * writer->row_bytes;
        left -= count;
        if (count == room) {
            KN_TRY(store_rows(writer, writer->chunk_rows));
            writer->stored_rows += writer->chunk_rows;
        }
    }
    clip->grid_frames += grid_frames;
    clip->frames += grid_frames * writer->format.patch[0];
    return KN_OK;
}

int kn_shard_writer_clip_end(KnShardWriter *writer, const char *const *captions, int64_t caption_count)
{
    KnClipRow *clip = &writer->clips[writer->clip_count];
    KN_ASSERT(writer->hash && clip->grid_frames > 0);
    kn_sha256_finish(writer->hash, clip->sha256);
    writer->hash = NULL;
    clip->first_caption = writer->captions.count;
    clip->captions = caption_count;
    for (int64_t i = 0; i < caption_count; i++)
        kn_strings_add(&writer->captions, captions[i]);
    writer->clip_count++;
    return KN_OK;
}

int kn_shard_writer_clip_drop(KnShardWriter *writer)
{
    KN_ASSERT(writer->hash);
    kn_sha256_destroy(writer->hash);
    writer->hash = NULL;
    int64_t rows = writer->clips[writer->clip_count].first_token, whole = rows - rows % writer->chunk_rows;
    int code = KN_OK;
    if (whole < writer->stored_rows) {
        kn_h5_lock();
        errno = 0;
        int result = 0;
        if (rows > whole)
            result = load_rows(writer, whole, rows - whole);
        if (result == 0)
            result = set_rows(writer, whole);
        if (result < 0)
            code = refused(writer);
        kn_h5_unlock();
        writer->stored_rows = whole;
    }
    writer->rows = rows;
    return code;
}

/* ---- the end ---- */

static void free_writer(KnShardWriter *writer)
{
    kn_sha256_destroy(writer->hash);
    kn_strings_clear(&writer->paths);
    kn_strings_clear(&writer->reasons);
    kn_strings_clear(&writer->details);
    kn_strings_clear(&writer->captions);
    free(writer->sources);
    free(writer->clips);
    free(writer->chunk);
    free(writer->temporary);
    free(writer->path);
    free(writer);
}

void kn_shard_writer_abandon(KnShardWriter *writer)
{
    if (!writer)
        return;
    kn_h5_lock();
    if (writer->patches >= 0)
        H5Dclose(writer->patches);
    if (writer->file >= 0)
        H5Fclose(writer->file);
    kn_h5_unlock();
    unlink(writer->temporary);
    free_writer(writer);
}

/* Where HDF5 put the chunks of /patches. */
static int locate_chunks(KnShardWriter *writer, KnByteRange *ranges, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        hsize_t corner[2] = {(hsize_t)(i * writer->chunk_rows), 0}, bytes = 0;
        haddr_t address = HADDR_UNDEF;
        unsigned mask = 0;
        if (H5Dget_chunk_info_by_coord(writer->patches, corner, &mask, &address, &bytes) < 0 || address == HADDR_UNDEF)
            return -1;
        ranges[i] = (KnByteRange){address, bytes};
    }
    return 0;
}

static int write_tables(KnShardWriter *writer)
{
    const struct {
        const char *group, *name;
        const KnStrings *strings;
    } strings[] = {
        {"/caption", "", &writer->captions},
        {"/source", "path_", &writer->paths},
        {"/source", "reason_", &writer->reasons},
        {"/source", "detail_", &writer->details},
    };
    int result = kn_h5_write_columns(writer->file, kn_clip_columns, kn_clip_column_count, writer->clips,
                                     writer->clip_count, sizeof *writer->clips);
    if (result == 0)
        result = kn_h5_write_columns(writer->file, kn_source_columns, kn_source_column_count, writer->sources,
                                     writer->source_count, sizeof *writer->sources);
    for (size_t i = 0; i < sizeof strings / sizeof strings[0] && result == 0; i++)
        result = kn_h5_write_strings(writer->file, strings[i].group, strings[i].name, strings[i].strings);
    return result;
}

/* Everything up to a closed HDF5 file; the handles are gone afterwards. */
static int complete_file(KnShardWriter *writer, KnByteRange *ranges, int64_t chunks)
{
    kn_h5_lock();
    errno = 0;
    int result = write_tables(writer);
    if (result == 0 && H5Fflush(writer->file, H5F_SCOPE_LOCAL) < 0)
        result = -1;
    if (result == 0)
        result = locate_chunks(writer, ranges, chunks);
    if (H5Dclose(writer->patches) < 0)
        result = -1;
    if (H5Fclose(writer->file) < 0)
        result = -1;
    writer->file = writer->patches = -1;
    int code = result == 0 ? KN_OK : refused(writer);
    kn_h5_unlock();
    return code;
}

int kn_shard_writer_finish(KnShardWriter *writer)
{
    KN_ASSERT(!writer->hash);
    KnSource open_end = {.complete = 0};
    if (writer->reasons.count < writer->source_count)
        kn_shard_writer_source_end(writer, &open_end);
    int64_t chunks = (writer->rows + writer->chunk_rows - 1) / writer->chunk_rows;
    KnByteRange *ranges = kn_alloc((size_t)chunks * sizeof *ranges);
    int code = KN_OK;
    if (writer->rows > writer->stored_rows)
        code = store_rows(writer, writer->rows - writer->stored_rows);
    if (code == KN_OK)
        code = complete_file(writer, ranges, chunks);
    if (code == KN_OK)
        code = kn_shard_seal(writer->temporary, ranges, chunks);
    if (code == KN_OK)
        code = kn_file_publish(writer->temporary, writer->path);
    free(ranges);
    kn_shard_writer_abandon(writer);
    return code;
}
