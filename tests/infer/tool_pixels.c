/* Compares the pixels of two videos or pictures: the judge of test_mesh.sh.
 *
 *   tool_pixels A B      0 where sizes and lengths are the same and no value differs by more than 1 of 255
 *
 * A picture that shows nothing would prove nothing: A's values must span at least 64. */
#include "core/base/error.h"
#include "data/video_read.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST_DIFFERENCE = 1, LEAST_SPAN = 64 };

typedef struct {
    int frames, worst, low, high;
} Comparison;

static void compare_frame(Comparison *c, const uint8_t *a, const uint8_t *b, int64_t values)
{
    for (int64_t i = 0; i < values; i++) {
        int difference = abs(a[i] - b[i]);
        c->worst = difference > c->worst ? difference : c->worst;
        c->low = a[i] < c->low ? a[i] : c->low;
        c->high = a[i] > c->high ? a[i] : c->high;
    }
    c->frames++;
}

static int compare_frames(Comparison *c, KnVideo *a, KnVideo *b)
{
    const KnVideoInfo *size = kn_video_info(a), *other = kn_video_info(b);
    const uint8_t *left, *right;
    if (size->width != other->width || size->height != other->height)
        return kn_fail(KN_EFORMAT, "the sizes differ");
    while (1) {
        int code = kn_video_next(a, &left, NULL), code_b = kn_video_next(b, &right, NULL);
        if (code != code_b)
            return kn_fail(KN_EFORMAT, "one has more frames than the other");
        if (code != KN_OK)
            return code == KN_END ? KN_OK : code;
        compare_frame(c, left, right, (int64_t)size->width * size->height * 3);
    }
}

static int compare(Comparison *c, const char *path_a, const char *path_b)
{
    KnVideo *a = NULL, *b = NULL;
    int code = kn_video_open(&a, path_a, &(KnVideoOptions){0}, NULL);
    if (code == KN_OK)
        code = kn_video_open(&b, path_b, &(KnVideoOptions){0}, NULL);
    if (code == KN_OK)
        code = compare_frames(c, a, b);
    kn_video_close(a);
    kn_video_close(b);
    return code;
}

int main(int argc, char **argv)
{
    Comparison c = {.low = 255};
    int code = argc == 3 ? compare(&c, argv[1], argv[2]) : kn_fail(KN_EINPUT, "usage: tool_pixels A B");
    if (code < 0) {
        fprintf(stderr, "tool_pixels: %s\n", kn_error_message());
        return 2;
    }
    printf("%d frames, values from %d to %d, at most %d apart\n", c.frames, c.low, c.high, c.worst);
    return c.worst > MOST_DIFFERENCE || c.high - c.low < LEAST_SPAN;
}
