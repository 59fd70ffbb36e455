/* SHA-256 through OpenSSL's EVP interface. Its digest functions fail only for want of memory or a broken
 * installation, neither of which a caller could act on: both are assertions. */
#include "core/base/hash.h"

#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct KnSha256 {
    EVP_MD_CTX *context;
};

KnSha256 *kn_sha256_create(void)
{
    KnSha256 *stream = kn_alloc(sizeof *stream);
    stream->context = EVP_MD_CTX_new();
    KN_ASSERT(stream->context);
    KN_ASSERT(EVP_DigestInit_ex(stream->context, EVP_sha256(), NULL) == 1);
    return stream;
}

void kn_sha256_update(KnSha256 *stream, const void *bytes, size_t size)
{
    KN_ASSERT(EVP_DigestUpdate(stream->context, bytes, size) == 1);
    kn_activity_advance();
}

void kn_sha256_finish(KnSha256 *stream, unsigned char digest[KN_SHA256_BYTES])
{
    KN_ASSERT(EVP_DigestFinal_ex(stream->context, digest, NULL) == 1);
    kn_sha256_destroy(stream);
}

void kn_sha256_destroy(KnSha256 *stream)
{
    if (!stream)
        return;
    EVP_MD_CTX_free(stream->context);
    free(stream);
}

void kn_sha256(const void *bytes, size_t size, unsigned char digest[KN_SHA256_BYTES])
{
    KN_ASSERT(EVP_Digest(bytes, size, digest, NULL, EVP_sha256(), NULL) == 1);
}

void kn_sha256_hex(const void *bytes, size_t size, char hex[KN_SHA256_HEX_BYTES])
{
    unsigned char digest[KN_SHA256_BYTES];
    kn_sha256(bytes, size, digest);
    kn_hex(digest, sizeof digest, hex);
}

int kn_sha256_file(const char *path, char hex[KN_SHA256_HEX_BYTES])
{
    enum { BUFFER_BYTES = 1 << 18 };
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return kn_fail(KN_EIO, "cannot open %s: %s", path, strerror(errno));
    KnSha256 *stream = kn_sha256_create();
    char *buffer = kn_alloc(BUFFER_BYTES);
    ssize_t size;
    while ((size = read(descriptor, buffer, BUFFER_BYTES)) > 0 || (size < 0 && errno == EINTR))
        if (size > 0)
            kn_sha256_update(stream, buffer, (size_t)size);
    int reason = errno;
    free(buffer);
    close(descriptor);
    if (size < 0) {
        kn_sha256_destroy(stream);
        return kn_fail(KN_EIO, "cannot read %s: %s", path, strerror(reason));
    }
    unsigned char digest[KN_SHA256_BYTES];
    kn_sha256_finish(stream, digest);
    kn_hex(digest, sizeof digest, hex);
    return KN_OK;
}

void kn_hex(const unsigned char *bytes, size_t count, char *hex)
{
    for (size_t i = 0; i < count; i++) {
        hex[2 * i] = "0123456789abcdef"[bytes[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[bytes[i] & 15];
    }
    hex[2 * count] = 0;
}
