/* Each kind of exchange at several sizes, and how much of one costs the computation beside it. */
#include "train/calibrate_exchanges.h"

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/cpu/matmul.h"
#include "train/median.h"

#include <stdlib.h>
#include <string.h>

enum { RUNS = 5, LARGEST = 1 << 24, BESIDE = 1 << 22 };

typedef struct Bench {
    KnComm *comm;
    char *send, *receive;
    int64_t *offsets; /* [ranks + 1] */
    int64_t bytes;
} Bench;

/* Even cuts of whole floats, counted in floats (unit 1) or bytes (unit 4). */
static void cut(Bench *b, int64_t unit)
{
    for (int r = 0; r <= b->comm->ranks; r++)
        b->offsets[r] = b->bytes / 4 * r / b->comm->ranks * unit;
}

static int all_reduce(Bench *b, KnCommTicket *ticket)
{
    return b->comm->table->all_reduce_start(b->comm, b->send, b->bytes / 4, KN_F32, "calibrate", ticket);
}

static int reduce_scatter(Bench *b, KnCommTicket *ticket)
{
    cut(b, 1);
    return b->comm->table->reduce_scatter_start(b->comm, b->send, b->receive, b->offsets, KN_F32, "calibrate", ticket);
}

static int all_gather(Bench *b, KnCommTicket *ticket)
{
    cut(b, 4);
    return b->comm->table->all_gather_start(b->comm, b->send, b->receive, b->offsets, "calibrate", ticket);
}

static int all_to_all(Bench *b, KnCommTicket *ticket)
{
    int64_t each = b->bytes / 4 / b->comm->ranks * 4;
    for (int r = 0; r <= b->comm->ranks; r++)
        b->offsets[r] = each * r;
    return b->comm->table->all_to_all_start(b->comm, b->send, b->offsets, b->receive, b->offsets, "calibrate", ticket);
}

static int send_receive(Bench *b, KnCommTicket *ticket)
{
    int next = (b->comm->rank + 1) % b->comm->ranks, last = (b->comm->rank + b->comm->ranks - 1) % b->comm->ranks;
    return b->comm->table->send_receive_start(b->comm, b->send, (size_t)b->bytes, next, b->receive, (size_t)b->bytes,
                                              last, "calibrate", ticket);
}

static const struct {
    const char *name;
    int (*start)(Bench *b, KnCommTicket *ticket);
} exchanges[] = {{"all_reduce", all_reduce},
                 {"reduce_scatter", reduce_scatter},
                 {"all_gather", all_gather},
                 {"all_to_all", all_to_all},
                 {"send_receive", send_receive}};
enum { EXCHANGE_COUNT = sizeof exchanges / sizeof *exchanges };

static int time_exchange(Bench *b, int which, double *seconds)
{
    double times[RUNS];
    for (int run = -1; run < RUNS; run++) {
        KnCommTicket ticket = 0;
        KN_TRY(b->comm->table->barrier(b->comm, "calibrate"));
        double start = kn_seconds_now();
        KN_TRY(exchanges[which].start(b, &ticket));
        KN_TRY(b->comm->table->wait(b->comm, ticket));
        if (run >= 0)
            times[run] = kn_seconds_now() - start;
    }
    *seconds = kn_median(times, RUNS);
    return KN_OK;
}

static int time_all(Bench *b, KnRateSamples *samples, KnDevice *device)
{
    for (int which = 0; which < EXCHANGE_COUNT; which++)
        for (b->bytes = 64; b->bytes <= LARGEST; b->bytes *= 16) {
            double seconds = 0;
            KN_TRY(time_exchange(b, which, &seconds));
            kn_rate_samples_add(samples, exchanges[which].name, KN_DTYPE_COUNT, b->comm->ranks, (double)b->bytes,
                                (double)b->bytes / seconds);
            if (exchanges[which].start == send_receive && b->bytes == 64)
                device->inside.latency = seconds;
            if (exchanges[which].start == send_receive)
                device->inside.bandwidth = (double)b->bytes / seconds;
        }
    return KN_OK;
}

/* Something to compute: products of about `seconds` altogether. */
static double compute(double seconds)
{
    enum { N = 256 };
    float *a = NULL, *c = NULL;
    void *workspace = NULL;
    KN_ASSERT(kn_alloc_large((void **)&a, N * N * sizeof *a, "a") == KN_OK);
    KN_ASSERT(kn_alloc_large((void **)&c, N * N * sizeof *c, "c") == KN_OK);
    KnMatmul product = {.m = N, .n = N, .k = N, .a = a, .b = a, .c = c};
    KN_ASSERT(kn_alloc_large(&workspace, kn_matmul_workspace_bytes(&product) + 64, "workspace") == KN_OK);
    double count = 0, start = kn_seconds_now();
    for (; kn_seconds_now() - start < seconds; count++)
        kn_matmul_run(&product, workspace);
    double rate = count / (kn_seconds_now() - start);
    kn_free_large(a);
    kn_free_large(c);
    kn_free_large(workspace);
    return rate;
}

/* While an exchange is under way products are computed for twice its time: what is missing of them, it has cost. */
static int measure_overlap(Bench *b, double *overlap)
{
    double alone = 0, seconds, lost[RUNS];
    b->bytes = BESIDE;
    KN_TRY(time_exchange(b, 0, &seconds));
    for (int run = 0; run < RUNS; run++) {
        KnCommTicket ticket = 0;
        KN_TRY(b->comm->table->barrier(b->comm, "calibrate"));
        alone = compute(2 * seconds);
        KN_TRY(b->comm->table->barrier(b->comm, "calibrate"));
        KN_TRY(all_reduce(b, &ticket));
        double beside = compute(2 * seconds);
        KN_TRY(b->comm->table->wait(b->comm, ticket));
        lost[run] = 2 * (1 - beside / alone); /* in times of the exchange */
    }
    double typical = kn_median(lost, RUNS);
    *overlap = typical < 0 ? 1 : typical > 1 ? 0 : 1 - typical;
    return KN_OK;
}

int kn_calibrate_exchanges(KnRateSamples *samples, KnDevice *device, KnComm *comm)
{
    device->inside = device->between = (KnLink){0, 1e9};
    device->overlap = 1;
    if (!comm || comm->ranks == 1)
        return KN_OK;
    Bench b = {.comm = comm,
               .send = kn_alloc(LARGEST),
               .receive = kn_alloc(LARGEST),
               .offsets = kn_alloc((size_t)(comm->ranks + 1) * sizeof(int64_t))};
    int code = time_all(&b, samples, device);
    if (code == KN_OK)
        code = measure_overlap(&b, &device->overlap);
    device->between = device->inside;
    free(b.send);
    free(b.receive);
    free(b.offsets);
    return code;
}
