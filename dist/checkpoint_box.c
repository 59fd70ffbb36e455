/* Intervals in several dimensions, see dist/checkpoint_box.h.
 *
 * The measure: let h_d be a random function of the positions along dimension d, with values in a field. A box has the
 * measure (h_1(end_1) - h_1(start_1)) (h_2(end_2) - h_2(start_2)) ..., and a set the sum of its boxes'. As a
 * polynomial in the h that sum has one term for each corner, where corners of boxes that touch cancel; the corners that
 * are left determine what the set covers, and different polynomials of degree <= 8 agree at a random place with a
 * chance of 8 / 2^61 (Schwartz and Zippel). */
#include "dist/checkpoint_box.h"

#include "core/base/error.h"
#include "core/base/text.h"

#include <string.h>

static const uint64_t prime = ((uint64_t)1 << 61) - 1;

static KnBox box(int dims, const int64_t *start, const int64_t *count)
{
    KnBox made = {.dims = dims};
    memcpy(made.count, count, (size_t)dims * sizeof *count);
    if (start)
        memcpy(made.start, start, (size_t)dims * sizeof *start);
    return made;
}

KnBox kn_box_of(const KnCheckpointTensor *tensor)
{
    return box(tensor->dims, tensor->start, tensor->count);
}

KnBox kn_box_whole(const KnCheckpointTensor *tensor)
{
    return box(tensor->dims, NULL, tensor->shape);
}

int64_t kn_box_elements(const KnBox *b)
{
    int64_t elements = 1;
    for (int d = 0; d < b->dims; d++)
        elements *= b->count[d];
    return elements;
}

int kn_box_equal(const KnBox *a, const KnBox *b)
{
    size_t bytes = (size_t)a->dims * sizeof *a->start;
    return a->dims == b->dims && memcmp(a->start, b->start, bytes) == 0 && memcmp(a->count, b->count, bytes) == 0;
}

int kn_box_meets(const KnBox *a, const KnBox *b)
{
    for (int d = 0; d < a->dims; d++)
        if (a->start[d] >= b->start[d] + b->count[d] || b->start[d] >= a->start[d] + a->count[d])
            return 0;
    return kn_box_elements(a) > 0 && kn_box_elements(b) > 0;
}

int kn_box_inside(const KnBox *b, const KnBox *whole)
{
    for (int d = 0; d < b->dims; d++)
        if (b->start[d] < 0 || b->count[d] < 0 || b->start[d] > whole->count[d] ||
            b->count[d] > whole->count[d] - b->start[d])
            return 0;
    return b->dims == whole->dims;
}

int kn_box_compare(const KnBox *a, const KnBox *b)
{
    for (int d = 0; d < a->dims; d++)
        if (a->start[d] != b->start[d])
            return a->start[d] < b->start[d] ? -1 : 1;
    return 0;
}

char *kn_box_text(const KnBox *b)
{
    KnText text = {0};
    kn_text_append(&text, "[");
    for (int d = 0; d < b->dims; d++)
        kn_text_appendf(&text, "%s%lld:%lld", d ? ", " : "", (long long)b->start[d],
                        (long long)(b->start[d] + b->count[d]));
    kn_text_append(&text, "]");
    return kn_text_take(&text);
}

/* Modulo a Mersenne prime without a division. */
static uint64_t reduce(unsigned __int128 value)
{
    uint64_t folded = (uint64_t)(value & prime) + (uint64_t)(value >> 61);
    return folded >= prime ? folded - prime : folded;
}

/* A fixed function that looks random: SplitMix64 of dimension and position, reduced. */
static uint64_t height(int dimension, int64_t position)
{
    uint64_t x = (uint64_t)position * 0x9E3779B97F4A7C15u + (uint64_t)(dimension + 1) * 0xD1B54A32D192ED03u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return reduce(x ^ x >> 31);
}

uint64_t kn_box_measure(uint64_t measure, const KnBox *b)
{
    uint64_t product = 1;
    for (int d = 0; d < b->dims; d++) {
        uint64_t side = height(d, b->start[d] + b->count[d]) + prime - height(d, b->start[d]);
        product = reduce((unsigned __int128)product * reduce(side));
    }
    return reduce((unsigned __int128)measure + product);
}

/* Bytes from one element to the next along each dimension. */
static void set_strides(const KnBox *b, size_t element_bytes, size_t *strides)
{
    for (int d = b->dims - 1; d >= 0; d--) {
        strides[d] = element_bytes;
        element_bytes *= (size_t)b->count[d];
    }
}

void kn_box_copy(const KnBox *to_box, void *to, const KnBox *from_box, const void *from, size_t element_bytes)
{
    size_t to_strides[KN_SAFETENSORS_MAX_DIMS], from_strides[KN_SAFETENSORS_MAX_DIMS], run = element_bytes;
    int64_t extent[KN_SAFETENSORS_MAX_DIMS], at[KN_SAFETENSORS_MAX_DIMS] = {0};
    int outer = to_box->dims, complete = 1;
    if (!kn_box_meets(to_box, from_box))
        return;
    set_strides(to_box, element_bytes, to_strides);
    set_strides(from_box, element_bytes, from_strides);
    char *target = to;
    const char *source = from;
    for (int d = 0; d < to_box->dims; d++) {
        int64_t to_end = to_box->start[d] + to_box->count[d], from_end = from_box->start[d] + from_box->count[d];
        int64_t first = to_box->start[d] > from_box->start[d] ? to_box->start[d] : from_box->start[d];
        extent[d] = (to_end < from_end ? to_end : from_end) - first;
        target += (size_t)(first - to_box->start[d]) * to_strides[d];
        source += (size_t)(first - from_box->start[d]) * from_strides[d];
    }
    while (outer > 0 && complete) { /* the last dimensions that lie in one piece on both sides */
        outer--;
        run *= (size_t)extent[outer];
        complete = extent[outer] == to_box->count[outer] && extent[outer] == from_box->count[outer];
    }
    for (int d = outer; d >= 0;) { /* counts through the others */
        size_t to_offset = 0, from_offset = 0;
        for (int k = 0; k < outer; k++) {
            to_offset += (size_t)at[k] * to_strides[k];
            from_offset += (size_t)at[k] * from_strides[k];
        }
        memcpy(target + to_offset, source + from_offset, run);
        for (d = outer - 1; d >= 0 && ++at[d] == extent[d]; d--)
            at[d] = 0;
    }
}
