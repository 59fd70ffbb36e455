/* The loader: see data/loader.h.
 *
 * One thread walks the sequence of global steps, reads this rank's packs into a ring of three slots and waits while the
 * ring is full. A slot belongs to the thread until it is filled, then to the caller until it asks for the next. All
 * captions are turned into ids once, when the loader opens. */
#include "data/loader.h"

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/random.h"
#include "data/packer.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 3 };

typedef struct Slot {
    KnBatch batch;
    KnBatchClip *clips; /* [budget clips] */
    void *patches;      /* [budget tokens, patch_dim] */
    double waste;       /* of its epoch */
    int64_t epoch_packs;
} Slot;

/* A pack of the present step. */
typedef struct StepPack {
    int64_t epoch, pack, first, count, tokens; /* its clips are clips[first .. first + count) of the step */
    double waste;
    int64_t epoch_packs;
} StepPack;

struct KnLoader {
    KnLoaderOptions options;
    KnPackBudget budget;
    size_t token_bytes;

    int64_t count;                 /* clips that take part */
    int64_t *members;              /* [count]: their numbers in the data set; packs name clips by their place here */
    int64_t *tokens, *text_tokens; /* [count]: the packer's input */
    int64_t *caption_start;        /* [captions + 1]: of each caption's ids */
    int64_t *clip_caption;         /* [count]: a clip's first caption */
    int32_t *ids;
    int32_t end; /* the caption that says nothing */

    KnPackPlan plan; /* of `epoch`; the walk has come to its pack `next_pack` */
    int64_t epoch, next_pack, step;
    StepPack *step_packs; /* [packs_per_step] */
    int64_t *step_clips;  /* their clips, one after the other */
    int64_t step_clip_capacity;

    Slot slots[SLOTS];
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int64_t produced, delivered, released; /* batches, since the beginning */
    int running, stopping, code;           /* code: what ended the thread */
    char *sentence;
    double waste; /* of the epoch last delivered */
    int64_t epoch_packs;
};

/* ---- what is loaded ---- */

/* The first `validation_clips` of a random order are set aside; both parts are in the data set's order. */
static int choose_members(KnLoader *loader)
{
    const KnLoaderOptions *o = &loader->options;
    int64_t all = kn_dataset_clip_count(o->dataset), aside = o->data->validation_clips;
    if (aside >= all && !o->validation)
        return kn_fail(
            KN_EINPUT,
            "data.validation_clips (%lld) sets aside all %lld clips of data.shards; none is left to train on",
            (long long)aside, (long long)all);
    aside = aside < all ? aside : all;
    int64_t *order = kn_alloc((size_t)all * sizeof *order);
    uint8_t *is_aside = kn_alloc((size_t)all);
    kn_random_permutation(kn_random_key(o->seed, KN_RANDOM_SPLIT, 0, 0), order, all);
    for (int64_t i = 0; i < aside; i++)
        is_aside[order[i]] = 1;
    loader->members = order;
    for (int64_t clip = 0; clip < all; clip++)
        if (is_aside[clip] == (o->validation != 0))
            loader->members[loader->count++] = clip;
    free(is_aside);
    return KN_OK;
}

static int64_t caption_count(const KnDataset *dataset, int64_t clip)
{
    return kn_dataset_clip(dataset, clip)->captions;
}

static int tokenize(KnLoader *loader)
{
    const KnLoaderOptions *o = &loader->options;
    int64_t captions = 0, used = 0, capacity = 0;
    for (int64_t i = 0; i < loader->count; i++)
        captions += caption_count(o->dataset, loader->members[i]);
    loader->end = kn_tokenizer_end(o->tokenizer);
    loader->caption_start = kn_alloc((size_t)(captions + 1) * sizeof *loader->caption_start);
    loader->clip_caption = kn_alloc((size_t)loader->count * sizeof *loader->clip_caption);
    loader->text_tokens = kn_alloc((size_t)loader->count * sizeof *loader->text_tokens);
    captions = 0;
    for (int64_t i = 0; i < loader->count; i++) {
        loader->clip_caption[i] = captions;
        loader->text_tokens[i] = 1;
        for (int64_t c = 0; c < caption_count(o->dataset, loader->members[i]); c++) {
            while (used + o->max_text_tokens > capacity)
                KN_RESERVE(loader->ids, capacity, capacity);
            int64_t length;
            KN_TRY(kn_tokenizer_encode(o->tokenizer, kn_dataset_caption(o->dataset, loader->members[i], c),
                                       o->max_text_tokens, loader->ids + used, &length));
            used += length;
            loader->caption_start[++captions] = used;
            loader->text_tokens[i] = length > loader->text_tokens[i] ? length : loader->text_tokens[i];
        }
    }
    return KN_OK;
}

static KnPackInput packer_input(const KnLoader *loader)
{
    return (KnPackInput){.count = loader->count, .tokens = loader->tokens, .text_tokens = loader->text_tokens};
}

static const char *name_of(const void *context, int64_t member)
{
    const KnLoader *loader = context;
    const KnClip *clip = kn_dataset_clip(loader->options.dataset, loader->members[member]);
    static _Thread_local char text[600];
    snprintf(text, sizeof text, "clip %lld of %.500s", (long long)clip->segment, clip->source);
    return text;
}

/* The caption of a clip in an epoch: one of its captions, or none. */
static void choose_text(const KnLoader *loader, int64_t epoch, int64_t member, KnBatchClip *clip)
{
    const KnLoaderOptions *o = &loader->options;
    clip->text = NULL;
    clip->text_tokens = 0;
    if (!o->tokenizer)
        return;
    int64_t captions = caption_count(o->dataset, clip->clip);
    KnRandomKey dropout = kn_random_key(o->seed, KN_RANDOM_DROPOUT, (uint64_t)epoch, (uint64_t)clip->clip);
    KnRandomKey choice = kn_random_key(o->seed, KN_RANDOM_CAPTION, (uint64_t)epoch, (uint64_t)clip->clip);
    int dropped = !o->validation && kn_random_uniform(dropout, 0) < o->caption_dropout;
    if (dropped || !captions) {
        clip->text = &loader->end;
        clip->text_tokens = 1;
        return;
    }
    int64_t which = o->validation ? 0 : (int64_t)kn_random_below(choice, 0, (uint64_t)captions);
    const int64_t *start = loader->caption_start + loader->clip_caption[member] + which;
    clip->text = loader->ids + start[0];
    clip->text_tokens = start[1] - start[0];
}

/* ---- the walk over steps; the thread's, once it runs ---- */

static int plan_epoch(KnLoader *loader, int64_t epoch)
{
    KnPackInput input = packer_input(loader);
    kn_pack_plan_clear(&loader->plan);
    loader->epoch = epoch;
    loader->next_pack = 0;
    return kn_packer_plan(&input, &loader->budget, loader->options.seed, epoch, &loader->plan);
}

/* Epochs differ a little in their number of packs, so all earlier ones are planned again: milliseconds each. */
static int seek(KnLoader *loader)
{
    const KnLoaderOptions *o = &loader->options;
    int64_t packs = o->validation ? 0 : o->first_step * o->packs_per_step;
    loader->step = o->validation ? 0 : o->first_step;
    KN_TRY(plan_epoch(loader, 0));
    while (packs >= loader->plan.packs) {
        packs -= loader->plan.packs;
        KN_TRY(plan_epoch(loader, loader->epoch + 1));
    }
    loader->next_pack = packs;
    return KN_OK;
}

/* Lays out the next step: KN_END after a validation's last pack. */
static int gather_step(KnLoader *loader, int64_t packs)
{
    int64_t clips = 0;
    for (int64_t i = 0; i < packs; i++) {
        if (loader->next_pack == loader->plan.packs) {
            if (loader->options.validation)
                return KN_END;
            KN_TRY(plan_epoch(loader, loader->epoch + 1));
        }
        const int64_t *first = loader->plan.first + loader->next_pack;
        StepPack *pack = &loader->step_packs[i];
        *pack = (StepPack){.epoch = loader->epoch,
                           .pack = loader->next_pack++,
                           .first = clips,
                           .count = first[1] - first[0],
                           .waste = loader->plan.waste,
                           .epoch_packs = loader->plan.packs};
        for (int64_t c = first[0]; c < first[1]; c++) {
            KN_RESERVE(loader->step_clips, clips, loader->step_clip_capacity);
            loader->step_clips[clips++] = loader->plan.clips[c];
            pack->tokens += loader->tokens[loader->plan.clips[c]];
        }
    }
    return KN_OK;
}

static int fill_slot(KnLoader *loader, Slot *slot, int64_t index, int64_t packs)
{
    const StepPack *pack = &loader->step_packs[index];
    KnBatch *batch = &slot->batch;
    *batch = (KnBatch){.step = loader->step,
                       .index = index,
                       .epoch = pack->epoch,
                       .pack = pack->pack,
                       .clip_count = pack->count,
                       .clips = slot->clips,
                       .patches = slot->patches};
    slot->waste = pack->waste;
    slot->epoch_packs = pack->epoch_packs;
    for (int64_t i = 0; i < packs; i++) {
        batch->step_tokens += loader->step_packs[i].tokens;
        batch->step_clips += loader->step_packs[i].count;
    }
    for (int64_t i = 0; i < pack->count; i++) {
        int64_t member = loader->step_clips[pack->first + i];
        KnBatchClip *clip = &slot->clips[i];
        *clip = (KnBatchClip){
            .clip = loader->members[member], .first_token = batch->tokens, .tokens = loader->tokens[member]};
        memcpy(clip->grid, kn_dataset_clip(loader->options.dataset, clip->clip)->grid, sizeof clip->grid);
        choose_text(loader, pack->epoch, member, clip);
        KN_TRY(kn_dataset_read_clip(loader->options.dataset, clip->clip,
                                    (char *)slot->patches + (size_t)batch->tokens * loader->token_bytes));
        batch->tokens += clip->tokens;
    }
    return KN_OK;
}

/* Waits for a free slot; NULL when the loader closes. */
static Slot *free_slot(KnLoader *loader)
{
    pthread_mutex_lock(&loader->mutex);
    while (!loader->stopping && loader->produced - loader->released == SLOTS)
        pthread_cond_wait(&loader->changed, &loader->mutex);
    Slot *slot = loader->stopping ? NULL : &loader->slots[loader->produced % SLOTS];
    pthread_mutex_unlock(&loader->mutex);
    return slot;
}

/* In training a step is packs_per_step packs; in validation every pack stands for itself, and its number is its step.
 */
static int load_steps(KnLoader *loader)
{
    const KnLoaderOptions *o = &loader->options;
    int64_t packs = o->validation ? 1 : o->packs_per_step;
    for (;; loader->step++) {
        KN_TRY(gather_step(loader, packs));
        for (int64_t i = 0; i < packs; i++) {
            if ((o->validation ? loader->step : i) % o->ranks != o->rank)
                continue;
            Slot *slot = free_slot(loader);
            if (!slot)
                return KN_END;
            KN_TRY(fill_slot(loader, slot, i, packs));
            pthread_mutex_lock(&loader->mutex);
            loader->produced++;
            pthread_cond_broadcast(&loader->changed);
            pthread_mutex_unlock(&loader->mutex);
        }
    }
}

static void *run(void *argument)
{
    KnLoader *loader = argument;
    int code = load_steps(loader);
    pthread_mutex_lock(&loader->mutex);
    loader->code = code;
    loader->sentence = kn_strdup(code == KN_END ? "" : kn_error_message());
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->mutex);
    return NULL;
}

/* ---- the caller's side ---- */

static int prepare(KnLoader *loader)
{
    const KnLoaderOptions *o = &loader->options;
    const KnShardFormat *format = kn_dataset_format(o->dataset);
    loader->budget = (KnPackBudget){
        .tokens = o->data->tokens, .clips = o->data->clips, .text_tokens = o->tokenizer ? o->data->text_tokens : 0};
    loader->token_bytes = (size_t)format->patch_dim * format->element_bytes;
    KN_TRY(choose_members(loader));
    loader->tokens = kn_alloc((size_t)loader->count * sizeof *loader->tokens);
    for (int64_t i = 0; i < loader->count; i++)
        loader->tokens[i] = kn_dataset_clip(o->dataset, loader->members[i])->tokens;
    if (!loader->count) { /* a validation without clips: the first kn_loader_next says KN_END */
        loader->code = KN_END;
        return KN_OK;
    }
    if (o->tokenizer)
        KN_TRY(tokenize(loader));
    KnPackInput input = packer_input(loader);
    KN_TRY(kn_packer_check(&input, &loader->budget, name_of, loader));
    KN_TRY(seek(loader));
    loader->waste = loader->plan.waste;
    loader->epoch_packs = loader->plan.packs;
    loader->step_packs = kn_alloc((size_t)(o->validation ? 1 : o->packs_per_step) * sizeof *loader->step_packs);
    for (int s = 0; s < SLOTS; s++) {
        loader->slots[s].clips = kn_alloc((size_t)loader->budget.clips * sizeof *loader->slots[s].clips);
        KN_TRY(kn_alloc_large(&loader->slots[s].patches, (size_t)loader->budget.tokens * loader->token_bytes,
                              "packs that are read ahead"));
    }
    return KN_OK;
}

/* Signals are for the thread that trains. */
static int start_thread(KnLoader *loader)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int reason = pthread_create(&loader->thread, NULL, run, loader);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (reason)
        return kn_fail(KN_EMEMORY, "cannot start the thread that reads ahead: %s", strerror(reason));
    loader->running = 1;
    return KN_OK;
}

int kn_loader_open(KnLoader **loader, const KnLoaderOptions *options)
{
    KN_ASSERT(options->ranks > 0 && (options->validation || options->packs_per_step % options->ranks == 0));
    KnLoader *made = kn_alloc(sizeof *made);
    *loader = NULL;
    made->options = *options;
    pthread_mutex_init(&made->mutex, NULL);
    pthread_cond_init(&made->changed, NULL);
    int code = prepare(made);
    if (code == KN_OK && made->count)
        code = start_thread(made);
    if (code == KN_OK)
        *loader = made;
    else
        kn_loader_close(made);
    return code;
}

void kn_loader_close(KnLoader *loader)
{
    if (!loader)
        return;
    if (loader->running) {
        pthread_mutex_lock(&loader->mutex);
        loader->stopping = 1;
        pthread_cond_broadcast(&loader->changed);
        pthread_mutex_unlock(&loader->mutex);
        pthread_join(loader->thread, NULL);
    }
    for (int s = 0; s < SLOTS; s++) {
        free(loader->slots[s].clips);
        kn_free_large(loader->slots[s].patches);
    }
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->mutex);
    kn_pack_plan_clear(&loader->plan);
    free(loader->members);
    free(loader->tokens);
    free(loader->text_tokens);
    free(loader->caption_start);
    free(loader->clip_caption);
    free(loader->ids);
    free(loader->step_packs);
    free(loader->step_clips);
    free(loader->sentence);
    free(loader);
}

int kn_loader_next(KnLoader *loader, const KnBatch **batch)
{
    double began = kn_seconds_now();
    int code = KN_OK;
    *batch = NULL;
    pthread_mutex_lock(&loader->mutex);
    loader->released = loader->delivered;
    pthread_cond_broadcast(&loader->changed);
    while (loader->produced == loader->delivered && loader->code == KN_OK)
        pthread_cond_wait(&loader->changed, &loader->mutex);
    if (loader->produced > loader->delivered) {
        Slot *slot = &loader->slots[loader->delivered++ % SLOTS];
        slot->batch.wait_seconds = kn_seconds_now() - began;
        loader->waste = slot->waste;
        loader->epoch_packs = slot->epoch_packs;
        *batch = &slot->batch;
    } else if (loader->code == KN_END) {
        code = KN_END;
    } else {
        code = kn_fail(loader->code, "%s", loader->sentence);
    }
    pthread_mutex_unlock(&loader->mutex);
    return code;
}

double kn_loader_waste(const KnLoader *loader)
{
    return loader->waste;
}

int64_t kn_loader_epoch_packs(const KnLoader *loader)
{
    return loader->epoch_packs;
}

int64_t kn_loader_captions(const KnDataset *dataset, const char ***captions)
{
    int64_t clips = kn_dataset_clip_count(dataset), count = 0;
    for (int64_t clip = 0; clip < clips; clip++)
        count += caption_count(dataset, clip);
    *captions = kn_alloc((size_t)(count + 1) * sizeof **captions);
    count = 0;
    for (int64_t clip = 0; clip < clips; clip++)
        for (int64_t c = 0; c < caption_count(dataset, clip); c++)
            (*captions)[count++] = kn_dataset_caption(dataset, clip, c);
    return count;
}
