/* The tokenizer: special pieces, cutting and files around core/model/sentencepiece.h. */
#include "core/model/tokenizer.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/model/sentencepiece.h"

#include <stdlib.h>
#include <string.h>

struct KnTokenizer {
    KnSentencePiece *pieces;
    void *model;
    size_t model_bytes;
};

/* Takes over `model`, also on failure. */
static int open_model(void *model, size_t bytes, const char *name, KnTokenizer **tokenizer)
{
    KnSentencePiece *pieces;
    *tokenizer = NULL;
    int code = kn_sentencepiece_open(model, bytes, name, &pieces);
    if (code == KN_OK && kn_sentencepiece_end(pieces) < 0) {
        kn_sentencepiece_close(pieces);
        code = kn_fail(KN_EFORMAT, "%s has no end-of-text piece (</s>), which every caption ends with", name);
    }
    if (code != KN_OK) {
        free(model);
        return code;
    }
    KnTokenizer *made = kn_alloc(sizeof *made);
    *made = (KnTokenizer){.pieces = pieces, .model = model, .model_bytes = bytes};
    *tokenizer = made;
    return KN_OK;
}

static int has_a_word(const char *caption)
{
    return caption[strspn(caption, " \t\r\n\v\f")] != '\0';
}

int kn_tokenizer_train(const char *const *captions, int64_t count, int64_t vocabulary, KnTokenizer **tokenizer)
{
    *tokenizer = NULL;
    int64_t with_words = 0;
    for (int64_t i = 0; i < count; i++)
        with_words += has_a_word(captions[i]);
    if (!with_words)
        return kn_fail(KN_EINPUT, "none of the %lld captions has a word to learn a vocabulary from", (long long)count);
    void *model;
    size_t bytes;
    KN_TRY(kn_sentencepiece_train(captions, count, vocabulary, &model, &bytes));
    return open_model(model, bytes, "the learned vocabulary", tokenizer);
}

int kn_tokenizer_load(const void *model, size_t bytes, const char *name, KnTokenizer **tokenizer)
{
    void *copy = kn_alloc(bytes + 1);
    memcpy(copy, model, bytes);
    return open_model(copy, bytes, name, tokenizer);
}

int kn_tokenizer_load_file(const char *path, KnTokenizer **tokenizer)
{
    char *bytes;
    size_t size;
    *tokenizer = NULL;
    KN_TRY(kn_file_read(path, &bytes, &size));
    return open_model(bytes, size, path, tokenizer);
}

const void *kn_tokenizer_model(const KnTokenizer *tokenizer, size_t *bytes)
{
    *bytes = tokenizer->model_bytes;
    return tokenizer->model;
}

void kn_tokenizer_destroy(KnTokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    kn_sentencepiece_close(tokenizer->pieces);
    free(tokenizer->model);
    free(tokenizer);
}

int64_t kn_tokenizer_vocabulary(const KnTokenizer *tokenizer)
{
    return kn_sentencepiece_size(tokenizer->pieces);
}

int32_t kn_tokenizer_pad(const KnTokenizer *tokenizer)
{
    int32_t pad = kn_sentencepiece_pad(tokenizer->pieces);
    return pad < 0 ? 0 : pad;
}

int32_t kn_tokenizer_end(const KnTokenizer *tokenizer)
{
    return kn_sentencepiece_end(tokenizer->pieces);
}

int32_t kn_tokenizer_unknown(const KnTokenizer *tokenizer)
{
    return kn_sentencepiece_unknown(tokenizer->pieces);
}

const char *kn_tokenizer_piece(const KnTokenizer *tokenizer, int32_t id)
{
    KN_ASSERT(id >= 0 && id < kn_sentencepiece_size(tokenizer->pieces));
    return kn_sentencepiece_piece(tokenizer->pieces, id);
}

int kn_tokenizer_encode(const KnTokenizer *tokenizer, const char *text, int64_t max_tokens, int32_t *ids,
                        int64_t *count)
{
    KN_ASSERT(max_tokens >= 1);
    KN_TRY(kn_sentencepiece_encode(tokenizer->pieces, text, max_tokens - 1, ids, count));
    ids[(*count)++] = kn_tokenizer_end(tokenizer);
    return KN_OK;
}
