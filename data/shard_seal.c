/* Writing and checking the seal of a shard (its format is in the header). A reader learns from it, at the cost of
 * hashing the tables alone, that no byte outside the patch data has changed; HDF5's own parsing of damaged metadata is
 * nothing to rely on. */
#include "data/shard_seal.h"

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "data/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FOOTER_BYTES = 128, BUFFER_BYTES = 1 << 18, RANGE_BYTES = 16 };
static const unsigned char hdf5_signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
static const char no_digest[] = "0000000000000000000000000000000000000000000000000000000000000000";

static void make_footer(char footer[FOOTER_BYTES], uint64_t bytes, uint64_t ranges, const char *digest)
{
    memset(footer, 0, FOOTER_BYTES);
    snprintf(footer, FOOTER_BYTES, "kinora-shard %d bytes %llu ranges %llu sha256 %s\n", KN_SHARD_VERSION,
             (unsigned long long)bytes, (unsigned long long)ranges, digest);
}

static int read_at(int file, const char *path, uint64_t offset, void *bytes, size_t count)
{
    for (size_t done = 0; done < count;) {
        ssize_t got = pread(file, (char *)bytes + done, count - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return kn_fail(KN_EIO, "%s: cannot be read: %s", path, strerror(errno));
        if (got == 0)
            return kn_fail(KN_EFORMAT, "%s: it ends while being read", path);
        done += (size_t)got;
    }
    return KN_OK;
}

static int write_at(int file, const char *path, uint64_t offset, const void *bytes, size_t count)
{
    for (size_t done = 0; done < count;) {
        ssize_t put = pwrite(file, (const char *)bytes + done, count - done, (off_t)(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return kn_fail(KN_EIO, "%s: cannot be written: %s", path, strerror(put < 0 ? errno : ENOSPC));
        done += (size_t)put;
    }
    return KN_OK;
}

static int hash_span(int file, const char *path, KnSha256 *hash, uint64_t from, uint64_t to)
{
    char *buffer = kn_alloc(BUFFER_BYTES);
    int code = KN_OK;
    while (from < to && code == KN_OK) {
        size_t count = to - from < BUFFER_BYTES ? (size_t)(to - from) : BUFFER_BYTES;
        code = read_at(file, path, from, buffer, count);
        if (code == KN_OK)
            kn_sha256_update(hash, buffer, count);
        from += count;
    }
    free(buffer);
    return code;
}

/* The digest of everything before `end` outside the ranges, then of the footer without digits. */
static int digest_file(int file, const char *path, const KnByteRange *ranges, uint64_t count, uint64_t end,
                       char hex[KN_SHA256_HEX_BYTES])
{
    KnSha256 *hash = kn_sha256_create();
    uint64_t at = 0;
    int code = KN_OK;
    for (uint64_t i = 0; i <= count && code == KN_OK; i++) {
        uint64_t stop = i < count ? ranges[i].offset : end;
        code = hash_span(file, path, hash, at, stop);
        if (i < count)
            at = ranges[i].offset + ranges[i].bytes;
    }
    if (code < 0) {
        kn_sha256_destroy(hash);
        return code;
    }
    char footer[FOOTER_BYTES];
    make_footer(footer, end + FOOTER_BYTES, count, no_digest);
    kn_sha256_update(hash, footer, sizeof footer);
    unsigned char digest[KN_SHA256_BYTES];
    kn_sha256_finish(hash, digest);
    kn_hex(digest, sizeof digest, hex);
    return KN_OK;
}

static void put_u64(unsigned char *to, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        to[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get_u64(const unsigned char *from)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value |= (uint64_t)from[i] << (8 * i);
    return value;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const KnByteRange *)a)->offset, y = ((const KnByteRange *)b)->offset;
    return (x > y) - (x < y);
}

static int64_t join_ranges(KnByteRange *ranges, int64_t count)
{
    if (count > 0)
        qsort(ranges, (size_t)count, sizeof *ranges, by_offset);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        if (kept > 0 && ranges[kept - 1].offset + ranges[kept - 1].bytes == ranges[i].offset)
            ranges[kept - 1].bytes += ranges[i].bytes;
        else
            ranges[kept++] = ranges[i];
    }
    return kept;
}

static int seal_open_file(int file, const char *path, KnByteRange *ranges, int64_t count)
{
    struct stat status;
    if (fstat(file, &status) != 0)
        return kn_fail(KN_EIO, "%s: cannot be read: %s", path, strerror(errno));
    count = join_ranges(ranges, count);
    uint64_t end = (uint64_t)status.st_size;
    unsigned char *table = kn_alloc((size_t)count * RANGE_BYTES);
    for (int64_t i = 0; i < count; i++) {
        put_u64(table + i * RANGE_BYTES, ranges[i].offset);
        put_u64(table + i * RANGE_BYTES + 8, ranges[i].bytes);
    }
    int code = write_at(file, path, end, table, (size_t)count * RANGE_BYTES);
    free(table);
    KN_TRY(code);
    end += (uint64_t)count * RANGE_BYTES;
    char hex[KN_SHA256_HEX_BYTES], footer[FOOTER_BYTES];
    KN_TRY(digest_file(file, path, ranges, (uint64_t)count, end, hex));
    make_footer(footer, end + FOOTER_BYTES, (uint64_t)count, hex);
    return write_at(file, path, end, footer, sizeof footer);
}

int kn_shard_seal(const char *path, KnByteRange *ranges, int64_t count)
{
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return kn_fail(KN_EIO, "%s: cannot be opened: %s", path, strerror(errno));
    int code = seal_open_file(file, path, ranges, count);
    if (close(file) != 0 && code == KN_OK)
        code = kn_fail(KN_EIO, "%s: cannot be written: %s", path, strerror(errno));
    return code;
}

/* Reads the footer; `size` is what the file system says. */
static int check_footer(int file, const char *path, uint64_t size, uint64_t *ranges, char hex[KN_SHA256_HEX_BYTES])
{
    unsigned char signature[8];
    char footer[FOOTER_BYTES + 1] = {0}, again[FOOTER_BYTES];
    if (size == 0)
        return kn_fail(KN_EFORMAT, "%s: the file is empty", path);
    if (size < sizeof signature + FOOTER_BYTES)
        return kn_fail(KN_EFORMAT, "%s: not a shard: only %llu bytes long", path, (unsigned long long)size);
    KN_TRY(read_at(file, path, 0, signature, sizeof signature));
    if (memcmp(signature, hdf5_signature, sizeof signature) != 0)
        return kn_fail(KN_EFORMAT, "%s: not a shard: it does not begin like an HDF5 file", path);
    KN_TRY(read_at(file, path, size - FOOTER_BYTES, footer, FOOTER_BYTES));
    int version = 0;
    unsigned long long bytes = 0, count = 0;
    char digits[KN_SHA256_HEX_BYTES] = "";
    int fields = sscanf(footer, "kinora-shard %9d bytes %20llu ranges %20llu sha256 %64[0-9a-f]", &version, &bytes,
                        &count, digits);
    if (fields < 1)
        return kn_fail(KN_EFORMAT, "%s: an HDF5 file without the end of a Kinora shard: truncated, damaged or foreign",
                       path);
    if (version != KN_SHARD_VERSION)
        return kn_fail(KN_EFORMAT, "%s: shard format version %d, this program reads version %d", path, version,
                       KN_SHARD_VERSION);
    make_footer(again, bytes, count, digits);
    if (fields != 4 || memcmp(footer, again, sizeof again) != 0)
        return kn_fail(KN_EFORMAT, "%s: damaged: its footer is not as it was written", path);
    if (bytes != size)
        return kn_fail(KN_EFORMAT, "%s: %llu bytes long, but was written with %llu", path, (unsigned long long)size,
                       bytes);
    if (count > (size - FOOTER_BYTES) / RANGE_BYTES)
        return kn_fail(KN_EFORMAT, "%s: damaged: its footer is not as it was written", path);
    *ranges = count;
    memcpy(hex, digits, KN_SHA256_HEX_BYTES);
    return KN_OK;
}

static int check_ranges(int file, const char *path, uint64_t size, uint64_t count, KnByteRange *ranges)
{
    uint64_t table_at = size - FOOTER_BYTES - count * RANGE_BYTES, at = 0;
    for (uint64_t i = 0; i < count; i++) {
        unsigned char bytes[RANGE_BYTES];
        KN_TRY(read_at(file, path, table_at + i * RANGE_BYTES, bytes, sizeof bytes));
        ranges[i] = (KnByteRange){get_u64(bytes), get_u64(bytes + 8)};
        if (ranges[i].offset < at || ranges[i].offset > table_at || ranges[i].bytes > table_at - ranges[i].offset)
            return kn_fail(KN_EFORMAT, "%s: damaged: the list of its patch data is not as it was written", path);
        at = ranges[i].offset + ranges[i].bytes;
    }
    return KN_OK;
}

static int check_open_file(int file, const char *path, uint64_t size)
{
    uint64_t count = 0;
    char stated[KN_SHA256_HEX_BYTES], found[KN_SHA256_HEX_BYTES];
    KN_TRY(check_footer(file, path, size, &count, stated));
    KnByteRange *ranges = kn_alloc((size_t)count * sizeof *ranges);
    int code = check_ranges(file, path, size, count, ranges);
    if (code == KN_OK)
        code = digest_file(file, path, ranges, count, size - FOOTER_BYTES, found);
    free(ranges);
    KN_TRY(code);
    if (memcmp(stated, found, sizeof found) != 0)
        return kn_fail(KN_EFORMAT, "%s: damaged: the SHA-256 of its tables is not the stored one", path);
    return KN_OK;
}

int kn_shard_seal_check(const char *path, int64_t *bytes)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return kn_fail(KN_EIO, "%s: cannot be opened: %s", path, strerror(errno));
    int code = KN_OK;
    if (fstat(file, &status) != 0)
        code = kn_fail(KN_EIO, "%s: cannot be read: %s", path, strerror(errno));
    else if (!S_ISREG(status.st_mode))
        code = kn_fail(KN_EFORMAT, "%s: not a shard: not a regular file", path);
    if (code == KN_OK) {
        *bytes = (int64_t)status.st_size;
        code = check_open_file(file, path, (uint64_t)status.st_size);
    }
    close(file);
    return code;
}
