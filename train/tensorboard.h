/* TensorBoard event files: scalars that TensorBoard itself reads.
 *
 * The format: records of (length, its checksum, bytes, their checksum), each a protobuf `Event`; checksums are CRC-32C
 * rotated and offset ("masked"). Only appending is needed, so a crash leaves at most a torn last record, which readers
 * skip. */
#ifndef KN_TRAIN_TENSORBOARD_H
#define KN_TRAIN_TENSORBOARD_H

#include <stdint.h>

typedef struct KnTensorboard KnTensorboard;

/* Makes RUN/events.out.tfevents.<time>.<host>; KN_EIO. */
int kn_tensorboard_open(KnTensorboard **board, const char *folder);
/* One scalar under `tag` at `step`. */
int kn_tensorboard_scalar(KnTensorboard *board, const char *tag, int64_t step, double value);
int kn_tensorboard_close(KnTensorboard *board); /* NULL is fine */

#endif
