/* The team of worker threads behind core/cpu/team.h.
 *
 * A job has a generation, a number that never comes again. Its blocks are cut into one range for each thread, each
 * with a cursor that holds (generation, next block) in one word: to claim a block is one compare-and-swap on it, which
 * fails for a worker that has been put aside since it read an older job. A thread works through its own range, in the
 * same order for all jobs so that what it wrote for one is in its cache for the next, and then helps with the others.
 * The cursors of a new job need no preparing: an older generation stands for "nothing claimed yet".
 *
 * A job's description is guarded as by a sequence lock: the generation is odd while it is written, and a worker that
 * reads it checks that the generation has not changed meanwhile. Once a worker has claimed a block, the caller waits
 * for it, so the description stays.
 *
 * Sleeping and waking are Dekker's: who sleeps says so, then looks again for the job; who announces a job does so,
 * then looks for sleepers. These four accesses are sequentially consistent. Workers wake each other along a binary
 * tree, so that a caller with many sleepers does not wake them all alone.
 *
 * Where other processes want the processors too, to wake a worker for a short job is worse than to do it alone: it may
 * take the caller's own processor, or be put aside in the midst of a block. Who notices such a thing says so, and for a
 * while, the longer the more often that happens, workers do not watch and callers wake them for long jobs only. */
#include "core/cpu/team.h"

#include "core/base/error.h"
#include "core/cpu/backend.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    MOST_THREADS = 512,
    LINE = 128, /* bytes between variables of different threads: two cache lines, which are fetched in pairs */
    CURSOR_BITS = 24,
    SPIN_NANOSECONDS = 40000, /* a worker watches for the next job so long */
    WAIT_NANOSECONDS = 20000, /* a caller for the end of the last blocks */
    LOOKS_PER_CLOCK = 16,
    ASIDE_NANOSECONDS = 200000, /* between two looks, or for blocks that others began: only if put aside */
    LONG_NANOSECONDS = 200000,  /* a job that is worth waking workers on a crowded machine */
    CROWDED_LEAST = 4000000,    /* how long a sign of a crowded machine counts: this at first, ... */
    CROWDED_MOST = 128000000    /* ... then twice as long each time, up to this */
};

static const int64_t MOST_BLOCKS = ((int64_t)1 << CURSOR_BITS) - 1;

typedef struct Job {
    KnTeamBlock block;
    void *argument;
    int64_t blocks;
    int threads;   /* who may take part: slots below it; also the number of ranges */
    int processor; /* where the caller was, and nobody else should be; -1: no matter */
    uint64_t generation;
    int64_t started; /* the caller's clock ... */
    int wake_late;   /* ... by which it wakes workers, if it has not done so at the start */
} Job;

typedef struct Cursor {
    _Alignas(LINE) atomic_uint_fast64_t claimed; /* generation << CURSOR_BITS | blocks of the range claimed so far */
} Cursor;

typedef struct Worker {
    _Alignas(LINE) atomic_uint asleep; /* 1 from before it sleeps until somebody has woken it; the futex */
} Worker;

static struct {
    /* Written by whoever announces a job. */
    _Alignas(LINE) atomic_uint_fast64_t generation;
    _Atomic(KnTeamBlock) block;
    _Atomic(void *) argument;
    atomic_int_fast64_t blocks;
    atomic_int threads, processor;
    atomic_int_fast64_t crowded_until, crowded_for; /* nanoseconds; two threads may both change them, to no harm */
    /* Written by workers when they have done a block. */
    _Alignas(LINE) atomic_uint finished; /* the futex of a caller that sleeps until it is ... */
    atomic_uint awaited;                 /* ... this; 0 = nobody sleeps */
    _Alignas(LINE) atomic_int busy;      /* a caller has the team */
    int workers;                         /* started; slots 1 .. workers. Belongs to who made the team busy */
    int fork_prepared;
    Cursor cursors[MOST_THREADS];
    Worker sleepers[MOST_THREADS]; /* by slot */
} team;

static _Thread_local int inside_block;

/* --- Waiting ------------------------------------------------------------------------------------------------------ */

static int64_t nanoseconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void futex_sleep(atomic_uint *word, unsigned while_value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, while_value, NULL, NULL, 0);
}

static void futex_wake_one(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* A watch lasts a number of looks and nanoseconds; short on a crowded machine, which it also detects: a long time
 * between two looks means that the thread was put aside. */
typedef struct Watch {
    int64_t started, looked, most;
    int looks;
    int processor; /* where not to watch: the caller works there */
} Watch;

static int crowded(int64_t now)
{
    return now < atomic_load_explicit(&team.crowded_until, memory_order_relaxed);
}

static void say_crowded(int64_t now)
{
    int64_t until = atomic_load_explicit(&team.crowded_until, memory_order_relaxed);
    int64_t before = atomic_load_explicit(&team.crowded_for, memory_order_relaxed), next = CROWDED_LEAST;
    if (now < until)
        return;
    if (now < until + before) /* it is so again soon after */
        next = 2 * before < CROWDED_MOST ? 2 * before : CROWDED_MOST;
    atomic_store_explicit(&team.crowded_for, next, memory_order_relaxed);
    atomic_store_explicit(&team.crowded_until, now + next, memory_order_relaxed);
}

/* Pauses for one look; 0 when the watch is over. */
static int watch_on(Watch *watch)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    if (++watch->looks % LOOKS_PER_CLOCK)
        return 1;
    int64_t now = nanoseconds_now();
    if (watch->started == 0)
        watch->started = watch->looked = now;
    if (now - watch->looked > ASIDE_NANOSECONDS || (watch->processor >= 0 && watch->processor == sched_getcpu()))
        say_crowded(now);
    watch->looked = now;
    return !crowded(now) && now - watch->started < watch->most;
}

/* --- A job's blocks ----------------------------------------------------------------------------------------------- */

/* The job of `generation`; 0 if it has been followed by another. */
static int read_job(uint64_t generation, Job *job)
{
    job->generation = generation;
    job->block = atomic_load_explicit(&team.block, memory_order_acquire);
    job->argument = atomic_load_explicit(&team.argument, memory_order_acquire);
    job->blocks = atomic_load_explicit(&team.blocks, memory_order_acquire);
    job->threads = atomic_load_explicit(&team.threads, memory_order_acquire);
    job->processor = atomic_load_explicit(&team.processor, memory_order_acquire);
    return atomic_load_explicit(&team.generation, memory_order_relaxed) == generation;
}

/* The next block of a range of `count` that nobody has claimed, or -1. Relaxed, since what a block reads was made
 * visible with the generation. */
static int64_t claim(Cursor *cursor, uint64_t generation, int64_t count)
{
    uint64_t seen = atomic_load_explicit(&cursor->claimed, memory_order_relaxed);
    for (;;) {
        uint64_t of = seen >> CURSOR_BITS;
        int64_t next = of == generation ? (int64_t)(seen & (uint64_t)MOST_BLOCKS) : 0;
        if (of > generation || next >= count)
            return -1;
        uint64_t claimed = generation << CURSOR_BITS | (uint64_t)(next + 1);
        if (atomic_compare_exchange_weak_explicit(&cursor->claimed, &seen, claimed, memory_order_relaxed,
                                                  memory_order_relaxed))
            return next;
    }
}

static void tell_finished(void)
{
    unsigned finished = atomic_fetch_add(&team.finished, 1) + 1;
    if (atomic_load(&team.awaited) == finished)
        futex_wake_one(&team.finished);
}

/* Wakes those below `slot` in the tree. */
static void wake_children(int slot, int threads)
{
    for (int child = 2 * slot + 1; child <= 2 * slot + 2 && child < threads; child++) {
        atomic_uint *asleep = &team.sleepers[child].asleep;
        if (atomic_load(asleep) && atomic_exchange(asleep, 0))
            futex_wake_one(asleep);
    }
}

/* Works for the job until nothing is left to claim; returns how many blocks it did. */
static int64_t take_part(const Job *job, int slot)
{
    int64_t done = 0;
    int wake_late = slot == 0 && job->wake_late;
    inside_block = 1;
    for (int i = 0; i < job->threads; i++) {
        int range = (slot + i) % job->threads;
        int64_t first = job->blocks * range / job->threads, end = job->blocks * (range + 1) / job->threads, next;
        while ((next = claim(&team.cursors[range], job->generation, end - first)) >= 0) {
            job->block(job->argument, first + next, slot);
            done++;
            if (slot > 0)
                tell_finished();
            if (wake_late && nanoseconds_now() - job->started > LONG_NANOSECONDS) {
                wake_children(0, job->threads);
                wake_late = 0;
            }
        }
    }
    inside_block = 0;
    return done;
}

/* --- Workers ------------------------------------------------------------------------------------------------------ */

/* A generation other than the last one seen that is whole. */
static uint64_t await_generation(int slot, uint64_t last, Watch *watch)
{
    atomic_uint *asleep = &team.sleepers[slot].asleep;
    for (;;) {
        uint64_t generation = atomic_load_explicit(&team.generation, memory_order_acquire);
        if (generation != last && generation % 2 == 0)
            return generation;
        if (watch_on(watch))
            continue;
        atomic_store(asleep, 1);
        generation = atomic_load(&team.generation);
        if (generation == last || generation % 2) /* odd: whoever writes it will look for sleepers afterwards */
            while (atomic_load(asleep))
                futex_sleep(asleep, 1);
        else
            atomic_store(asleep, 0);
        *watch = (Watch){.most = SPIN_NANOSECONDS, .processor = -1};
    }
}

static void *worker_main(void *argument)
{
    int slot = (int)(intptr_t)argument;
    uint64_t last = 0;
    Watch watch = {.most = SPIN_NANOSECONDS, .processor = -1};
    for (;;) {
        last = await_generation(slot, last, &watch);
        Job job;
        if (!read_job(last, &job) || slot >= job.threads)
            continue; /* the watch goes on: jobs without this worker do not keep it awake */
        watch = (Watch){.most = SPIN_NANOSECONDS, .processor = job.processor};
        wake_children(slot, job.threads);
        if (job.processor >= 0 && job.processor == sched_getcpu())
            say_crowded(nanoseconds_now()); /* the caller goes on as soon as this worker sleeps */
        else
            take_part(&job, slot);
    }
    return NULL;
}

/* In the child of a fork: the workers are not there. */
static void forget_workers(void)
{
    team.workers = 0;
    atomic_store(&team.busy, 0);
}

static void start_worker(int slot)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}; /* faults of the thread itself */
    sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&all, own[i]);
    atomic_store(&team.sleepers[slot].asleep, 0);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    if (pthread_create(&thread, &attributes, worker_main, (void *)(intptr_t)slot) == 0)
        team.workers = slot;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* Workers for slots below `threads`, or as many as the system gives; returns the number of threads there are. */
static int gather(int threads)
{
    if (!team.fork_prepared)
        team.fork_prepared = pthread_atfork(NULL, NULL, forget_workers) == 0;
    while (team.workers + 1 < threads) {
        int before = team.workers;
        start_worker(before + 1);
        if (team.workers == before)
            break;
    }
    return team.workers + 1 < threads ? team.workers + 1 : threads;
}

/* --- Callers ------------------------------------------------------------------------------------------------------ */

static void announce(Job *job)
{
    uint64_t writing = atomic_load_explicit(&team.generation, memory_order_relaxed) | 1;
    atomic_store_explicit(&team.generation, writing, memory_order_relaxed);
    atomic_store_explicit(&team.block, job->block, memory_order_release);
    atomic_store_explicit(&team.argument, job->argument, memory_order_release);
    atomic_store_explicit(&team.blocks, job->blocks, memory_order_release);
    atomic_store_explicit(&team.threads, job->threads, memory_order_release);
    atomic_store_explicit(&team.processor, job->processor, memory_order_release);
    atomic_store_explicit(&team.finished, 0, memory_order_relaxed);
    atomic_store_explicit(&team.awaited, 0, memory_order_relaxed);
    job->generation = writing + 1;
    atomic_store(&team.generation, job->generation);
}

/* Until workers have finished `count` blocks. To sleep lets the system run a worker that was put aside in one on this
 * processor. */
static void await_finished(const Job *job, unsigned count)
{
    Watch watch = {.most = WAIT_NANOSECONDS, .processor = -1};
    while (atomic_load_explicit(&team.finished, memory_order_acquire) != count) {
        if (watch_on(&watch))
            continue;
        int64_t since = nanoseconds_now(), own = since - job->started;
        atomic_store(&team.awaited, count);
        for (unsigned finished; (finished = atomic_load(&team.finished)) != count;)
            futex_sleep(&team.finished, finished);
        int64_t now = nanoseconds_now();
        if (now - since > ASIDE_NANOSECONDS + own) /* no block should take longer than all that the caller did */
            say_crowded(now);
    }
}

void kn_team_run_on(int threads, int64_t blocks, KnTeamBlock block, void *argument)
{
    KN_ASSERT(blocks >= 0 && blocks <= MOST_BLOCKS);
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    threads = threads < blocks ? threads : (int)blocks;
    if (threads <= 1 || inside_block || atomic_exchange_explicit(&team.busy, 1, memory_order_acquire)) {
        for (int64_t i = 0; i < blocks; i++)
            block(argument, i, 0);
        return;
    }
    Job job = {.block = block, .argument = argument, .blocks = blocks, .threads = gather(threads)};
    job.started = nanoseconds_now();
    job.wake_late = crowded(job.started);
    job.processor = job.wake_late ? -1 : sched_getcpu();
    announce(&job);
    if (!job.wake_late)
        wake_children(0, job.threads);
    int64_t own = take_part(&job, 0);
    await_finished(&job, (unsigned)(blocks - own));
    atomic_store_explicit(&team.busy, 0, memory_order_release);
}

void kn_team_run(int64_t blocks, KnTeamBlock block, void *argument)
{
    kn_team_run_on(kn_cpu_threads(), blocks, block, argument);
}
