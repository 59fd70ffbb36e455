/* The door to the SentencePiece library: plain C functions, no exception and no exit passes through them.
 * Only core/model/tokenizer.c includes this; everybody else uses core/model/tokenizer.h. */
#ifndef KN_MODEL_SENTENCEPIECE_H
#define KN_MODEL_SENTENCEPIECE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct KnSentencePiece KnSentencePiece;

/* Learns a unigram model: of whole words and letters where both fit, else of parts of words; *model (malloc) and *bytes
 * are its serialized form. */
int kn_sentencepiece_train(const char *const *sentences, int64_t count, int64_t vocabulary, void **model,
                           size_t *bytes);

/* KN_EFORMAT for bytes that would lead the library astray (it trusts parts of them); open does this first. */
int kn_sentencepiece_check(const void *model, size_t bytes, const char *name);

/* Opens a serialized model; `name` for error sentences. */
int kn_sentencepiece_open(const void *model, size_t bytes, const char *name, KnSentencePiece **processor);
void kn_sentencepiece_close(KnSentencePiece *processor);

int64_t kn_sentencepiece_size(const KnSentencePiece *processor);
int32_t kn_sentencepiece_pad(const KnSentencePiece *processor); /* -1 when the model has none; likewise below */
int32_t kn_sentencepiece_end(const KnSentencePiece *processor);
int32_t kn_sentencepiece_unknown(const KnSentencePiece *processor);
const char *kn_sentencepiece_piece(const KnSentencePiece *processor, int32_t id);

/* At most `capacity` ids of the text, without end piece; *count is how many were written. */
int kn_sentencepiece_encode(const KnSentencePiece *processor, const char *text, int64_t capacity, int32_t *ids,
                            int64_t *count);

#ifdef __cplusplus
}
#endif
#endif
