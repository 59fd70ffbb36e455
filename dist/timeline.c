/* The event simulation, and the time of an exchange. */
#include "dist/timeline.h"

#include "core/base/error.h"
#include "core/ops/ops.h"
#include "dist/exchange_nodes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- Exchanges ---------------------------------------------------------------------------------------------------- */

/* What the ring algorithms move, in bytes that a rank brings (or all bring together) and in messages one after the
 * other, for n ranks: bytes x (n - 1) / n x volume; (n - 1) x messages. Thakur, Rabenseifner, Gropp, 2005. */
static const struct {
    const char *name;
    double volume, messages;
    int neighbours; /* one message to one rank, whatever n */
} kinds[] = {
    [KN_ALL_REDUCE] = {"all_reduce", 2, 2, 0},         [KN_ALL_REDUCE_ONCE] = {"all_reduce", 2, 2, 0},
    [KN_REDUCE_SCATTER] = {"reduce_scatter", 1, 1, 0}, [KN_ALL_GATHER] = {"all_gather", 1, 1, 0},
    [KN_ALL_TO_ALL] = {"all_to_all", 1, 1, 0},         [KN_SEND_RECEIVE] = {"send_receive", 1, 1, 1},
};
enum { KIND_COUNT = sizeof kinds / sizeof *kinds };

static int find_kind(const char *name)
{
    int kind = 0;
    while (strcmp(kinds[kind].name, name) != 0)
        KN_ASSERT(++kind < KIND_COUNT);
    return kind;
}

/* How many of a group's ranks share a node with this one: neighbours in the group are `stride` ranks apart. */
static int ranks_inside(const KnDevice *device, const KnMesh *mesh, KnGroup group)
{
    int size = kn_mesh_group_size(mesh, group);
    int64_t inside = device->ranks_per_node / kn_mesh_group_stride(mesh, group);
    return inside < 1 ? 1 : inside < size ? (int)inside : size;
}

/* Ring algorithms of a group with m ranks on each node use the network of all m at once, at most what the node's own
 * links carry. Between two ranks, and from each to all others, every rank has but its own. */
static double bandwidth_between(const KnDevice *device, int kind, int inside)
{
    int own = kinds[kind].neighbours || kind == KN_ALL_TO_ALL;
    double together = device->between.bandwidth * (own ? 1 : inside);
    return together < device->inside.bandwidth ? together : device->inside.bandwidth;
}

static double by_links(const KnExchange *e, int kind, const KnDevice *device, const KnMesh *mesh)
{
    int ranks = kn_mesh_group_size(mesh, e->group), inside = ranks_inside(device, mesh, e->group);
    double hops = kinds[kind].neighbours ? 1 : ranks - 1, n = kinds[kind].neighbours ? 1 : ranks;
    double share = kinds[kind].neighbours ? 1 : hops / n;
    int crosses = inside < ranks;
    double latency = crosses ? device->between.latency : device->inside.latency;
    double bandwidth = crosses ? bandwidth_between(device, kind, inside) : device->inside.bandwidth;
    if (crosses && kind == KN_ALL_TO_ALL) /* what stays inside does not cross */
        share = (double)(ranks - inside) / ranks;
    return kinds[kind].volume * e->bytes * share / bandwidth + kinds[kind].messages * hops * latency;
}

double kn_exchange_seconds(const KnExchange *e, const KnDevice *device, const KnMesh *mesh)
{
    int kind = find_kind(e->kind), ranks = kn_mesh_group_size(mesh, e->group);
    if (ranks == 1)
        return 0;
    double rate = kn_device_rate(device, e->kind, KN_F32, ranks, e->bytes);
    return rate > 0 ? e->bytes / rate : by_links(e, kind, device, mesh);
}

/* --- The run ------------------------------------------------------------------------------------------------------ */

typedef struct Run {
    KnTimeline *timeline;
    const KnTimelineRun *of;
    double free_at[KN_GROUP_COUNT]; /* of each group's stream, or of the only one */
    struct Flight {
        double end, seconds;
        KnExchangeTime *of;
    } * flights; /* by id of what arrives */
} Run;

/* "weights of block 12" and "weights.3.0" are both "weights ...". */
static void shorten(char *out, size_t size, const char *name)
{
    size_t length = strcspn(name, "0123456789");
    while (length > 0 && (name[length - 1] == ' ' || name[length - 1] == '.'))
        length--;
    snprintf(out, size, "%.*s", (int)length, name);
}

static KnExchangeTime *find_row(KnTimeline *t, const char *name, const char *kind, const char *group)
{
    for (int i = 0; i < t->exchange_count; i++) {
        KnExchangeTime *row = &t->exchanges[i];
        if (!strcmp(row->name, name) && !strcmp(row->kind, kind) && !strcmp(row->group, group))
            return row;
    }
    KN_ASSERT(t->exchange_count < KN_EXCHANGE_NAMES);
    KnExchangeTime *row = &t->exchanges[t->exchange_count++];
    *row = (KnExchangeTime){.kind = kind, .group = group};
    snprintf(row->name, sizeof row->name, "%s", name);
    return row;
}

void kn_timeline_add(KnTimeline *timeline, const KnTimeline *other, double times)
{
    timeline->now += other->now * times;
    timeline->exposed += other->exposed * times;
    for (int i = 0; i < KN_TIME_KINDS; i++)
        timeline->by_kind[i] += other->by_kind[i] * times;
    for (int i = 0; i < other->exchange_count; i++) {
        const KnExchangeTime *from = &other->exchanges[i];
        KnExchangeTime *to = find_row(timeline, from->name, from->kind, from->group);
        to->count += from->count * times;
        to->bytes += from->bytes * times;
        to->seconds += from->seconds * times;
        to->exposed += from->exposed * times;
    }
    if (timeline->kernels && other->kernels)
        kn_kernel_times_add(timeline->kernels, other->kernels, times);
}

static double bytes_of(const KnCollective *c, const KnNode *node)
{
    const KnTensor *in = node->inputs[0], *out = node->output_count ? node->outputs[0] : in;
    return (double)kn_tensor_bytes(c->kind == KN_ALL_GATHER ? out : in);
}

static void start(Run *r, const KnNode *node)
{
    const KnCollective *c = kn_exchange_of(node);
    KnTimeline *t = r->timeline;
    KnExchange e = {kinds[c->kind].name, (KnGroup)c->group, bytes_of(c, node)};
    e.bytes *= e.group == KN_GROUP_DATA ? r->of->ranges : 1;
    int id = (node->output_count ? node->outputs[0] : node->inputs[0])->id;
    int one_stream = r->of->backend && r->of->backend->exchanges_in_order;
    double seconds = kn_exchange_seconds(&e, r->of->device, r->of->mesh);
    double *free_at = &r->free_at[one_stream ? 0 : c->group];
    char name[40];
    shorten(name, sizeof name, c->name);
    KnExchangeTime *row = find_row(t, name, e.kind, kn_group_name(e.group));
    *free_at = (t->now > *free_at ? t->now : *free_at) + seconds;
    r->flights[id] = (struct Flight){*free_at, seconds, row};
    row->count++;
    row->bytes += e.bytes;
    row->seconds += seconds;
}

/* Where exchanges take computing away, the hidden part costs its share too. */
static void wait(Run *r, const KnNode *node)
{
    struct Flight *flight = &r->flights[node->inputs[0]->id];
    if (!flight->of)
        return;
    double left = flight->end - r->timeline->now;
    left = left < 0 ? 0 : left;
    double hidden = left < flight->seconds ? flight->seconds - left : 0;
    double exposed = left + (1 - r->of->device->overlap) * hidden;
    r->timeline->now += exposed;
    r->timeline->exposed += exposed;
    flight->of->exposed += exposed;
    flight->of = NULL;
}

static void compute(Run *r, const KnNode *node)
{
    KnTimeKind kind;
    double seconds = kn_node_seconds(node, r->of->backend, r->of->device, &kind, r->timeline->kernels);
    r->timeline->by_kind[kind] += seconds;
    r->timeline->now += seconds;
}

void kn_timeline_run(KnTimeline *timeline, const KnTimelineRun *run)
{
    const KnGraph *graph = run->graph;
    Run r = {.timeline = timeline, .of = run, .flights = kn_alloc((size_t)graph->tensor_count * sizeof(struct Flight))};
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        if (node->prologue && !run->prologue)
            continue;
        if (kn_is_exchange_start(node))
            start(&r, node);
        else if (kn_is_exchange_wait(node))
            wait(&r, node);
        else
            compute(&r, node);
    }
    free(r.flights);
}
