/* The tokenizer: captions to ids and back, over a SentencePiece model that is learned here or was published.
 *
 * Encoded text always ends with the end piece, so the empty caption is exactly [end]: the "no text" that guidance
 * trains with and samples with. Learned vocabularies have id 0 = padding, 1 = end, 2 = unknown, as T5's have; text is
 * put into Unicode NFKC and lower case first. A published model keeps its own normalization and ids. */
#ifndef KN_MODEL_TOKENIZER_H
#define KN_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

typedef struct KnTokenizer KnTokenizer; /* immutable once made: threads may share it */

/* Learns at most `vocabulary` pieces from captions, the three special ones included: the same captions in the same
 * order give the same bytes. Small sets of words become one piece a word, with letters to spell what was never seen.
 * KN_EINPUT when no caption has a word, or the vocabulary cannot hold the captions' letters (says how many it needs).
 * One training at a time in a process. */
int kn_tokenizer_train(const char *const *captions, int64_t count, int64_t vocabulary, KnTokenizer **tokenizer);

/* From the bytes of a SentencePiece model; `name` (a path) stands in the sentence of KN_EFORMAT. */
int kn_tokenizer_load(const void *model, size_t bytes, const char *name, KnTokenizer **tokenizer);
int kn_tokenizer_load_file(const char *path, KnTokenizer **tokenizer);

/* The model's bytes, to be saved as spiece.model; they belong to the tokenizer. */
const void *kn_tokenizer_model(const KnTokenizer *tokenizer, size_t *bytes);

void kn_tokenizer_destroy(KnTokenizer *tokenizer); /* NULL is fine */

int64_t kn_tokenizer_vocabulary(const KnTokenizer *tokenizer); /* pieces, special ones included */
int32_t kn_tokenizer_pad(const KnTokenizer *tokenizer);
int32_t kn_tokenizer_end(const KnTokenizer *tokenizer);
int32_t kn_tokenizer_unknown(const KnTokenizer *tokenizer);
const char *kn_tokenizer_piece(const KnTokenizer *tokenizer, int32_t id); /* UTF-8; belongs to the tokenizer */

/* Writes the ids of `text` (UTF-8), end piece last, to ids[0 .. *count - 1]; *count <= max_tokens. Text that is too
 * long loses its last pieces, never the end piece. max_tokens >= 1. Text that is not UTF-8 is not an error: bad bytes
 * become the replacement character. */
int kn_tokenizer_encode(const KnTokenizer *tokenizer, const char *text, int64_t max_tokens, int32_t *ids,
                        int64_t *count);

#endif
