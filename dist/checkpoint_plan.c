/* The plan of a save, see dist/checkpoint_plan.h. For each tensor: the ranks' boxes, equal ones found by hashing; the
 * different ones must tile it, which their measures say; each goes to one of its holders. */
#include "dist/checkpoint_plan.h"

#include "core/base/error.h"

#include <stdlib.h>
#include <string.h>

/* How a box is told: one of these, for a PART followed by start and count of each dimension, 7 bits a byte. */
enum { NOTHING, WHOLE, PART };

/* Ranks that hold one box, as a list through `next`. */
typedef struct Group {
    KnBox box;
    int first, last; /* rank */
} Group;

typedef struct Planner {
    const KnCheckpointTensor *tensors;
    int count, rank, ranks;
    int *order;               /* the tensors, largest first */
    const unsigned char **at; /* [ranks]: how far each one's text is read */
    int *next;                /* [ranks]: another holder of the same box, or -1 */
    Group *groups;            /* [ranks], of the present tensor */
    int group_count;
    int *slots; /* hash table of groups, -1 = free */
    size_t slot_count;
    int64_t *loads; /* [ranks]: bytes to write so far */
} Planner;

/* ---- the order, and the texts ---- */

typedef struct Sized {
    int64_t bytes;
    int index;
} Sized;

static int larger_first(const void *a, const void *b)
{
    const Sized *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->index - y->index;
}

static int64_t box_bytes(const KnCheckpointTensor *tensor, const KnBox *box)
{
    return kn_box_elements(box) * (int64_t)kn_safetensors_type_bytes(tensor->type);
}

static int *order_by_size(const KnCheckpointTensor *tensors, int count)
{
    Sized *sized = kn_alloc((size_t)count * sizeof *sized);
    int *order = kn_alloc((size_t)count * sizeof *order);
    for (int i = 0; i < count; i++) {
        KnBox whole = kn_box_whole(&tensors[i]);
        sized[i] = (Sized){box_bytes(&tensors[i], &whole), i};
    }
    qsort(sized, (size_t)count, sizeof *sized, larger_first);
    for (int i = 0; i < count; i++)
        order[i] = sized[i].index;
    free(sized);
    return order;
}

static void put_number(KnText *text, int64_t value)
{
    char bytes[10];
    size_t length = 0;
    uint64_t left = (uint64_t)value;
    do {
        bytes[length++] = (char)((left & 127) | (left > 127 ? 128 : 0));
        left >>= 7;
    } while (left);
    kn_text_appendn(text, bytes, length);
}

static int64_t get_number(const unsigned char **at)
{
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        unsigned char byte = *(*at)++;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return (int64_t)value;
    }
}

void kn_save_plan_tell(const KnCheckpointTensor *tensors, int count, KnText *text)
{
    int *order = order_by_size(tensors, count);
    for (int i = 0; i < count; i++) {
        KnBox box = kn_box_of(&tensors[order[i]]), whole = kn_box_whole(&tensors[order[i]]);
        KN_ASSERT(kn_box_inside(&box, &whole));
        char kind = kn_box_elements(&box) == 0 ? NOTHING : kn_box_equal(&box, &whole) ? WHOLE : PART;
        kn_text_appendn(text, &kind, 1);
        for (int d = 0; kind == PART && d < box.dims; d++) {
            put_number(text, box.start[d]);
            put_number(text, box.count[d]);
        }
    }
    free(order);
}

/* A rank's box of the next tensor; 0 when it holds nothing. */
static int next_box(const unsigned char **at, const KnBox *whole, KnBox *box)
{
    int kind = *(*at)++;
    *box = *whole;
    for (int d = 0; kind == PART && d < whole->dims; d++) {
        box->start[d] = get_number(at);
        box->count[d] = get_number(at);
    }
    return kind != NOTHING;
}

/* ---- one tensor ---- */

static size_t hash_box(const KnBox *box)
{
    return (size_t)kn_box_measure(0, box); /* a random number for each box */
}

/* Puts a rank to those that hold the same box. */
static void join_group(Planner *p, int rank, const KnBox *box)
{
    size_t slot = hash_box(box) & (p->slot_count - 1);
    while (p->slots[slot] >= 0 && !kn_box_equal(&p->groups[p->slots[slot]].box, box))
        slot = (slot + 1) & (p->slot_count - 1);
    p->next[rank] = -1;
    if (p->slots[slot] < 0) {
        p->slots[slot] = p->group_count;
        p->groups[p->group_count++] = (Group){*box, rank, rank};
    } else {
        Group *group = &p->groups[p->slots[slot]];
        p->next[group->last] = rank;
        group->last = rank;
    }
}

static void gather_groups(Planner *p, const KnBox *whole)
{
    KnBox box;
    p->group_count = 0;
    memset(p->slots, 0xff, p->slot_count * sizeof *p->slots);
    for (int rank = 0; rank < p->ranks; rank++)
        if (next_box(&p->at[rank], whole, &box))
            join_group(p, rank, &box);
}

/* The boxes do not tile the tensor: names two that overlap, or says how much is missing. */
static int refuse(const Planner *p, const KnCheckpointTensor *tensor, const KnBox *whole)
{
    int64_t held = 0;
    for (int i = 0; i < p->group_count; i++) {
        const Group *a = &p->groups[i];
        held += kn_box_elements(&a->box);
        for (int j = 0; j < i; j++) {
            const Group *b = &p->groups[j];
            if (!kn_box_meets(&a->box, &b->box))
                continue;
            char *first = kn_box_text(&b->box), *second = kn_box_text(&a->box);
            int code = kn_fail(KN_EINPUT, "tensor '%s' cannot be saved: %s of rank %d and %s of rank %d overlap",
                               tensor->name, first, b->first, second, a->first);
            free(first);
            free(second);
            return code;
        }
    }
    return kn_fail(KN_EINPUT, "tensor '%s' cannot be saved: the ranks hold %lld of its %lld elements", tensor->name,
                   (long long)held, (long long)kn_box_elements(whole));
}

static int check_tiling(const Planner *p, const KnCheckpointTensor *tensor, const KnBox *whole)
{
    uint64_t measure = 0;
    for (int i = 0; i < p->group_count; i++)
        measure = kn_box_measure(measure, &p->groups[i].box);
    return measure == kn_box_measure(0, whole) ? KN_OK : refuse(p, tensor, whole);
}

static int choose_writer(const Planner *p, const Group *group)
{
    int least = group->first;
    for (int rank = p->next[least]; rank >= 0; rank = p->next[rank])
        least = p->loads[rank] < p->loads[least] ? rank : least;
    return least;
}

static int by_start(const void *a, const void *b)
{
    return kn_box_compare(&((const Group *)a)->box, &((const Group *)b)->box);
}

static int plan_tensor(Planner *p, KnSavePlan *plan, int index)
{
    const KnCheckpointTensor *tensor = &p->tensors[index];
    KnBox whole = kn_box_whole(tensor);
    gather_groups(p, &whole);
    KN_TRY(check_tiling(p, tensor, &whole));
    for (int i = 0; i < p->group_count; i++) {
        Group *group = &p->groups[i];
        group->first = choose_writer(p, group);
        p->loads[group->first] += box_bytes(tensor, &group->box);
        plan->mine[index] |= group->first == p->rank;
    }
    if (!plan->entries)
        return KN_OK;
    KnManifestTensor *entry = &plan->entries[index];
    size_t count = (size_t)p->group_count;
    qsort(p->groups, count, sizeof *p->groups, by_start);
    entry->tensor = *tensor;
    entry->tensor.name = kn_arena_strdup(plan->arena, tensor->name);
    entry->slice_count = p->group_count;
    entry->files = kn_arena_alloc(plan->arena, count * sizeof *entry->files);
    entry->boxes = kn_arena_alloc(plan->arena, count * 2 * (size_t)tensor->dims * sizeof *entry->boxes);
    for (int i = 0; i < p->group_count; i++)
        kn_manifest_set_slice(entry, i, p->groups[i].first, &p->groups[i].box);
    return KN_OK;
}

/* ---- all of them ---- */

int kn_save_plan_make(KnSavePlan *plan, const KnCheckpointTensor *tensors, int count, const unsigned char *told,
                      size_t stride, int rank, int ranks)
{
    Planner p = {.tensors = tensors, .count = count, .rank = rank, .ranks = ranks, .slot_count = 2};
    size_t all = (size_t)ranks;
    while (p.slot_count < 2 * all)
        p.slot_count *= 2;
    kn_save_plan_clear(plan);
    plan->arena = kn_arena_create();
    plan->count = count;
    plan->mine = kn_arena_alloc(plan->arena, (size_t)count);
    plan->entries = rank == 0 ? kn_arena_alloc(plan->arena, (size_t)count * sizeof *plan->entries) : NULL;
    p.order = order_by_size(tensors, count);
    p.at = kn_alloc(all * sizeof *p.at);
    p.next = kn_alloc(all * sizeof *p.next);
    p.groups = kn_alloc(all * sizeof *p.groups);
    p.slots = kn_alloc(p.slot_count * sizeof *p.slots);
    p.loads = kn_alloc(all * sizeof *p.loads);
    for (int r = 0; r < ranks; r++)
        p.at[r] = told + (size_t)r * stride;
    int code = KN_OK;
    for (int i = 0; i < count && code == KN_OK; i++)
        code = plan_tensor(&p, plan, p.order[i]);
    free(p.order);
    free(p.at);
    free(p.next);
    free(p.groups);
    free(p.slots);
    free(p.loads);
    if (code < 0)
        kn_save_plan_clear(plan);
    return code;
}

void kn_save_plan_clear(KnSavePlan *plan)
{
    kn_arena_destroy(plan->arena);
    *plan = (KnSavePlan){0};
}
