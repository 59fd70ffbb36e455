/* The seal of a shard: what follows the HDF5 file inside the same file, and is checked before HDF5 sees it.
 *
 *   ranges   n x (offset, bytes), little-endian u64: where patch data lies, in ascending order
 *   footer   128 bytes of text: "kinora-shard VERSION bytes FILE_SIZE ranges n sha256 HEX\n", then zeros
 *
 * The SHA-256 runs over every byte of the file outside the ranges, with the digits in the footer taken as zeros. HDF5
 * ignores what follows its end of file. Private to shard_*.c. */
#ifndef KN_DATA_SHARD_SEAL_H
#define KN_DATA_SHARD_SEAL_H

#include <stdint.h>

typedef struct KnByteRange {
    uint64_t offset, bytes;
} KnByteRange;

/* Appends ranges (sorted and joined here) and footer to the complete HDF5 file at `path`. */
int kn_shard_seal(const char *path, KnByteRange *ranges, int64_t count);

/* Checks that `path` is a whole, undamaged shard of our version as far as the seal reaches. `*bytes` gets its size. */
int kn_shard_seal_check(const char *path, int64_t *bytes);

#endif
