/* Enumerating layouts, refusing the impossible before any graph is built. */
#include "train/plan_search.h"

#include "core/base/error.h"
#include "train/update_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_TOKENS = 256 }; /* of a rank: below, no kernel has enough to do */

static const char *const refusals[KN_REFUSALS] = {
    [KN_REFUSED_PACKS] = "have replicas that cannot share train.packs evenly",
    [KN_REFUSED_HEADS] = "give ulysses or tensor more ranks than there are heads",
    [KN_REFUSED_NODE] = "spread a tensor group over several nodes",
    [KN_REFUSED_TOKENS] = "leave a rank less than 256 tokens of a pack",
    [KN_REFUSED_STATE] = "hold more state than the device has memory",
    [KN_REFUSED_MEMORY] = "need more memory than the device has, recomputing all blocks",
};

const char *kn_refusal_text(KnRefusal refusal)
{
    return refusals[refusal];
}

typedef struct Search {
    KnLayoutSearch *result;
    const KnStepPlanOptions *options;
    KnConfig config; /* a shallow copy, with the layout that is tried */
    double parameters;
    KnPassMemo memos[KN_PASS_MEMOS];
} Search;

static void describe(const KnParallelConfig *parallel, int ranks, char *name, size_t size)
{
    KnMesh mesh;
    KN_ASSERT(kn_mesh_create(&mesh, parallel, 0, ranks) == KN_OK);
    char *text = kn_mesh_describe(&mesh);
    snprintf(name, size, "%s", text);
    free(text);
}

/* Keeps the example that needs least. */
static void refuse(Search *s, KnRefusal refusal, double needed)
{
    KnLayoutSearch *r = s->result;
    r->refused[refusal]++;
    if (needed == 0 || (r->examples[refusal] && r->nearest[refusal] <= needed))
        return;
    char name[96];
    describe(&s->config.parallel, s->options->ranks, name, sizeof name);
    free(r->examples[refusal]);
    r->examples[refusal] =
        kn_format("%s, zero %d: %.1f GiB of %.1f", name, (int)s->config.parallel.zero, needed / 0x1p30,
                  (s->options->device->memory - s->options->device->reserved) / 0x1p30);
    r->nearest[refusal] = needed;
}

/* Of float32 values, when tensor ranks cut all of them. */
static double least_state(const Search *s)
{
    const KnParallelConfig *p = &s->config.parallel;
    double part = 4 * s->parameters / (double)p->tensor, cut = (double)(p->shard * p->ring * p->ulysses);
    int moments = kn_step_plan_offloads(s->options) ? 0 : s->config.optimizer.ema > 0 ? 3 : 2;
    return part / (p->zero >= 3 ? cut : 1) + part / (p->zero >= 2 ? cut : 1) +
           moments * part / (p->zero >= 1 ? cut : 1);
}

/* 1: the layout is settled. */
static int add(Search *s, const KnStepPlan *plan, int recompute)
{
    KnLayoutSearch *r = s->result;
    KN_RESERVE(r->found, r->count, r->capacity);
    KnFoundLayout *found = &r->found[r->count++];
    *found = (KnFoundLayout){.parallel = s->config.parallel, .recompute = recompute, .plan = *plan};
    describe(&found->parallel, s->options->ranks, found->name, sizeof found->name);
    return 1;
}

/* Plans the present layout. 1 where it is settled: found, or refused for good. */
static int try_layout(Search *s, int recompute)
{
    KnStepPlanOptions options = *s->options;
    double memory = options.device->memory - options.device->reserved, state = least_state(s);
    options.config = &s->config;
    options.memos = s->memos;
    if (state > memory) {
        refuse(s, KN_REFUSED_STATE, state);
        return 1;
    }
    KnStepPlan plan;
    s->config.model.recompute = recompute ? KN_RECOMPUTE_BLOCK : KN_RECOMPUTE_NONE;
    KN_TRY(kn_step_plan_estimate(&plan, &options));
    if (plan.memory[KN_STEP_PEAK] <= memory)
        return add(s, &plan, recompute);
    if (recompute)
        refuse(s, KN_REFUSED_MEMORY, plan.memory[KN_STEP_PEAK]);
    return recompute;
}

/* What forbids the mesh, whatever the memory; KN_REFUSALS: nothing does. */
static KnRefusal forbidden(const Search *s)
{
    const KnParallelConfig *p = &s->config.parallel;
    const KnModelConfig *m = &s->config.model;
    int64_t sequence = p->ring * p->ulysses;
    if (s->config.train.packs % (p->data * p->shard))
        return KN_REFUSED_PACKS;
    if (p->ulysses * p->tensor > m->heads)
        return KN_REFUSED_HEADS;
    if (p->tensor > s->options->device->ranks_per_node)
        return KN_REFUSED_NODE;
    if (sequence > 1 && s->config.data.tokens / sequence < LEAST_TOKENS)
        return KN_REFUSED_TOKENS;
    return KN_REFUSALS;
}

/* All ways to share `replicas` between data and shard: one graph but for the numbers of ranks, so in turn. Recomputes
 * only where it has to: it always costs time. */
static int try_replicas(Search *s, int64_t replicas, int stage)
{
    char *settled = kn_alloc((size_t)replicas + 1);
    int code = KN_OK;
    for (int recompute = 0; recompute <= 1; recompute++)
        for (int64_t shard = 1; shard <= replicas && code >= 0; shard++) {
            KnParallelConfig *p = &s->config.parallel;
            if (replicas % shard || settled[shard])
                continue;
            p->data = replicas / shard;
            p->shard = shard;
            p->zero = stage;
            if (stage > 0 && shard * p->ring * p->ulysses == 1)
                continue;
            KnRefusal refusal = forbidden(s);
            if (refusal == KN_REFUSALS)
                code = try_layout(s, recompute);
            else if (stage == 0)
                refuse(s, refusal, 0);
            settled[shard] = refusal < KN_REFUSALS || code > 0;
        }
    free(settled);
    return code < 0 ? code : KN_OK;
}

static int try_all(Search *s)
{
    int64_t ranks = s->options->ranks;
    for (int64_t t = 1; t <= ranks; t++)
        for (int64_t u = 1; ranks % t == 0 && u <= ranks / t; u++)
            for (int64_t r = 1; ranks / t % u == 0 && r <= ranks / t / u; r++) {
                if (ranks / t / u % r)
                    continue;
                s->config.parallel = (KnParallelConfig){.ring = r, .ulysses = u, .tensor = t, .cfg = 1};
                for (int stage = 0; stage <= 3; stage++)
                    KN_TRY(try_replicas(s, ranks / t / u / r, stage));
            }
    return KN_OK;
}

static int faster_first(const void *left, const void *right)
{
    const KnStepPlan *a = &((const KnFoundLayout *)left)->plan, *b = &((const KnFoundLayout *)right)->plan;
    if (a->seconds != b->seconds)
        return a->seconds < b->seconds ? -1 : 1;
    return a->memory[KN_STEP_PEAK] < b->memory[KN_STEP_PEAK] ? -1 : 1;
}

int kn_layout_search(KnLayoutSearch *search, const KnStepPlanOptions *options)
{
    Search s = {.result = search, .options = options, .config = *options->config};
    KnModel model;
    *search = (KnLayoutSearch){0};
    KN_TRY(kn_model_create(&model, &s.config.model, &s.config.text, s.config.flow.prediction, NULL));
    s.parameters = (double)kn_parameter_count(&model.parameters);
    kn_model_destroy(&model);
    int code = try_all(&s);
    kn_pass_memos_clear(s.memos);
    if (code < 0)
        kn_layout_search_clear(search);
    else if (search->count > 0)
        qsort(search->found, (size_t)search->count, sizeof *search->found, faster_first);
    return code;
}

void kn_layout_search_clear(KnLayoutSearch *search)
{
    for (int i = 0; i < KN_REFUSALS; i++)
        free(search->examples[i]);
    free(search->found);
    *search = (KnLayoutSearch){0};
}
