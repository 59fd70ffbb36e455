/* The stream: clips laid end to end as the transformer's inputs.
 *
 * A stream has room for a fixed number of tokens, clips and text tokens, so that graphs have static shapes. Clips are
 * added with their grid of patches, which of their patches are given, their sigma and their caption; this fills
 * positions, conditioning rows, timesteps and span tables. Tokens beyond what was added lie in no span. */
#ifndef KN_MODEL_STREAM_H
#define KN_MODEL_STREAM_H

#include "core/graph/executor.h"
#include "core/model/dit.h"

typedef struct KnStreamShape {
    int64_t tokens, clips, text_tokens;
} KnStreamShape;

typedef struct KnStream {
    KnStreamShape shape;
    int64_t tokens, clips, text_tokens; /* used so far */
    int32_t *positions;                 /* [tokens, 3] */
    int32_t *rows;                      /* [tokens]: 2 clip + (given) */
    float *timesteps;                   /* [2 clips]: 1000 sigma, 0 in turn */
    int32_t *self_spans;                /* [clips, 4] */
    int32_t *cross_spans;               /* [clips, 4] */
    int32_t *text_spans;                /* [clips, 4] */
    int32_t *text_ids;                  /* [text_tokens]; -1 where unused */
    int32_t *text_positions;            /* [text_tokens]; -1 where unused */
} KnStream;

void kn_stream_create(KnStream *stream, KnStreamShape shape);
void kn_stream_destroy(KnStream *stream);
void kn_stream_clear(KnStream *stream);

typedef struct KnStreamClip {
    int64_t grid[3];      /* patches in t, y, x */
    const uint8_t *given; /* [grid product]: 1 where a patch is given; NULL = none */
    float sigma;
    const int32_t *text; /* ids; NULL when text states come from outside */
    int64_t text_tokens;
} KnStreamClip;

/* Appends a clip and returns the index of its first token; asserts that there is room. */
int64_t kn_stream_add(KnStream *stream, const KnStreamClip *clip);

/* The stream's leaves in a graph, bound by kn_stream_bind. */
typedef struct KnStreamLeaves {
    KnTensor *positions, *rows, *timesteps, *self_spans, *cross_spans, *text_spans, *text_ids, *text_positions;
    KnTensor *rope_table;
} KnStreamLeaves;

void kn_stream_leaves(KnGraph *graph, const KnModelConfig *config, KnStreamShape shape, KnStreamLeaves *leaves);

/* Binds all leaves but the rotary table, which is the same for every stream. The stream must outlive the runs. A graph
 * of fewer rows than the stream has reads tokens from `first_token` on, and text from `first_text` on. */
void kn_stream_bind(KnExecutor *executor, const KnStreamLeaves *leaves, const KnStream *stream, int64_t first_token,
                    int64_t first_text);

#endif
