/* The packer: see data/packer.h.
 *
 * Clips are shuffled, and packs take them from the front of that order, looking ahead a few hundred clips. A pack is
 * filled in order while there is room to spare; what then remains is filled as tightly as the clips ahead allow, by an
 * exact subset sum (fewest clips for each number of tokens, dynamic programming). So the order stays random, the
 * oldest clip is always in the next pack, and nearly every pack is full. */
#include "data/packer.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 256, CANDIDATES = 128, MOST_CLIPS = 250, MOST_SUMS = 1 << 14 };

static const char *numbered(const void *context, int64_t clip)
{
    (void)context;
    static _Thread_local char text[40];
    snprintf(text, sizeof text, "clip %lld", (long long)clip);
    return text;
}

int kn_packer_check(const KnPackInput *input, const KnPackBudget *budget,
                    const char *(*name)(const void *context, int64_t clip), const void *context)
{
    name = name ? name : numbered;
    if (!input->count)
        return kn_fail(KN_EINPUT, "there are no clips to pack");
    if (budget->tokens < 1 || budget->clips < 1)
        return kn_fail(KN_EINPUT, "a pack of %lld tokens and %lld clips holds nothing; set data.tokens and data.clips",
                       (long long)budget->tokens, (long long)budget->clips);
    int64_t largest = 0, longest = 0;
    for (int64_t i = 1; i < input->count; i++) {
        largest = input->tokens[i] > input->tokens[largest] ? i : largest;
        longest = input->text_tokens && input->text_tokens[i] > input->text_tokens[longest] ? i : longest;
    }
    if (input->tokens[largest] > budget->tokens)
        return kn_fail(KN_EINPUT,
                       "%s has %lld tokens, more than a pack holds (data.tokens: %lld); set data.tokens to at least "
                       "%lld, or prepare smaller or shorter clips",
                       name(context, largest), (long long)input->tokens[largest], (long long)budget->tokens,
                       (long long)input->tokens[largest]);
    if (input->text_tokens && budget->text_tokens && input->text_tokens[longest] > budget->text_tokens)
        return kn_fail(KN_EINPUT,
                       "the caption of %s has %lld tokens, more than a pack holds (data.text_tokens: %lld); set "
                       "data.text_tokens to at least %lld",
                       name(context, longest), (long long)input->text_tokens[longest], (long long)budget->text_tokens,
                       (long long)input->text_tokens[longest]);
    return KN_OK;
}

typedef struct Packer {
    const KnPackInput *input;
    const KnPackBudget *budget;
    int64_t unit;   /* tokens are counted in units of so many while filling tightly */
    int64_t *order; /* shuffled clips; the window is order[0 .. ahead), the rest follows at `rest` */
    int64_t rest, ahead;
    uint8_t *fewest;             /* [k][sum]: how few of the first k candidates have exactly that sum, in units */
    int64_t tokens, clips, text; /* of the pack being filled */
    KnPackPlan *plan;
} Packer;

static int64_t text_of(const Packer *packer, int64_t clip)
{
    return packer->input->text_tokens ? packer->input->text_tokens[clip] : 0;
}

static int fits(const Packer *packer, int64_t clip)
{
    const KnPackBudget *budget = packer->budget;
    return packer->clips < budget->clips && packer->tokens + packer->input->tokens[clip] <= budget->tokens &&
           (!budget->text_tokens || packer->text + text_of(packer, clip) <= budget->text_tokens);
}

static int64_t window_at(const Packer *packer, int64_t i)
{
    return packer->order[packer->rest - packer->ahead + i];
}

/* Moves the window's entry i into the pack; the order of the others stays. */
static void take(Packer *packer, int64_t i)
{
    int64_t *window = packer->order + packer->rest - packer->ahead, clip = window[i];
    packer->plan->clips[packer->plan->first[packer->plan->packs] + packer->clips] = clip;
    packer->tokens += packer->input->tokens[clip];
    packer->text += text_of(packer, clip);
    packer->clips++;
    memmove(window + 1, window, (size_t)i * sizeof *window);
    packer->ahead--;
}

/* Clips' sizes are rounded up to units and the room down, so what fits in units fits in tokens. */
static size_t units_of(const Packer *packer, int64_t clip)
{
    return (size_t)((packer->input->tokens[clip] + packer->unit - 1) / packer->unit);
}

/* Fills the rest of the pack as full as the first clips of the window can; of equally full fillings it takes one from
 * the shortest prefix of the window, so that no kind of clip is favoured. */
static void fill_tightly(Packer *packer)
{
    int64_t clips_left = packer->budget->clips - packer->clips;
    int most = (int)(clips_left < MOST_CLIPS ? clips_left : MOST_CLIPS);
    int candidates = (int)(packer->ahead < CANDIDATES ? packer->ahead : CANDIDATES), used = 0;
    size_t sum = (size_t)((packer->budget->tokens - packer->tokens) / packer->unit), sums = sum + 1;
    uint8_t *fewest = packer->fewest;
    memset(fewest, UINT8_MAX, sums);
    fewest[0] = 0;
    for (; used < candidates && fewest[(size_t)used * sums + sum] > most; used++) {
        const uint8_t *now = fewest + (size_t)used * sums;
        uint8_t *next = fewest + (size_t)(used + 1) * sums;
        size_t size = units_of(packer, window_at(packer, used));
        memcpy(next, now, sums);
        for (size_t s = size; s < sums; s++) {
            uint8_t with = (uint8_t)(now[s - size] + (now[s - size] < UINT8_MAX));
            next[s] = with < next[s] ? with : next[s];
        }
    }
    while (fewest[(size_t)used * sums + sum] > most)
        sum--;
    for (int k = used - 1; k >= 0 && sum; k--)
        if (fewest[(size_t)(k + 1) * sums + sum] != fewest[(size_t)k * sums + sum]) { /* the sum needs candidate k */
            int64_t clip = window_at(packer, k);
            sum -= units_of(packer, clip);
            if (fits(packer, clip)) /* its caption may not */
                take(packer, k);    /* those before k keep their places */
        }
}

static void fill_pack(Packer *packer)
{
    packer->tokens = packer->clips = packer->text = 0;
    int64_t largest = 0;
    for (int64_t i = 0; i < packer->ahead; i++) {
        int64_t tokens = packer->input->tokens[window_at(packer, i)];
        largest = tokens > largest ? tokens : largest;
    }
    do /* in order, while there is room to spare */
        take(packer, 0);
    while (packer->ahead && fits(packer, window_at(packer, 0)) &&
           packer->budget->tokens - packer->tokens > 3 * largest);
    fill_tightly(packer);
    /* Whatever the subset sum had to leave (limits of text or size): first fit. */
    for (int64_t i = 0; i < packer->ahead && packer->clips < packer->budget->clips; i++)
        if (fits(packer, window_at(packer, i)))
            take(packer, i--);
}

/* The largest number that divides every clip's tokens. */
static int64_t common_unit(const KnPackInput *input)
{
    int64_t unit = 0;
    for (int64_t i = 0; i < input->count; i++)
        for (int64_t a = input->tokens[i]; a;) {
            int64_t rest = unit % a;
            unit = a;
            a = rest;
        }
    return unit;
}

int kn_packer_plan(const KnPackInput *input, const KnPackBudget *budget, uint64_t seed, int64_t epoch, KnPackPlan *plan)
{
    *plan = (KnPackPlan){0};
    KN_TRY(kn_packer_check(input, budget, NULL, NULL));
    int64_t n = input->count;
    Packer packer = {.input = input, .budget = budget, .unit = common_unit(input), .plan = plan};
    if (budget->tokens / packer.unit >= MOST_SUMS)
        packer.unit *= budget->tokens / packer.unit / MOST_SUMS + 1;
    int64_t sums = budget->tokens / packer.unit + 1;
    packer.order = kn_alloc((size_t)n * sizeof *packer.order);
    packer.fewest = kn_alloc((size_t)(CANDIDATES + 1) * (size_t)sums);
    plan->first = kn_alloc((size_t)(n + 1) * sizeof *plan->first);
    plan->clips = kn_alloc((size_t)n * sizeof *plan->clips);
    kn_random_permutation(kn_random_key(seed, KN_RANDOM_SHUFFLE, (uint64_t)epoch, 0), packer.order, n);

    while (packer.ahead || packer.rest < n) {
        int64_t more = WINDOW - packer.ahead < n - packer.rest ? WINDOW - packer.ahead : n - packer.rest;
        packer.rest += more;
        packer.ahead += more;
        fill_pack(&packer);
        plan->first[plan->packs + 1] = plan->first[plan->packs] + packer.clips;
        plan->packs++;
        plan->tokens += packer.tokens;
    }
    double inside = (double)budget->tokens * (double)(plan->packs - 1);
    plan->waste = 1 - (double)plan->tokens / ((double)budget->tokens * (double)plan->packs);
    plan->waste_inside = plan->packs > 1 ? 1 - (double)(plan->tokens - packer.tokens) / inside : 0;
    free(packer.order);
    free(packer.fewest);
    return KN_OK;
}

void kn_pack_plan_clear(KnPackPlan *plan)
{
    free(plan->first);
    free(plan->clips);
    *plan = (KnPackPlan){0};
}
