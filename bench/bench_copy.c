/* How long one thread takes to copy memory that has been used before, which is the least that a save can cost.
 *
 *     bench_copy BYTES
 *
 * Prints seconds: of five copies, the one in the middle. */
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "train/median.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COPIES = 5 };

int main(int argc, char **argv)
{
    size_t bytes = argc == 2 ? strtoull(argv[1], NULL, 10) : 0;
    double seconds[COPIES];
    void *from, *to;
    if (bytes == 0 || kn_alloc_large(&from, bytes, "what is copied") < 0 ||
        kn_alloc_large(&to, bytes, "the copy") < 0) {
        fprintf(stderr, "bench_copy: %s\n", bytes ? kn_error_message() : "usage: bench_copy BYTES");
        return 1;
    }
    memset(from, 1, bytes);
    memset(to, 2, bytes);
    for (int i = 0; i < COPIES; i++) {
        double start = kn_seconds_now();
        memcpy(to, from, bytes);
        seconds[i] = kn_seconds_now() - start;
        memset(from, ((char *)to)[bytes - 1] + 1, bytes); /* no copy is like another: none is left out */
    }
    printf("%.6f\n", kn_median(seconds, COPIES));
    kn_free_large(from);
    kn_free_large(to);
    return 0;
}
