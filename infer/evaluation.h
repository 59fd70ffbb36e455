/* The score of generated clips: how many show what their caption says, with how much certainty, and what is wrong with
 * the others. The verdict about one clip is the world's (data/world.h); here they are counted and told. */
#ifndef KN_INFER_EVALUATION_H
#define KN_INFER_EVALUATION_H

#include "data/world.h"

#include <jansson.h>

/* What is counted, in the order in which it is told. */
typedef enum KnScoreKind {
    KN_SCORE_COLOUR,
    KN_SCORE_SHAPE,
    KN_SCORE_MOTION,
    KN_SCORE_CLEAN,
    KN_SCORE_ALL, /* the four above in one clip */
    KN_SCORE_KINDS
} KnScoreKind;
const char *kn_score_name(KnScoreKind kind);

enum { KN_FAULTS_MAX = 32 };

/* Starts as {0}. */
typedef struct KnEvaluation {
    int count, right[KN_SCORE_KINDS];
    int fault_kinds;
    struct KnFaultCount {
        const char *fault; /* a constant of the world's */
        int count;
    } faults[KN_FAULTS_MAX];
} KnEvaluation;

void kn_evaluation_add(KnEvaluation *evaluation, const KnWorldMatch *match, const KnMeasured *measured);

/* Whether one clip is right in this respect. */
int kn_score_is_right(KnScoreKind kind, const KnWorldMatch *match, const KnMeasured *measured);

/* A table for people, with 95% intervals (Wilson) and the most frequent fault; free() it. */
char *kn_evaluation_text(const KnEvaluation *evaluation);

/* {"colour": {"right": 95, "of": 96, "share": ..., "low": ..., "high": ...}, ..., "faults": {"...": 3}} */
json_t *kn_evaluation_json(const KnEvaluation *evaluation);

#endif
