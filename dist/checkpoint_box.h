/* Boxes: the part of a tensor that somebody holds, an interval in each dimension. Internal to the checkpoints.
 *
 * Whether boxes tile a tensor is asked of a million of them at a time, so it is answered without comparing any two:
 * each has a measure, and the measures of boxes that tile another add up to its own. */
#ifndef KN_DIST_CHECKPOINT_BOX_H
#define KN_DIST_CHECKPOINT_BOX_H

#include "dist/checkpoint.h"

typedef struct KnBox {
    int dims; /* 0: the one element of a scalar */
    int64_t start[KN_SAFETENSORS_MAX_DIMS], count[KN_SAFETENSORS_MAX_DIMS];
} KnBox;

KnBox kn_box_of(const KnCheckpointTensor *tensor);    /* what the tensor's start and count say */
KnBox kn_box_whole(const KnCheckpointTensor *tensor); /* all of its shape */
int64_t kn_box_elements(const KnBox *box);
int kn_box_equal(const KnBox *a, const KnBox *b);
int kn_box_meets(const KnBox *a, const KnBox *b); /* has an element in common */
int kn_box_inside(const KnBox *box, const KnBox *whole);
int kn_box_compare(const KnBox *a, const KnBox *b); /* by starts, first dimension first; for qsort */
char *kn_box_text(const KnBox *box);                /* "[0:4, 6:8]"; free() it */

/* Adds a box to the measure of a set that begins as 0. Sets that cover each element equally often have the same
 * measure; others differ but for a chance of 1 in 10^17. */
uint64_t kn_box_measure(uint64_t measure, const KnBox *box);

/* Copies the elements that both have. The memory of each is its box and nothing else. */
void kn_box_copy(const KnBox *to_box, void *to, const KnBox *from_box, const void *from, size_t element_bytes);

#endif
