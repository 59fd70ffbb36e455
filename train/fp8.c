/* The history behind train/fp8.h. */
#include "train/fp8.h"

#include "core/base/error.h"
#include "core/base/fp8.h"
#include "core/base/memory.h"
#include "core/graph/twin.h"
#include "core/ops/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t row_bytes(const KnFp8State *state)
{
    return (size_t)state->sites * sizeof(float);
}

int kn_fp8_check(KnBackend *backend, const char *what)
{
    const KnNode node = {.op = kn_op(KN_OP_QUANTIZE)};
    if (backend->supports(backend, &node))
        return KN_OK;
    return kn_fail(KN_EINPUT,
                   "%s needs GPUs of compute capability 9.0 or more (Hopper, Blackwell) and cuBLASLt, but this run "
                   "computes on %s: take bf16",
                   what, backend->memory ? "an older one or without it" : "the CPU");
}

void kn_fp8_state_create(KnFp8State *state, int64_t sites)
{
    KN_ASSERT(sites > 0);
    if (state->sites == sites)
        return;
    free(state->largest);
    free(state->table);
    state->sites = sites;
    state->largest = kn_alloc(KN_FP8_WINDOW * row_bytes(state));
    state->table = kn_alloc(2 * row_bytes(state));
}

void kn_fp8_state_destroy(KnFp8State *state)
{
    free(state->largest);
    free(state->table);
    *state = (KnFp8State){0};
}

void kn_fp8_state_forget(KnFp8State *state)
{
    if (state->sites)
        memset(state->largest, 0, KN_FP8_WINDOW * row_bytes(state));
}

int kn_fp8_state_place(KnFp8State *state, KnBackend *backend)
{
    KN_TRY(kn_twin_create(backend, state->table, 2 * row_bytes(state), "the scales of 8-bit products"));
    return kn_fp8_state_push(state, backend);
}

void kn_fp8_state_withdraw(KnFp8State *state, KnBackend *backend)
{
    kn_twin_destroy(backend, state->table);
}

/* The second half of the sites are gradients. */
static float scale_of(const KnFp8State *state, int64_t site)
{
    float largest = 0;
    for (int i = 0; i < KN_FP8_WINDOW; i++)
        largest = fmaxf(largest, state->largest[i * state->sites + site]);
    return kn_fp8_scale(largest, site < state->sites / 2 ? KN_FP8_MOST_E4M3 : KN_FP8_MOST_E5M2);
}

int kn_fp8_state_push(KnFp8State *state, KnBackend *backend)
{
    for (int64_t site = 0; site < state->sites; site++) {
        state->table[site] = scale_of(state, site);
        state->table[state->sites + site] = 0;
    }
    return kn_twin_push(backend, state->table, 2 * row_bytes(state));
}

/* Of all ranks. */
static int find_largest(KnFp8State *state, KnComm *comm, float *largest)
{
    float *all = kn_alloc((size_t)comm->ranks * row_bytes(state));
    int code = comm->table->all_gather(comm, state->table + state->sites, all, row_bytes(state),
                                       "the largest values of the step");
    for (int64_t i = 0; i < comm->ranks * state->sites && code == KN_OK; i++) {
        float *most = &largest[i % state->sites];
        *most = isnan(all[i]) || all[i] > *most ? all[i] : *most; /* what is no number stays */
    }
    free(all);
    return code;
}

int kn_fp8_state_step(KnFp8State *state, KnComm *comm, KnBackend *backend)
{
    float *largest = kn_alloc(row_bytes(state));
    int code = kn_twin_pull(backend, state->table, 2 * row_bytes(state));
    if (code == KN_OK)
        code = find_largest(state, comm, largest);
    memmove(state->largest + state->sites, state->largest, (KN_FP8_WINDOW - 1) * row_bytes(state));
    for (int64_t site = 0; site < state->sites; site++)
        state->largest[site] = isfinite(largest[site]) ? largest[site] : state->largest[state->sites + site];
    free(largest);
    return code < 0 ? code : kn_fp8_state_push(state, backend);
}
