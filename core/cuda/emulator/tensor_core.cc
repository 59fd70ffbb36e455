/* What the lanes of a warp give each other, and the copies that a thread has under way. */
#include "core/cuda/emulator/tensor_core.h"

#include <stdio.h>
#include <stdlib.h>

namespace kn_emulated
{

static constexpr unsigned THREADS = 1024, LANES = 32;

/* Two of each: a lane may give the next while another still reads the last. */
struct Meeting {
    Factors factors;
    const void *rows[LANES];
};
static KN_EACH_MULTIPROCESSOR Meeting meetings[THREADS / LANES][2];
static KN_EACH_MULTIPROCESSOR uint8_t turns[THREADS];
static KN_EACH_MULTIPROCESSOR Copies copies[THREADS];

KN_UNSEEN static Meeting &next_meeting()
{
    return meetings[thread->number / LANES][turns[thread->number]++ % 2];
}

/* A shuffle of nothing: waits for all lanes and orders no memory. */
KN_UNSEEN static void meet(const Site &site)
{
    warp_operation(SHUFFLE, 0xffffffffu, 0, own_lane(), site);
}

KN_UNSEEN static void put_pair(float *to, uint32_t pair)
{
    to[0] = same_bits<float>(pair << 16);
    to[1] = same_bits<float>(pair & 0xffff0000u);
}

KN_UNSEEN const Factors &share_factors(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Site &site)
{
    Factors &f = next_meeting().factors;
    const int g = own_lane() / 4, t = own_lane() % 4;
    put_pair(&f.a[g][2 * t], a[0]);
    put_pair(&f.a[g + 8][2 * t], a[1]);
    put_pair(&f.a[g][2 * t + 8], a[2]);
    put_pair(&f.a[g + 8][2 * t + 8], a[3]);
    put_pair(&f.b[g][2 * t], b0);
    put_pair(&f.b[g][2 * t + 8], b1);
    meet(site);
    return f;
}

KN_UNSEEN const void *const *share_rows(const void *row, const Site &site)
{
    Meeting &meeting = next_meeting();
    if ((uintptr_t)row % 16)
        refuse_copy("an address that is not a multiple of 16", site);
    meeting.rows[own_lane()] = row;
    meet(site);
    return meeting.rows;
}

KN_UNSEEN Copies &copies_of_thread()
{
    Copies &own = copies[thread->number];
    if (!thread->copies) { /* those of a former block are no longer anybody's */
        own.count = 0;
        thread->copies = 1;
    }
    return own;
}

KN_UNSEEN void refuse_copy(const char *why, const Site &site)
{
    fprintf(stderr, "emulated device: block (%u, %u, %u), thread %u, %s, %s:%d: %s\n", block->index.x, block->index.y,
            block->index.z, thread->number, site.what, site.file, site.line, why);
    abort();
}

} // namespace kn_emulated
