// The only C++ and the only user of SentencePiece (https://github.com/google/sentencepiece): see sentencepiece.h.
// Whatever the library throws becomes a sentence.
#include "core/model/sentencepiece.h"

extern "C" {
#include "core/base/error.h"
}

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

struct KnSentencePiece {
    sentencepiece::SentencePieceProcessor processor;
};

namespace
{

// The captions, `rounds` times over: a seed piece has to occur twice before the trainer considers it.
class Captions : public sentencepiece::SentenceIterator
{
  public:
    Captions(const char *const *sentences, int64_t count, int rounds) : sentences_(sentences), count_(count)
    {
        end_ = count * rounds;
        load();
    }
    bool done() const override
    {
        return at_ >= end_;
    }
    void Next() override
    {
        at_++;
        load();
    }
    const std::string &value() const override
    {
        return value_;
    }
    sentencepiece::util::Status status() const override
    {
        return {};
    }

  private:
    void load()
    {
        if (at_ < end_)
            value_ = sentences_[at_ % count_];
    }
    const char *const *sentences_;
    int64_t count_, end_, at_ = 0;
    std::string value_;
};

sentencepiece::util::Status train(const char *type, const char *const *sentences, int64_t count, int64_t vocabulary,
                                  std::string *serialized)
{
    const std::unordered_map<std::string, std::string> settings = {
        {"minloglevel", "4"},
        {"model_type", type},
        {"model_prefix", ""},
        {"vocab_size", std::to_string(vocabulary)},
        {"hard_vocab_limit", "false"},
        {"character_coverage", "1.0"},
        {"num_threads", "1"},
        {"max_sentencepiece_length", "32"},
        {"max_sentence_length", "1000000"},
        {"normalization_rule_name", "nmt_nfkc_cf"},
        {"pad_id", "0"},
        {"eos_id", "1"},
        {"unk_id", "2"},
        {"bos_id", "-1"},
    };
    Captions captions(sentences, count, 2);
    serialized->clear();
    return sentencepiece::SentencePieceTrainer::Train(settings, &captions, serialized);
}

// Two fields in protobuf's wire format: a number, and bytes.
void put_varint(std::string *out, uint64_t value)
{
    for (; value >= 128; value >>= 7)
        out->push_back((char)(value | 128));
    out->push_back((char)value);
}

void put_bytes(std::string *out, int field, const std::string &bytes)
{
    put_varint(out, (uint64_t)field << 3 | 2);
    put_varint(out, bytes.size());
    out->append(bytes);
}

// Turns a model of whole words into a unigram model of the same words and, far less likely, of their letters: a word
// of the captions is one piece, any other is spelt. (The library's own unigram training stops after ten rounds of
// expectation maximization, which leaves most words of a small set in pieces.) False when they do not all fit.
// Protobuf merges what is appended: more pieces, and later values of the training settings.
bool add_letters(int64_t vocabulary, std::string *serialized)
{
    sentencepiece::SentencePieceProcessor words;
    if (!words.LoadFromSerializedProto(*serialized).ok() || words.GetPieceSize() >= vocabulary)
        return false;
    std::set<std::string> letters;
    float score = 0;
    for (int id = 0; id < words.GetPieceSize(); id++) {
        if (words.IsControl(id) || words.IsUnknown(id))
            continue;
        const std::string &piece = words.IdToPiece(id);
        for (size_t at = 0, next; at < piece.size(); at = next) {
            for (next = at + 1; next < piece.size() && ((unsigned char)piece[next] & 0xC0) == 0x80;)
                next++;
            letters.insert(piece.substr(at, next - at));
        }
        score = std::min(score, words.GetScore(id) - 10);
    }
    for (int id = 0; id < words.GetPieceSize(); id++)
        letters.erase(words.IdToPiece(id));
    const int64_t size = words.GetPieceSize() + (int64_t)letters.size();
    if (size > vocabulary)
        return false;
    for (const std::string &letter : letters) {
        std::string piece; // SentencePiece { piece = 1; float score = 2; }
        put_bytes(&piece, 1, letter);
        piece.push_back(2 << 3 | 5);
        piece.append(reinterpret_cast<const char *>(&score), sizeof score);
        put_bytes(serialized, 1, piece); // ModelProto.pieces
    }
    std::string spec; // TrainerSpec { model_type = 3 (UNIGRAM = 1); vocab_size = 4 }
    put_varint(&spec, 3 << 3);
    put_varint(&spec, 1);
    put_varint(&spec, 4 << 3);
    put_varint(&spec, (uint64_t)size);
    put_bytes(serialized, 2, spec); // ModelProto.trainer_spec
    return true;
}

template <typename Body> int guarded(const char *what, Body body)
{
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return kn_fail(KN_EMEMORY, "not enough memory to %s", what);
    } catch (const std::exception &e) {
        return kn_fail(KN_EFORMAT, "cannot %s: %s", what, e.what());
    } catch (...) {
        return kn_fail(KN_EFORMAT, "cannot %s", what);
    }
}

} // namespace

int kn_sentencepiece_train(const char *const *sentences, int64_t count, int64_t vocabulary, void **model, size_t *bytes)
{
    *model = nullptr;
    *bytes = 0;
    return guarded("learn a vocabulary", [&]() {
        std::string serialized;
        auto status = train("word", sentences, count, vocabulary, &serialized);
        if (!status.ok() || !add_letters(vocabulary, &serialized))
            status = train("unigram", sentences, count, vocabulary, &serialized);
        if (!status.ok())
            return kn_fail(KN_EINPUT, "cannot learn a vocabulary of %lld pieces: %s", (long long)vocabulary,
                           status.error_message());
        *model = malloc(serialized.size());
        if (!*model)
            return kn_fail(KN_EMEMORY, "not enough memory for a vocabulary of %zu bytes", serialized.size());
        memcpy(*model, serialized.data(), serialized.size());
        *bytes = serialized.size();
        return (int)KN_OK;
    });
}

int kn_sentencepiece_open(const void *model, size_t bytes, const char *name, KnSentencePiece **processor)
{
    *processor = nullptr;
    KN_TRY(kn_sentencepiece_check(model, bytes, name));
    return guarded("open a tokenizer", [&]() {
        auto made = std::make_unique<KnSentencePiece>();
        const auto status =
            made->processor.LoadFromSerializedProto(std::string_view(static_cast<const char *>(model), bytes));
        if (!status.ok())
            return kn_fail(KN_EFORMAT, "%s is not a SentencePiece model: %s", name, status.error_message());
        *processor = made.release();
        return (int)KN_OK;
    });
}

void kn_sentencepiece_close(KnSentencePiece *processor)
{
    delete processor;
}

int64_t kn_sentencepiece_size(const KnSentencePiece *processor)
{
    return processor->processor.GetPieceSize();
}

int32_t kn_sentencepiece_pad(const KnSentencePiece *processor)
{
    return processor->processor.pad_id();
}

int32_t kn_sentencepiece_end(const KnSentencePiece *processor)
{
    return processor->processor.eos_id();
}

int32_t kn_sentencepiece_unknown(const KnSentencePiece *processor)
{
    return processor->processor.unk_id();
}

const char *kn_sentencepiece_piece(const KnSentencePiece *processor, int32_t id)
{
    return processor->processor.IdToPiece(id).c_str();
}

int kn_sentencepiece_encode(const KnSentencePiece *processor, const char *text, int64_t capacity, int32_t *ids,
                            int64_t *count)
{
    *count = 0;
    return guarded("tokenize a caption", [&]() {
        std::vector<int> pieces;
        const auto status = processor->processor.Encode(text, &pieces);
        if (!status.ok())
            return kn_fail(KN_EINPUT, "cannot tokenize \"%.60s\": %s", text, status.error_message());
        *count = std::min<int64_t>(capacity, (int64_t)pieces.size());
        std::copy_n(pieces.begin(), *count, ids);
        return (int)KN_OK;
    });
}
