/* Counting verdicts. */
#include "infer/evaluation.h"

#include "core/base/error.h"
#include "core/base/text.h"

#include <string.h>

static const char *const names[KN_SCORE_KINDS] = {"colour", "shape", "motion", "clean", "all"};

const char *kn_score_name(KnScoreKind kind)
{
    return names[kind];
}

int kn_score_is_right(KnScoreKind kind, const KnWorldMatch *match, const KnMeasured *measured)
{
    switch (kind) {
    case KN_SCORE_COLOUR:
        return match->colour;
    case KN_SCORE_SHAPE:
        return match->shape;
    case KN_SCORE_MOTION:
        return match->motion;
    case KN_SCORE_CLEAN:
        return measured->clean;
    default:
        return match->colour && match->shape && match->motion && measured->clean;
    }
}

static void count_fault(KnEvaluation *evaluation, const char *fault)
{
    for (int i = 0; i < evaluation->fault_kinds; i++)
        if (!strcmp(evaluation->faults[i].fault, fault)) {
            evaluation->faults[i].count++;
            return;
        }
    KN_ASSERT(evaluation->fault_kinds < KN_FAULTS_MAX);
    evaluation->faults[evaluation->fault_kinds++] = (struct KnFaultCount){fault, 1};
}

void kn_evaluation_add(KnEvaluation *evaluation, const KnWorldMatch *match, const KnMeasured *measured)
{
    evaluation->count++;
    for (int kind = 0; kind < KN_SCORE_KINDS; kind++)
        evaluation->right[kind] += kn_score_is_right((KnScoreKind)kind, match, measured);
    if (!measured->clean && measured->fault)
        count_fault(evaluation, measured->fault);
}

char *kn_evaluation_text(const KnEvaluation *evaluation)
{
    KnText text = {0};
    const struct KnFaultCount *most = NULL;
    for (int kind = 0; kind < KN_SCORE_KINDS; kind++) {
        double low, high, share = evaluation->count ? (double)evaluation->right[kind] / evaluation->count : 0;
        kn_wilson_interval(evaluation->right[kind], evaluation->count, &low, &high);
        kn_text_appendf(&text, "  %-7s %5.1f%%   %d of %d   95%% interval %.1f to %.1f%%\n", names[kind], 100 * share,
                        evaluation->right[kind], evaluation->count, 100 * low, 100 * high);
    }
    for (int i = 0; i < evaluation->fault_kinds; i++)
        if (!most || evaluation->faults[i].count > most->count)
            most = &evaluation->faults[i];
    if (most)
        kn_text_appendf(&text, "most frequent fault: %s (%d of %d clips)\n", most->fault, most->count,
                        evaluation->count);
    return kn_text_take(&text);
}

json_t *kn_evaluation_json(const KnEvaluation *evaluation)
{
    json_t *root = json_object(), *faults = json_object();
    for (int kind = 0; kind < KN_SCORE_KINDS; kind++) {
        double low, high, share = evaluation->count ? (double)evaluation->right[kind] / evaluation->count : 0;
        kn_wilson_interval(evaluation->right[kind], evaluation->count, &low, &high);
        json_object_set_new(root, names[kind],
                            json_pack("{sisisfsfsf}", "right", evaluation->right[kind], "of", evaluation->count,
                                      "share", share, "low", low, "high", high));
    }
    for (int i = 0; i < evaluation->fault_kinds; i++)
        json_object_set_new(faults, evaluation->faults[i].fault, json_integer(evaluation->faults[i].count));
    json_object_set_new(root, "faults", faults);
    return root;
}
