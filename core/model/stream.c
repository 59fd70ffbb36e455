/* Filling the transformer's inputs from clips. */
#include "core/model/stream.h"

#include "core/base/error.h"

#include <stdlib.h>
#include <string.h>

void kn_stream_create(KnStream *stream, KnStreamShape shape)
{
    *stream = (KnStream){.shape = shape};
    stream->positions = kn_alloc((size_t)shape.tokens * 3 * sizeof(int32_t));
    stream->rows = kn_alloc((size_t)shape.tokens * sizeof(int32_t));
    stream->timesteps = kn_alloc((size_t)shape.clips * 2 * sizeof(float));
    stream->self_spans = kn_alloc((size_t)shape.clips * 4 * sizeof(int32_t));
    stream->cross_spans = kn_alloc((size_t)shape.clips * 4 * sizeof(int32_t));
    stream->text_spans = kn_alloc((size_t)shape.clips * 4 * sizeof(int32_t));
    stream->text_ids = kn_alloc((size_t)shape.text_tokens * sizeof(int32_t));
    stream->text_positions = kn_alloc((size_t)shape.text_tokens * sizeof(int32_t));
    kn_stream_clear(stream);
}

void kn_stream_destroy(KnStream *stream)
{
    free(stream->positions);
    free(stream->rows);
    free(stream->timesteps);
    free(stream->self_spans);
    free(stream->cross_spans);
    free(stream->text_spans);
    free(stream->text_ids);
    free(stream->text_positions);
    *stream = (KnStream){0};
}

void kn_stream_clear(KnStream *stream)
{
    const KnStreamShape *shape = &stream->shape;
    stream->tokens = stream->clips = stream->text_tokens = 0;
    memset(stream->positions, 0, (size_t)shape->tokens * 3 * sizeof(int32_t));
    memset(stream->rows, 0, (size_t)shape->tokens * sizeof(int32_t));
    memset(stream->timesteps, 0, (size_t)shape->clips * 2 * sizeof(float));
    memset(stream->self_spans, 0, (size_t)shape->clips * 4 * sizeof(int32_t));
    memset(stream->cross_spans, 0, (size_t)shape->clips * 4 * sizeof(int32_t));
    memset(stream->text_spans, 0, (size_t)shape->clips * 4 * sizeof(int32_t));
    memset(stream->text_ids, 0xff, (size_t)shape->text_tokens * sizeof(int32_t));
    memset(stream->text_positions, 0xff, (size_t)shape->text_tokens * sizeof(int32_t));
}

static void set_span(int32_t *spans, int64_t index, int64_t q, int64_t q_length, int64_t k, int64_t k_length)
{
    int32_t *span = spans + 4 * index;
    span[0] = (int32_t)q;
    span[1] = (int32_t)q_length;
    span[2] = (int32_t)k;
    span[3] = (int32_t)k_length;
}

static void add_text(KnStream *stream, const KnStreamClip *clip)
{
    KN_ASSERT(stream->text_tokens + clip->text_tokens <= stream->shape.text_tokens);
    for (int64_t i = 0; clip->text && i < clip->text_tokens; i++) {
        stream->text_ids[stream->text_tokens + i] = clip->text[i];
        stream->text_positions[stream->text_tokens + i] = (int32_t)i;
    }
    stream->text_tokens += clip->text_tokens;
}

int64_t kn_stream_add(KnStream *stream, const KnStreamClip *clip)
{
    const int64_t *grid = clip->grid;
    int64_t count = grid[0] * grid[1] * grid[2], first = stream->tokens, text = stream->text_tokens;
    int32_t row = (int32_t)(2 * stream->clips);
    KN_ASSERT(stream->clips < stream->shape.clips && first + count <= stream->shape.tokens);
    KN_ASSERT(grid[0] <= KN_ROPE_POSITIONS && grid[1] <= KN_ROPE_POSITIONS && grid[2] <= KN_ROPE_POSITIONS);
    for (int64_t i = 0; i < count; i++) {
        int32_t *position = stream->positions + 3 * (first + i);
        position[0] = (int32_t)(i / (grid[1] * grid[2]));
        position[1] = (int32_t)(i / grid[2] % grid[1]);
        position[2] = (int32_t)(i % grid[2]);
        stream->rows[first + i] = row + (clip->given && clip->given[i]);
    }
    stream->timesteps[row] = 1000.0f * clip->sigma;
    stream->timesteps[row + 1] = 0;
    set_span(stream->self_spans, stream->clips, first, count, first, count);
    set_span(stream->cross_spans, stream->clips, first, count, text, clip->text_tokens);
    set_span(stream->text_spans, stream->clips, text, clip->text_tokens, text, clip->text_tokens);
    add_text(stream, clip);
    stream->tokens += count;
    stream->clips++;
    return first;
}

static KnTensor *input(KnGraph *graph, KnDtype dtype, int64_t rows, int64_t columns, const char *name)
{
    return kn_leaf(graph, KN_ROLE_INPUT, dtype, columns ? 2 : 1, (int64_t[]){rows, columns}, name);
}

void kn_stream_leaves(KnGraph *graph, const KnModelConfig *config, KnStreamShape shape, KnStreamLeaves *leaves)
{
    leaves->positions = input(graph, KN_I32, shape.tokens, 3, "input.positions");
    leaves->rows = input(graph, KN_I32, shape.tokens, 0, "input.rows");
    leaves->timesteps = input(graph, KN_F32, 2 * shape.clips, 0, "input.timesteps");
    leaves->self_spans = input(graph, KN_I32, shape.clips, 4, "input.self_spans");
    leaves->cross_spans = input(graph, KN_I32, shape.clips, 4, "input.cross_spans");
    leaves->text_spans = input(graph, KN_I32, shape.clips, 4, "input.text_spans");
    leaves->text_ids = input(graph, KN_I32, shape.text_tokens, 0, "input.text_ids");
    leaves->text_positions = input(graph, KN_I32, shape.text_tokens, 0, "input.text_positions");
    leaves->rope_table = input(graph, KN_F32, KN_ROPE_POSITIONS, config->hidden / config->heads, "input.rope_table");
}

void kn_stream_bind(KnExecutor *executor, const KnStreamLeaves *leaves, const KnStream *stream, int64_t first_token,
                    int64_t first_text)
{
    kn_executor_bind(executor, leaves->positions, stream->positions + 3 * first_token);
    kn_executor_bind(executor, leaves->rows, stream->rows + first_token);
    kn_executor_bind(executor, leaves->timesteps, stream->timesteps);
    kn_executor_bind(executor, leaves->self_spans, stream->self_spans);
    kn_executor_bind(executor, leaves->cross_spans, stream->cross_spans);
    kn_executor_bind(executor, leaves->text_spans, stream->text_spans);
    kn_executor_bind(executor, leaves->text_ids, stream->text_ids + first_text);
    kn_executor_bind(executor, leaves->text_positions, stream->text_positions + first_text);
}
