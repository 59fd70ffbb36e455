/* What every implementation of the communicator promises, as functions that each rank runs: on one process alone, on
 * threads (test_comm_self.c) and under mpirun (test_comm_mpi.c). A case checks with CHECK and returns a code. */
#ifndef KN_TESTS_COMM_CASES_H
#define KN_TESTS_COMM_CASES_H

#include "core/base/error.h"
#include "core/base/memory.h"
#include "dist/comm.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CASE_RANKS_MAX = 16 };

/* Where an implementation promises less: sums of bfloat16 are rounded after each rank, and all ranks start the calls of
 * different groups in one order. */
static int case_rounds_at_each_rank, case_one_order;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return kn_fail(KN_EFORMAT, "check failed at line %d: %s (%s)", __LINE__, #condition, kn_error_message());  \
    } while (0)

/* ---- values ---- */

static uint64_t mixed(int rank, int64_t index, int salt)
{
    uint64_t x = (uint64_t)index * 0x9E3779B97F4A7C15u + (uint64_t)(rank + 1) * 0xD1B54A32D192ED03u + (uint64_t)salt;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9u;
    return x ^ (x >> 32);
}

/* bfloat16 has 8 significant bits; frexp and rint, to even, say it without the project's own function. */
static float rounded_to_bf16(float value)
{
    int exponent;
    double mantissa = frexp((double)value, &exponent);
    return (float)ldexp(rint(ldexp(mantissa, 8)), exponent - 8);
}

/* Over many magnitudes, so that every order of summation gives other bits. */
static float value_of(int rank, int64_t index, int salt, KnDtype dtype)
{
    static const double scales[16] = {1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1,
                                      1,    3,    1e1,  3e1,  1e2,  3e2,  1e3,  3e3};
    uint64_t x = mixed(rank, index, salt);
    float value = (float)(((double)(x & 0xffffff) / 0xffffff - 0.5) * scales[x >> 60]);
    return dtype == KN_BF16 ? rounded_to_bf16(value) : value;
}

/* `ranks` lists the members of a group in order. */
static float expected_sum(const int *ranks, int count, int64_t index, int salt, KnDtype dtype)
{
    float sum = value_of(ranks[0], index, salt, dtype);
    for (int i = 1; i < count; i++) {
        sum += value_of(ranks[i], index, salt, dtype);
        if (case_rounds_at_each_rank && dtype == KN_BF16)
            sum = rounded_to_bf16(sum);
    }
    return dtype == KN_BF16 ? rounded_to_bf16(sum) : sum;
}

static void put_value(void *values, int64_t index, KnDtype dtype, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == KN_F32)
        ((float *)values)[index] = value;
    else
        ((uint16_t *)values)[index] = (uint16_t)(bits >> 16);
}

static int has_value(const void *values, int64_t index, KnDtype dtype, float value)
{
    char expected[4];
    size_t bytes = kn_dtype_bytes(dtype);
    put_value(expected, 0, dtype, value);
    return memcmp((const char *)values + (size_t)index * bytes, expected, bytes) == 0;
}

static void *filled_values(int rank, int64_t count, int salt, KnDtype dtype)
{
    void *values = kn_alloc((size_t)count * kn_dtype_bytes(dtype));
    for (int64_t i = 0; i < count; i++)
        put_value(values, i, dtype, value_of(rank, i, salt, dtype));
    return values;
}

static const int *all_ranks(void)
{
    static const int ranks[CASE_RANKS_MAX] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return ranks;
}

static unsigned char byte_of(int from, int to, int64_t index)
{
    return (unsigned char)mixed(from + 100 * to, index, 7);
}

/* Parts of very different sizes; every third rank's has none. */
static int64_t cut(int64_t *offsets, int ranks, int64_t size, int turn)
{
    offsets[0] = 0;
    for (int rank = 0; rank < ranks; rank++)
        offsets[rank + 1] = offsets[rank] + ((rank + turn) % 3 == 1 ? 0 : size / (1 + (rank + turn) % 4) + rank);
    return offsets[ranks];
}

/* ---- sums ---- */

static int case_all_reduce(KnComm *comm)
{
    static const int64_t counts[] = {0, 1, 2, 3, 1023, 1024, 1025, 4099, 65537, 150001};
    enum { COUNT = 2 * sizeof counts / sizeof *counts };
    void *buffers[COUNT];
    KnCommTicket tickets[COUNT];
    for (int i = 0; i < COUNT; i++) { /* all under way at the same time */
        KnDtype dtype = i % 2 ? KN_BF16 : KN_F32;
        buffers[i] = filled_values(comm->rank, counts[i / 2], i, dtype);
        KN_TRY(comm->table->all_reduce_start(comm, buffers[i], counts[i / 2], dtype, "gradients", &tickets[i]));
    }
    for (int i = COUNT - 1; i >= 0; i--) { /* waited for in any order */
        KnDtype dtype = i % 2 ? KN_BF16 : KN_F32;
        KN_TRY(comm->table->wait(comm, tickets[i]));
        for (int64_t k = 0; k < counts[i / 2]; k++)
            CHECK(has_value(buffers[i], k, dtype, expected_sum(all_ranks(), comm->ranks, k, i, dtype)));
        free(buffers[i]);
    }
    return KN_OK;
}

static int check_reduce_scatter(KnComm *comm, int64_t size, int turn, KnDtype dtype, int in_place)
{
    int64_t offsets[CASE_RANKS_MAX + 1], count = cut(offsets, comm->ranks, size, turn);
    int64_t start = offsets[comm->rank], length = offsets[comm->rank + 1] - start;
    size_t bytes = kn_dtype_bytes(dtype);
    KnCommTicket ticket;
    char *all = filled_values(comm->rank, count, turn, dtype), *own = kn_alloc((size_t)length * bytes);
    char *mine = in_place ? all + (size_t)start * bytes : own;
    KN_TRY(comm->table->reduce_scatter_start(comm, all, mine, offsets, dtype, "sharded gradients", &ticket));
    KN_TRY(comm->table->wait(comm, ticket));
    for (int64_t i = 0; i < length; i++)
        CHECK(has_value(mine, i, dtype, expected_sum(all_ranks(), comm->ranks, start + i, turn, dtype)));
    free(all);
    free(own);
    return KN_OK;
}

static int case_reduce_scatter(KnComm *comm)
{
    static const int64_t sizes[] = {0, 1, 777, 20011, 100003};
    for (int i = 0; i < 5; i++)
        for (int kind = 0; kind < 4; kind++)
            KN_TRY(check_reduce_scatter(comm, sizes[i] >> (kind & 1), i + kind, kind & 1 ? KN_BF16 : KN_F32, kind & 2));
    return KN_OK;
}

/* ---- bytes ---- */

static int check_all_gather(KnComm *comm, int64_t size, int turn, int in_place)
{
    int64_t offsets[CASE_RANKS_MAX + 1], bytes = cut(offsets, comm->ranks, size, turn);
    int64_t start = offsets[comm->rank], length = offsets[comm->rank + 1] - start;
    KnCommTicket ticket;
    unsigned char *all = kn_alloc((size_t)bytes), *own = kn_alloc((size_t)length);
    unsigned char *mine = in_place ? all + start : own;
    for (int64_t i = 0; i < length; i++)
        mine[i] = byte_of(comm->rank, turn, i);
    KN_TRY(comm->table->all_gather_start(comm, mine, all, offsets, "sharded weights", &ticket));
    memset(offsets, 0, sizeof offsets); /* they are the caller's again */
    KN_TRY(comm->table->wait(comm, ticket));
    cut(offsets, comm->ranks, size, turn);
    for (int rank = 0; rank < comm->ranks; rank++)
        for (int64_t i = offsets[rank]; i < offsets[rank + 1]; i++)
            CHECK(all[i] == byte_of(rank, turn, i - offsets[rank]));
    free(all);
    free(own);
    return KN_OK;
}

static int case_all_gather(KnComm *comm)
{
    static const int64_t sizes[] = {0, 1, 63, 65, 5000, 200001};
    for (int i = 0; i < 6; i++)
        for (int in_place = 0; in_place < 2; in_place++)
            KN_TRY(check_all_gather(comm, sizes[i], i, in_place));
    return KN_OK;
}

/* From rank a to rank b go (3 a + 5 b + turn) % 7 / 6 of `size` bytes: none for some pairs. */
static int64_t pair_bytes(int from, int to, int64_t size, int turn)
{
    int part = (3 * from + 5 * to + turn) % 7;
    return part ? size * part / 6 + from + 2 * to : 0;
}

static int check_all_to_all(KnComm *comm, int64_t size, int turn)
{
    int64_t out[CASE_RANKS_MAX + 1] = {0}, in[CASE_RANKS_MAX + 1] = {0};
    for (int rank = 0; rank < comm->ranks; rank++) {
        out[rank + 1] = out[rank] + pair_bytes(comm->rank, rank, size, turn);
        in[rank + 1] = in[rank] + pair_bytes(rank, comm->rank, size, turn);
    }
    unsigned char *send = kn_alloc((size_t)out[comm->ranks]), *receive = kn_alloc((size_t)in[comm->ranks]);
    KnCommTicket ticket;
    for (int rank = 0; rank < comm->ranks; rank++)
        for (int64_t i = out[rank]; i < out[rank + 1]; i++)
            send[i] = byte_of(comm->rank, rank, i - out[rank]);
    KN_TRY(comm->table->all_to_all_start(comm, send, out, receive, in, "heads", &ticket));
    KN_TRY(comm->table->wait(comm, ticket));
    for (int rank = 0; rank < comm->ranks; rank++)
        for (int64_t i = in[rank]; i < in[rank + 1]; i++)
            CHECK(receive[i] == byte_of(rank, comm->rank, i - in[rank]));
    free(send);
    free(receive);
    return KN_OK;
}

static int case_all_to_all(KnComm *comm)
{
    static const int64_t sizes[] = {0, 1, 100, 90011};
    for (int i = 0; i < 4; i++)
        for (int turn = 0; turn < 3; turn++)
            KN_TRY(check_all_to_all(comm, sizes[i], turn));
    return KN_OK;
}

static int64_t ring_bytes(int from, int shift)
{
    return (from + shift) % 4 == 3 ? 0 : 40000 * shift + 10 * from;
}

/* Every shift of the ring, 0 (to itself) included, all under way at once. */
static int case_send_receive(KnComm *comm)
{
    KnCommTicket tickets[CASE_RANKS_MAX];
    unsigned char *sent[CASE_RANKS_MAX], *received[CASE_RANKS_MAX];
    for (int shift = 0; shift < comm->ranks; shift++) {
        int to = (comm->rank + shift) % comm->ranks, from = (comm->rank - shift + comm->ranks) % comm->ranks;
        int64_t out = ring_bytes(comm->rank, shift), in = ring_bytes(from, shift);
        sent[shift] = kn_alloc((size_t)out);
        received[shift] = kn_alloc((size_t)in);
        for (int64_t i = 0; i < out; i++)
            sent[shift][i] = byte_of(comm->rank, to, i);
        KN_TRY(comm->table->send_receive_start(comm, sent[shift], (size_t)out, to, received[shift], (size_t)in, from,
                                               "keys and values", &tickets[shift]));
    }
    for (int shift = 0; shift < comm->ranks; shift++) {
        int from = (comm->rank - shift + comm->ranks) % comm->ranks;
        KN_TRY(comm->table->wait(comm, tickets[shift]));
        for (int64_t i = 0; i < ring_bytes(from, shift); i++)
            CHECK(received[shift][i] == byte_of(from, comm->rank, i));
        free(sent[shift]);
        free(received[shift]);
    }
    return KN_OK;
}

/* Two ranks speak, the others are not asked; then all meet. */
static int case_partners_alone(KnComm *comm)
{
    int last = comm->ranks - 1, partner = last - comm->rank, mine = comm->rank + 5, theirs = -1;
    KnCommTicket ticket;
    for (int turn = 0; turn < 20 && (comm->rank == 0 || comm->rank == last); turn++, mine += 100) {
        KN_TRY(comm->table->send_receive_start(comm, &mine, sizeof mine, partner, &theirs, sizeof theirs, partner,
                                               "pair", &ticket));
        KN_TRY(comm->table->wait(comm, ticket));
        CHECK(theirs == partner + 5 + 100 * turn);
    }
    return comm->table->barrier(comm, "all");
}

static int case_broadcast(KnComm *comm)
{
    static const int64_t counts[] = {0, 1, 15, 1000, 1500001};
    for (int i = 0; i < 5; i++) {
        int root = i % comm->ranks;
        uint32_t *words = kn_alloc((size_t)counts[i] * sizeof *words);
        for (int64_t k = 0; k < counts[i] && comm->rank == root; k++)
            words[k] = (uint32_t)k * 2654435761u + (uint32_t)i;
        KN_TRY(comm->table->broadcast(comm, words, (size_t)counts[i] * sizeof *words, root, "weights"));
        for (int64_t k = 0; k < counts[i]; k++)
            CHECK(words[k] == (uint32_t)k * 2654435761u + (uint32_t)i);
        free(words);
    }
    return KN_OK;
}

/* ---- groups ---- */

typedef struct CaseGroup {
    KnComm *comm;
    int members[CASE_RANKS_MAX];
} CaseGroup;

static int make_group(KnComm *comm, CaseGroup *group, const int *colors, const char *name)
{
    int rank = 0, count = 0;
    KN_TRY(comm->table->split(comm, colors[comm->rank], name, &group->comm));
    for (int r = 0; r < comm->ranks; r++) {
        if (r == comm->rank)
            rank = count;
        if (colors[r] == colors[comm->rank])
            group->members[count++] = r;
    }
    CHECK(group->comm->rank == rank && group->comm->ranks == count);
    return KN_OK;
}

static int check_group_sum(const CaseGroup *group, void *values, int64_t count, int salt)
{
    for (int64_t k = 0; k < count; k++)
        CHECK(has_value(values, k, KN_F32, expected_sum(group->members, group->comm->ranks, k, salt, KN_F32)));
    free(values);
    return KN_OK;
}

/* Rows and columns of a grid two ranks wide, and twice all ranks. On each group a sum and an exchange are under way at
 * once, and ranks start them in different orders. */
static int case_groups(KnComm *comm)
{
    enum { COUNT = 20003, TURNS = 3, GROUPS = 4 };
    static const char *const names[GROUPS] = {"rows", "columns", "twin", "other twin"};
    CaseGroup groups[GROUPS];
    int colors[CASE_RANKS_MAX];
    for (int g = 0; g < GROUPS; g++) {
        for (int rank = 0; rank < comm->ranks; rank++)
            colors[rank] = g == 0 ? rank / 2 : g == 1 ? 1000 - rank % 2 : -7;
        KN_TRY(make_group(comm, &groups[g], colors, names[g]));
    }
    for (int turn = 0; turn < TURNS; turn++) {
        void *sums[GROUPS];
        int all[GROUPS][CASE_RANKS_MAX];
        KnCommTicket sum_tickets[GROUPS], who_tickets[GROUPS];
        int64_t offsets[CASE_RANKS_MAX + 1];
        for (int rank = 0; rank <= comm->ranks; rank++)
            offsets[rank] = rank * (int64_t)sizeof(int);
        for (int i = 0; i < GROUPS; i++) {
            int g = (i + (case_one_order ? 0 : comm->rank) + turn) % GROUPS;
            KnComm *group = groups[g].comm;
            sums[g] = filled_values(comm->rank, COUNT, g, KN_F32);
            KN_TRY(group->table->all_reduce_start(group, sums[g], COUNT, KN_F32, "sum", &sum_tickets[g]));
            KN_TRY(group->table->all_gather_start(group, &comm->rank, all[g], offsets, "who", &who_tickets[g]));
        }
        KN_TRY(comm->table->barrier(comm, "all"));
        for (int g = 0; g < GROUPS; g++) {
            KN_TRY(groups[g].comm->table->wait(groups[g].comm, who_tickets[g]));
            CHECK(memcmp(all[g], groups[g].members, (size_t)groups[g].comm->ranks * sizeof(int)) == 0);
            KN_TRY(groups[g].comm->table->wait(groups[g].comm, sum_tickets[g]));
            KN_TRY(check_group_sum(&groups[g], sums[g], COUNT, g));
        }
    }
    for (int g = 0; g < GROUPS; g++)
        groups[g].comm->table->destroy(groups[g].comm);
    return KN_OK;
}

/* A group of a group, and ones that come and go; every other call works on them too. */
static int case_groups_of_groups(KnComm *comm)
{
    for (int turn = 0; turn < 3; turn++) {
        KnComm *half, *quarter;
        KN_TRY(comm->table->split(comm, comm->rank % 2, "half", &half));
        KN_TRY(half->table->split(half, half->rank % 2, "quarter", &quarter));
        KN_TRY(check_reduce_scatter(comm, 777, turn, KN_F32, 0));
        int mine = comm->rank, all[CASE_RANKS_MAX];
        KN_TRY(quarter->table->all_gather(quarter, &mine, all, sizeof mine, "who"));
        for (int i = 0; i < quarter->ranks; i++)
            CHECK(all[i] == comm->rank % 4 + 4 * i);
        KN_TRY(half->table->broadcast(half, &mine, sizeof mine, half->ranks - 1, "last"));
        CHECK(mine == comm->rank % 2 + 2 * (half->ranks - 1));
        quarter->table->destroy(quarter);
        half->table->destroy(half);
    }
    return KN_OK;
}

static const struct CommCase {
    const char *name;
    int (*run)(KnComm *comm);
} comm_cases[] = {
    {"all_reduce", case_all_reduce},
    {"reduce_scatter", case_reduce_scatter},
    {"all_gather", case_all_gather},
    {"all_to_all", case_all_to_all},
    {"send_receive", case_send_receive},
    {"partners_alone", case_partners_alone},
    {"broadcast", case_broadcast},
    {"groups", case_groups},
    {"groups_of_groups", case_groups_of_groups},
};
enum { COMM_CASE_COUNT = sizeof comm_cases / sizeof *comm_cases };

#endif
