/* Writing TensorBoard's records by hand: the few protobuf fields that a scalar needs. */
#include "train/tensorboard.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EVENT_BYTES = 512 };

struct KnTensorboard {
    FILE *file;
    char *path;
};

typedef struct Message {
    unsigned char bytes[EVENT_BYTES];
    size_t size;
} Message;

static uint32_t crc32c(const unsigned char *bytes, size_t size)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1)));
    }
    return ~crc;
}

static uint32_t masked_crc(const unsigned char *bytes, size_t size)
{
    uint32_t crc = crc32c(bytes, size);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

static void put(Message *message, const void *bytes, size_t size)
{
    KN_ASSERT(message->size + size <= EVENT_BYTES);
    memcpy(message->bytes + message->size, bytes, size);
    message->size += size;
}

static void put_varint(Message *message, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        put(message, &(unsigned char){(unsigned char)(value | 0x80)}, 1);
    put(message, &(unsigned char){(unsigned char)value}, 1);
}

/* Wire types: 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes. */
static void put_field(Message *message, int field, int wire)
{
    put_varint(message, (uint64_t)(field << 3 | wire));
}

static void put_bytes(Message *message, int field, const void *bytes, size_t size)
{
    put_field(message, field, 2);
    put_varint(message, size);
    put(message, bytes, size);
}

static int write_record(KnTensorboard *board, const Message *event)
{
    unsigned char head[12];
    uint64_t length = event->size;
    memcpy(head, &length, 8);
    uint32_t check = masked_crc(head, 8);
    memcpy(head + 8, &check, 4);
    check = masked_crc(event->bytes, event->size);
    if (fwrite(head, 1, 12, board->file) != 12 || fwrite(event->bytes, 1, event->size, board->file) != event->size ||
        fwrite(&check, 1, 4, board->file) != 4)
        return kn_fail(KN_EIO, "cannot write %s: %s", board->path, strerror(errno));
    return KN_OK;
}

static double wall_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void begin_event(Message *event)
{
    double now = wall_time();
    put_field(event, 1, 1); /* wall_time */
    put(event, &now, 8);
}

int kn_tensorboard_open(KnTensorboard **board, const char *folder)
{
    static const char version[] = "brain.Event:2";
    char host[128] = "host";
    Message event = {.size = 0};
    *board = NULL;
    gethostname(host, sizeof host - 1);
    KnTensorboard *made = kn_alloc(sizeof *made);
    made->path = kn_format("%s/events.out.tfevents.%lld.%s.%d", folder, (long long)time(NULL), host, (int)getpid());
    made->file = fopen(made->path, "wb");
    if (!made->file) {
        int code = kn_fail(KN_EIO, "cannot write %s: %s", made->path, strerror(errno));
        kn_tensorboard_close(made);
        return code;
    }
    begin_event(&event);
    put_bytes(&event, 3, version, sizeof version - 1); /* file_version */
    *board = made;
    return write_record(made, &event);
}

int kn_tensorboard_scalar(KnTensorboard *board, const char *tag, int64_t step, double value)
{
    Message event = {.size = 0}, summary = {.size = 0}, entry = {.size = 0};
    float simple = (float)value;
    put_bytes(&entry, 1, tag, strlen(tag)); /* Summary.Value.tag */
    put_field(&entry, 2, 5);                /* Summary.Value.simple_value */
    put(&entry, &simple, 4);
    put_bytes(&summary, 1, entry.bytes, entry.size); /* Summary.value */
    begin_event(&event);
    put_field(&event, 2, 0); /* step */
    put_varint(&event, (uint64_t)step);
    put_bytes(&event, 5, summary.bytes, summary.size); /* summary */
    return write_record(board, &event);
}

int kn_tensorboard_close(KnTensorboard *board)
{
    int code = KN_OK;
    if (!board)
        return KN_OK;
    if (board->file && fclose(board->file) != 0)
        code = kn_fail(KN_EIO, "cannot write %s: %s", board->path, strerror(errno));
    free(board->path);
    free(board);
    return code;
}
