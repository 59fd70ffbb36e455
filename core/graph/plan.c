/* The memory plan: offsets for every intermediate in one arena, by liveness.
 *
 * A value lives from its node, or the first that writes a part of it, to its last use, or the last use of a view of it.
 * Values of the prologue that later nodes use live for ever, since they are computed once per parameter change.
 * Placement is greedy by size: the largest first, each at the lowest offset where nothing alive at the same time lies
 * (Pisarchyk and Lee, 2020, "greedy by size for offset calculation"). */
#include "core/base/error.h"
#include "core/graph/executor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

typedef struct Item {
    size_t bytes, offset;
    int first, last; /* nodes, inclusive */
    int owner;       /* tensor id, or node id for workspace */
    KnCategory category;
} Item;

typedef struct Items {
    Item *list;
    int count;
} Items;

static const char *const category_names[KN_MEMORY_CATEGORIES] = {
    [KN_MEMORY_PARAMETERS] = "parameters",   [KN_MEMORY_STATE] = "gradients and optimizer",
    [KN_MEMORY_INPUTS] = "inputs",           [KN_MEMORY_WEIGHTS] = "weights for compute",
    [KN_MEMORY_ACTIVATIONS] = "activations", [KN_MEMORY_EXCHANGED] = "exchanged",
    [KN_MEMORY_TEMPORARY] = "temporary",     [KN_MEMORY_WORKSPACE] = "workspace",
};

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Last use of every tensor, as a node index; -1 where unused. A forward value used by a backward node is marked. */
static void find_last_uses(const KnGraph *graph, int *last, char *used_by_backward, char *used_after_prologue)
{
    for (int i = 0; i < graph->tensor_count; i++)
        last[i] = -1;
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        for (int k = 0; k < node->input_count; k++) {
            if (!node->inputs[k])
                continue;
            int id = kn_tensor_root(node->inputs[k], NULL)->id;
            last[id] = i;
            used_by_backward[id] |= (char)node->backward;
            used_after_prologue[id] |= (char)!node->prologue;
        }
        for (int k = 0; k < node->output_count; k++)
            if (node->outputs[k]->base)
                last[kn_tensor_root(node->outputs[k], NULL)->id] = i;
    }
}

static KnCategory category_of(const KnNode *node, int used_by_backward)
{
    if (node->prologue)
        return KN_MEMORY_WEIGHTS;
    if (node->exchange)
        return KN_MEMORY_EXCHANGED;
    return !node->backward && used_by_backward ? KN_MEMORY_ACTIVATIONS : KN_MEMORY_TEMPORARY;
}

static Items list_items(const KnGraph *graph, KnBackend *backend, KnTensor *const *keep, int keep_count)
{
    int *last = kn_alloc((size_t)graph->tensor_count * sizeof *last);
    char *backward = kn_alloc((size_t)graph->tensor_count), *later = kn_alloc((size_t)graph->tensor_count);
    char *listed = kn_alloc((size_t)graph->tensor_count);
    Items items = {.list = kn_alloc((size_t)(graph->tensor_count + graph->node_count) * sizeof(Item))};
    int forever = graph->node_count;
    find_last_uses(graph, last, backward, later);
    for (int i = 0; i < keep_count; i++)
        if (keep[i])
            last[kn_tensor_root(keep[i], NULL)->id] = forever;
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        for (int k = 0; k < node->output_count; k++) {
            const KnTensor *root = kn_tensor_root(node->outputs[k], NULL);
            int id = root->id;
            if (root->role != KN_ROLE_VALUE || listed[id])
                continue;
            listed[id] = 1;
            int end = node->prologue && later[id] ? forever : last[id] > i ? last[id] : i;
            items.list[items.count++] = (Item){.bytes = aligned(kn_tensor_bytes(root)),
                                               .first = i,
                                               .last = end,
                                               .owner = id,
                                               .category = category_of(node, backward[id])};
        }
        size_t workspace = aligned(backend->workspace_bytes(backend, node));
        if (workspace)
            items.list[items.count++] =
                (Item){.bytes = workspace, .first = i, .last = i, .owner = i, .category = KN_MEMORY_WORKSPACE};
    }
    free(last);
    free(backward);
    free(later);
    free(listed);
    return items;
}

static int larger_first(const void *left, const void *right)
{
    const Item *a = left, *b = right;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? 1 : -1;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    return a->owner - b->owner;
}

/* Those that are placed, in order of offset: what a search for room reads, close together. */
typedef struct Placed {
    size_t offset, end;
    int first, last;
} Placed;

/* Gives the item the lowest offset where nothing lies that is alive at the same time. */
static void place(Item *item, Placed *placed, int count)
{
    size_t offset = 0;
    int at = 0;
    for (int i = 0; i < count; i++) {
        const Placed *other = &placed[i];
        if (other->last < item->first || other->first > item->last)
            continue;
        if (other->offset >= offset + item->bytes)
            break;
        if (other->end > offset)
            offset = other->end;
    }
    item->offset = offset;
    while (at < count && placed[at].offset <= offset)
        at++;
    memmove(placed + at + 1, placed + at, (size_t)(count - at) * sizeof *placed);
    placed[at] = (Placed){offset, offset + item->bytes, item->first, item->last};
}

static void count_categories(KnPlan *plan, const KnGraph *graph, const Items *items)
{
    int nodes = graph->node_count, peak = 0;
    int64_t live = 0, *change = kn_alloc((size_t)(nodes + 2) * sizeof *change);
    for (int i = 0; i < items->count; i++) {
        change[items->list[i].first] += (int64_t)items->list[i].bytes;
        change[items->list[i].last + 1] -= (int64_t)items->list[i].bytes;
    }
    for (int i = 0; i < nodes; i++) {
        live += change[i];
        if ((size_t)live > plan->live_peak_bytes) {
            plan->live_peak_bytes = (size_t)live;
            peak = i;
        }
    }
    free(change);
    for (int i = 0; i < items->count; i++)
        if (items->list[i].first <= peak && items->list[i].last >= peak)
            plan->category_bytes[items->list[i].category] += items->list[i].bytes;
    for (int i = 0; i < graph->tensor_count; i++) {
        const KnTensor *tensor = graph->tensors[i];
        if (tensor->role != KN_ROLE_VALUE)
            plan->category_bytes[tensor->role == KN_ROLE_PARAMETER ? KN_MEMORY_PARAMETERS
                                 : tensor->role == KN_ROLE_STATE   ? KN_MEMORY_STATE
                                                                   : KN_MEMORY_INPUTS] += kn_tensor_bytes(tensor);
    }
}

void kn_plan_make(KnPlan *plan, const KnGraph *graph, KnBackend *backend, KnTensor *const *keep, int keep_count)
{
    *plan = (KnPlan){.tensor_count = graph->tensor_count, .node_count = graph->node_count};
    plan->offsets = kn_alloc((size_t)graph->tensor_count * sizeof *plan->offsets);
    plan->workspace_offsets = kn_alloc((size_t)graph->node_count * sizeof *plan->workspace_offsets);
    plan->workspace_bytes = kn_alloc((size_t)graph->node_count * sizeof *plan->workspace_bytes);
    memset(plan->offsets, 0xff, (size_t)graph->tensor_count * sizeof *plan->offsets);
    Items items = list_items(graph, backend, keep, keep_count);
    Placed *placed = kn_alloc((size_t)items.count * sizeof *placed);
    qsort(items.list, (size_t)items.count, sizeof(Item), larger_first);
    for (int i = 0; i < items.count; i++) {
        place(&items.list[i], placed, i);
        const Item *item = &items.list[i];
        if (item->offset + item->bytes > plan->arena_bytes)
            plan->arena_bytes = item->offset + item->bytes;
        if (item->category == KN_MEMORY_WORKSPACE) {
            plan->workspace_offsets[item->owner] = item->offset;
            plan->workspace_bytes[item->owner] = item->bytes;
        } else {
            plan->offsets[item->owner] = item->offset;
        }
    }
    count_categories(plan, graph, &items);
    free(placed);
    free(items.list);
}

void kn_plan_clear(KnPlan *plan)
{
    free(plan->offsets);
    free(plan->workspace_offsets);
    free(plan->workspace_bytes);
    *plan = (KnPlan){0};
}

char *kn_plan_report(const KnPlan *plan)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    KN_ASSERT(out);
    for (int i = 0; i < KN_MEMORY_CATEGORIES; i++)
        if (plan->category_bytes[i])
            fprintf(out, "  %-24s %10.2f MiB\n", category_names[i], (double)plan->category_bytes[i] / 1048576.0);
    fprintf(out, "  %-24s %10.2f MiB (%.2f alive at its fullest)\n", "arena", (double)plan->arena_bytes / 1048576.0,
            (double)plan->live_peak_bytes / 1048576.0);
    fclose(out);
    return text;
}
