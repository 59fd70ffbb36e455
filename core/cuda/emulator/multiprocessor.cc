/* A multiprocessor: the threads of one block, who of them goes next, and what they wait for. */
#include "core/cuda/emulator/fiber.h"

#include "core/cuda/emulator/multiprocessor.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace kn_emulated
{

static constexpr unsigned THREADS = 1024, LANES = 32, WARPS = THREADS / LANES, ALL_LANES = 0xffffffffu;

enum Order { FORWARD, BACKWARD, RANDOM };

/* The threads that can run, in the order in which they became ready. */
struct Ready {
    uint16_t numbers[THREADS]; /* a ring */
    unsigned first, count;
};

struct Warp {
    unsigned alive, waiting; /* lanes: not returned; in a warp operation */
    char synced[3];          /* what ThreadSanitizer orders by: whole warps in turns, parts of one */
};

struct Multiprocessor {
    pthread_t host_thread;
    const Launch *launch;
    Block block;
    Thread threads[THREADS];
    unsigned thread_count, live; /* of the block; of them not returned */
    Warp warps[WARPS];
    Ready ready;
    Order order;
    uint64_t random;
    int votes, vote_result;
    unsigned barriers;                            /* that have opened */
    char block_began, block_ended, at_barrier[2]; /* what ThreadSanitizer orders by */
    Context home, fibers[THREADS];
    unsigned fiber_count, free_fibers[THREADS], free_count;
};

KN_EACH_MULTIPROCESSOR Thread *thread;
KN_EACH_MULTIPROCESSOR Block *block;
static KN_EACH_MULTIPROCESSOR Multiprocessor *own;

static void run_threads();

/* ---- what a kernel dies with ---- */

KN_UNSEEN static int waits(const Thread *t)
{
    return t->state == AT_BARRIER || t->state == AT_WARP_OPERATION;
}

KN_UNSEEN static int is_same_site(const Thread *a, const Thread *b)
{
    return a->site->line == b->site->line && a->site->what == b->site->what && a->site->file == b->site->file;
}

KN_UNSEEN static int is_alike(const Thread *a, const Thread *b)
{
    return a->state == b->state && (!waits(a) || is_same_site(a, b)) &&
           (a->state != AT_WARP_OPERATION || a->mask == b->mask);
}

KN_UNSEEN static void describe(const Thread *first, const Thread *last)
{
    if (first == last)
        fprintf(stderr, "  thread %u ", first->number);
    else
        fprintf(stderr, "  threads %u to %u ", first->number, last->number);
    const Site *site = first->site;
    if (first->state == NOT_STARTED)
        fprintf(stderr, "not started\n");
    else if (first->state == RETURNED)
        fprintf(stderr, "returned\n");
    else if (first->state == RUNNING)
        fprintf(stderr, "running\n");
    else if (first->state == AT_BARRIER)
        fprintf(stderr, "at %s, %s:%d\n", site->what, site->file, site->line);
    else
        fprintf(stderr, "in %s of lanes %08x, %s:%d\n", site->what, first->mask, site->file, site->line);
}

[[noreturn]] KN_UNSEEN static void die(const char *why)
{
    static pthread_mutex_t dying = PTHREAD_MUTEX_INITIALIZER;
    const uint3 *at = &own->block.index;
    pthread_mutex_lock(&dying); /* one that dies meanwhile on another multiprocessor stays silent */
    fprintf(stderr, "emulated device: kernel %s, block (%u, %u, %u): %s\n", own->launch->kernel, at->x, at->y, at->z,
            why);
    Thread *first = own->threads, *end = own->threads + own->thread_count;
    for (int lines = 0; first < end && lines < 16; lines++) {
        Thread *last = first;
        while (last + 1 < end && is_alike(first, last + 1))
            last++;
        describe(first, last);
        first = last + 1;
    }
    abort();
}

/* Sanitizers say more of it than this, with handlers of their own. */
#if !defined(KN_EMULATED_ASAN) && !defined(KN_EMULATED_TSAN)

static void say_who_faults(int signal_number, siginfo_t *info, void *)
{
    char why[96];
    if (own->live && pthread_equal(own->host_thread, pthread_self())) {
        snprintf(why, sizeof why, "thread %u uses address %p, where it has no memory", thread->number, info->si_addr);
        die(why);
    }
    if (info->si_code == SEGV_PKUERR)
        fprintf(stderr, "emulated device: the host's code uses the device's memory, at %p\n", info->si_addr);
    signal(signal_number, SIG_DFL);
}

static void watch_for_faults(Multiprocessor *m)
{
    static char stack[64 << 10]; /* that of the fiber may be what has no room */
    stack_t alternative = {};
    struct sigaction action = {};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    action.sa_sigaction = say_who_faults;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    m->host_thread = pthread_self();
}

#else

static void watch_for_faults(Multiprocessor *)
{
}

#endif

/* ---- who goes next ---- */

KN_UNSEEN static void make_ready(Thread *t)
{
    Ready *ready = &own->ready;
    t->state = RUNNING;
    ready->numbers[(ready->first + ready->count++) % THREADS] = (uint16_t)t->number;
}

KN_UNSEEN static uint64_t next_random()
{
    uint64_t r = own->random;
    r ^= r << 13;
    r ^= r >> 7;
    r ^= r << 17;
    return own->random = r;
}

KN_UNSEEN static Thread *take_ready()
{
    Ready *ready = &own->ready;
    uint16_t *last = &ready->numbers[(ready->first + ready->count - 1) % THREADS];
    unsigned number = *last;
    if (own->order == FORWARD) {
        number = ready->numbers[ready->first];
        ready->first = (ready->first + 1) % THREADS;
    } else if (own->order == RANDOM && next_random() % 16 == 0) {
        uint16_t *any = &ready->numbers[(ready->first + next_random() % ready->count) % THREADS];
        number = *any;
        *any = *last;
    }
    ready->count--;
    return &own->threads[number];
}

/* ---- what opens barriers and ends warp operations ---- */

/* Nobody can run: either all stand at one barrier, or they wait for each other for ever. */
KN_UNSEEN static void open_barrier()
{
    Multiprocessor *m = own;
    const Thread *first = nullptr;
    for (unsigned i = 0; i < m->thread_count; i++) {
        const Thread *t = &m->threads[i];
        if (t->state == RETURNED)
            continue;
        if (t->state != AT_BARRIER)
            die("threads wait for each other for ever");
        if (first && !is_same_site(first, t))
            die("threads wait at different barriers");
        first = t;
    }
    m->vote_result = m->votes;
    m->votes = 0;
    m->barriers++;
    for (unsigned i = 0; i < m->thread_count; i++)
        if (m->threads[i].state == AT_BARRIER)
            make_ready(&m->threads[i]);
}

KN_UNSEEN static Thread *lane_of(const Thread *t, unsigned lane)
{
    return &own->threads[t->number / LANES * LANES + lane];
}

KN_UNSEEN static int joins(const Thread *t, const Thread *other)
{
    return other->state == AT_WARP_OPERATION && other->mask == t->mask && other->operation == t->operation &&
           is_same_site(other, t);
}

KN_UNSEEN static uint64_t result_for(const Thread *t, unsigned lanes, uint64_t ballot)
{
    if (t->operation == BALLOT)
        return ballot;
    return t->operation == SHUFFLE && lanes >> t->source & 1 ? lane_of(t, (unsigned)t->source)->given : UINT64_MAX;
}

/* Lets the lanes of t's mask go on once all of them that have not returned are in t's operation; 1 if so. */
KN_UNSEEN static int complete_warp_operation(const Thread *t)
{
    Warp *warp = &own->warps[t->number / LANES];
    unsigned lanes = t->mask & warp->alive;
    uint64_t ballot = 0;
    if ((warp->waiting & lanes) != lanes)
        return 0;
    for (unsigned left = lanes; left; left &= left - 1) {
        const Thread *other = lane_of(t, (unsigned)__builtin_ctz(left));
        if (!joins(t, other))
            return 0;
        ballot |= other->given ? left & -left : 0;
    }
    for (unsigned left = lanes; left; left &= left - 1) {
        Thread *other = lane_of(t, (unsigned)__builtin_ctz(left));
        other->received = result_for(other, lanes, ballot);
        make_ready(other);
    }
    warp->waiting &= ~lanes;
    return 1;
}

/* A lane that returned: others may have waited for it alone. */
KN_UNSEEN static void complete_without(const Thread *returned)
{
    Warp *warp = &own->warps[returned->number / LANES];
    for (unsigned left = warp->waiting; left; left &= left - 1, left &= warp->waiting)
        complete_warp_operation(lane_of(returned, (unsigned)__builtin_ctz(left)));
}

/* ---- fibers, which run one thread after another ---- */

/* The stack that was in use last is in the cache. Threads of one block never share a fiber under ThreadSanitizer, which
 * would take what they do for ordered. */
KN_UNSEEN static Context *take_fiber(const Thread *t)
{
    (void)t;
    unsigned number = own->free_count ? own->free_fibers[--own->free_count] : own->fiber_count;
    KN_IF_TSAN(number = t->number;)
    while (own->fiber_count <= number) {
        fiber_create(own->fibers[own->fiber_count], own->fiber_count, run_threads);
        own->fiber_count++;
    }
    return &own->fibers[number];
}

KN_UNSEEN static void give_fiber_back(const Context *fiber)
{
    (void)fiber;
#ifndef KN_EMULATED_TSAN
    own->free_fibers[own->free_count++] = (unsigned)(fiber - own->fibers);
#endif
}

/* Makes the thread that goes next the present one; gives the fiber to go on with. */
KN_UNSEEN static Context *choose_next()
{
    if (own->ready.count == 0)
        open_barrier();
    thread = take_ready();
    if (thread->state == NOT_STARTED) {
        thread->fiber = take_fiber(thread);
        thread->state = RUNNING;
    }
    return thread->fiber;
}

KN_UNSEEN static void wait_for_turn()
{
    Context *fiber = thread->fiber, *next = choose_next();
    if (next != fiber)
        fiber_switch(*fiber, *next);
}

KN_UNSEEN static void retire()
{
    thread->state = RETURNED;
    own->live--;
    give_fiber_back(thread->fiber);
    own->warps[thread->number / LANES].alive &= ~(1u << thread->number % LANES);
    complete_without(thread);
}

/* Where every fiber begins. The next thread often takes over the fiber on which one has just returned, without a
 * switch. */
KN_UNSEEN static void run_threads()
{
    fiber_begin();
    for (;;) {
        Context *fiber = thread->fiber;
        KN_IF_TSAN(__tsan_acquire(&own->block_began);)
        own->launch->call(own->launch->arguments);
        KN_IF_TSAN(__tsan_release(&own->block_ended);)
        retire();
        Context *next = own->live ? choose_next() : &own->home;
        if (next != fiber)
            fiber_switch(*fiber, *next);
    }
}

/* ---- what threads wait in ---- */

KN_UNSEEN int barrier(int vote, const Site &site)
{
    Multiprocessor *m = own;
    KN_IF_TSAN(char *order = &m->at_barrier[m->barriers % 2]; __tsan_release(order);)
    m->votes += vote != 0;
    thread->site = &site;
    thread->state = AT_BARRIER;
    wait_for_turn();
    KN_IF_TSAN(__tsan_acquire(order);)
    return m->vote_result;
}

KN_UNSEEN uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t given, int source, const Site &site)
{
    Thread *t = thread;
    Warp *warp = &own->warps[t->number / LANES];
    unsigned bit = 1u << t->number % LANES;
    t->operation = operation;
    t->mask = mask;
    t->given = given;
    t->source = source;
    t->site = &site;
    t->state = AT_WARP_OPERATION;
    if (!(mask & bit))
        die("a lane that is not in its own mask");
    KN_IF_TSAN(char *order = &warp->synced[mask == ALL_LANES ? t->whole_warp_syncs++ % 2 : 2];)
    KN_IF_TSAN(if (operation == SYNCWARP) __tsan_release(order);)
    warp->waiting |= bit;
    complete_warp_operation(t);
    wait_for_turn();
    KN_IF_TSAN(if (operation == SYNCWARP) __tsan_acquire(order);)
    return t->received;
}

/* ---- a block ---- */

KN_UNSEEN static unsigned lanes_of_warp(unsigned warp, unsigned threads)
{
    unsigned first = warp * LANES;
    if (threads <= first)
        return 0;
    return threads - first >= LANES ? ALL_LANES : (1u << (threads - first)) - 1;
}

KN_UNSEEN static void begin_block(uint64_t number)
{
    Multiprocessor *m = own;
    const dim3 grid = m->launch->grid, size = m->launch->threads;
    m->block.index = {(unsigned)(number % grid.x), (unsigned)(number / grid.x % grid.y),
                      (unsigned)(number / grid.x / grid.y)};
    m->live = m->thread_count;
    m->votes = 0;
    for (unsigned w = 0; w < WARPS; w++) {
        m->warps[w].alive = lanes_of_warp(w, m->thread_count);
        m->warps[w].waiting = 0;
    }
    m->ready.first = m->ready.count = 0;
    for (unsigned i = 0; i < m->thread_count; i++) {
        Thread *t = &m->threads[i];
        t->index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        t->number = i;
        t->whole_warp_syncs = 0;
        t->copies = 0;
        t->mask = 0;
        make_ready(t);
        t->state = NOT_STARTED;
    }
    memset(m->block.shared, 0xff, m->launch->shared_bytes);
}

KN_UNSEEN static void run_block(uint64_t number)
{
    begin_block(number);
    KN_IF_TSAN(__tsan_release(&own->block_began);)
    fiber_switch(own->home, *choose_next()); /* until the last thread has returned */
    KN_IF_TSAN(__tsan_acquire(&own->block_ended);)
}

/* ---- a launch ---- */

static void choose_order(Multiprocessor *m)
{
    const char *order = getenv("KINORA_EMULATED_THREADS"), *colon = order ? strchr(order, ':') : nullptr;
    uint64_t seed = colon ? strtoull(colon + 1, nullptr, 10) : 0;
    m->order = !order ? FORWARD : order[0] == 'b' ? BACKWARD : order[0] == 'r' ? RANDOM : FORWARD;
    m->random = 88172645463325252u + 7919 * seed;
}

KN_UNSEEN void multiprocessor_run(const Launch &launch, uint64_t first, uint64_t step)
{
    if (!own) {
        own = (Multiprocessor *)calloc(1, sizeof *own);
        watch_for_faults(own);
    }
    Multiprocessor *m = own;
    uint64_t blocks = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    context_of_caller(m->home);
    choose_order(m);
    m->launch = &launch;
    m->thread_count = launch.threads.x * launch.threads.y * launch.threads.z;
    /* Of the exact size, so that AddressSanitizer sees the byte beyond it. */
    m->block = {{0, 0, 0}, launch.threads, launch.grid, (char *)malloc(launch.shared_bytes + !launch.shared_bytes)};
    block = &m->block;
    for (uint64_t number = first; number < blocks; number += step)
        run_block(number);
    free(m->block.shared);
}

} // namespace kn_emulated
