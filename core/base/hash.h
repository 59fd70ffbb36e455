/* SHA-256, the one door to OpenSSL. A hash of a file or of a stream of pieces, as 32 bytes or 64 hexadecimal digits. */
#ifndef KN_BASE_HASH_H
#define KN_BASE_HASH_H

#include <stddef.h>

enum { KN_SHA256_BYTES = 32, KN_SHA256_HEX_BYTES = 65 };

void kn_sha256(const void *bytes, size_t size, unsigned char digest[KN_SHA256_BYTES]);
void kn_sha256_hex(const void *bytes, size_t size, char hex[KN_SHA256_HEX_BYTES]);
int kn_sha256_file(const char *path, char hex[KN_SHA256_HEX_BYTES]); /* KN_EIO */

/* Piece by piece. Finish releases the stream. */
typedef struct KnSha256 KnSha256;
KnSha256 *kn_sha256_create(void);
void kn_sha256_update(KnSha256 *stream, const void *bytes, size_t size);
void kn_sha256_finish(KnSha256 *stream, unsigned char digest[KN_SHA256_BYTES]);
void kn_sha256_destroy(KnSha256 *stream); /* for a stream that is given up; NULL is fine */

/* Lower-case digits of `count` bytes and a NUL: `hex` has 2 x count + 1 bytes. */
void kn_hex(const unsigned char *bytes, size_t count, char *hex);

#endif
