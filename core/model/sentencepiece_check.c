/* Makes sure that a SentencePiece model cannot lead its library astray.
 *
 * The library trusts the model's table of normalizations (`precompiled_charsmap`): a damaged one sends it through a
 * trie with offsets that point anywhere, and the process dies. So every path that text could take through the trie is
 * walked here first. Layout: u32 size of the trie in bytes, the trie (Darts-clone double array of u32 units: bits 0-7
 * and 31 label, 8 has a leaf, 9-30 offset), then the replacements as strings. The table lies in a protobuf message:
 * ModelProto field 3 (normalizer_spec) or 5 (denormalizer_spec), in it field 2. */
#include "core/model/sentencepiece.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdlib.h>
#include <string.h>

typedef struct Bytes {
    const unsigned char *at;
    size_t size;
} Bytes;

/* Takes a varint off the front; 0 when there is none. */
static int take_varint(Bytes *in, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && in->size; shift += 7) {
        unsigned char byte = *in->at++;
        in->size--;
        *value |= (uint64_t)(byte & 127) << shift;
        if (!(byte & 128))
            return 1;
    }
    return 0;
}

/* Takes one field off the front: its number, and its content when it is a length-delimited one. */
static int take_field(Bytes *in, uint64_t *field, Bytes *content)
{
    uint64_t tag, size = 0;
    *content = (Bytes){0};
    if (!take_varint(in, &tag))
        return 0;
    *field = tag >> 3;
    switch (tag & 7) {
    case 0:
        return take_varint(in, &size);
    case 1:
        size = 8;
        break;
    case 2:
        if (!take_varint(in, &size))
            return 0;
        break;
    case 5:
        size = 4;
        break;
    default:
        return 0;
    }
    if (size > in->size)
        return 0;
    if ((tag & 7) == 2)
        *content = (Bytes){in->at, (size_t)size};
    in->at += size;
    in->size -= (size_t)size;
    return 1;
}

static uint32_t unit_at(const unsigned char *trie, size_t index)
{
    uint32_t unit;
    memcpy(&unit, trie + 4 * index, sizeof unit);
    return unit;
}

static uint32_t offset_of(uint32_t unit)
{
    return (unit >> 10) << ((unit & (1U << 9)) >> 6);
}

/* Whether every state that can be reached from the root has all its 256 successors, and every leaf its string, inside
 * the table. A state is the base to which the next byte is added. */
static int trie_is_sound(const unsigned char *trie, size_t units, size_t strings)
{
    size_t depth = 0;
    uint8_t *seen = kn_alloc(units);
    uint32_t *stack = kn_alloc(units * sizeof *stack), base = offset_of(unit_at(trie, 0));
    int sound = (base | 255U) < units;
    if (sound) {
        seen[base] = 1;
        stack[depth++] = base;
    }
    while (sound && depth) {
        uint32_t state = stack[--depth];
        for (uint32_t byte = 0; byte < 256 && sound; byte++) {
            uint32_t unit = unit_at(trie, state ^ byte), next = state ^ byte ^ offset_of(unit);
            if ((unit & (1U << 31 | 0xFF)) != byte)
                continue;
            sound = (next | 255U) < units;
            if (sound && (unit & 256))
                sound = (unit_at(trie, next) & 0x7FFFFFFF) < strings;
            if (sound && !seen[next]) {
                seen[next] = 1;
                stack[depth++] = next;
            }
        }
    }
    free(seen);
    free(stack);
    return sound;
}

static int charsmap_is_sound(Bytes map)
{
    uint32_t size;
    if (map.size == 0)
        return 1;
    if (map.size <= sizeof size)
        return 0;
    memcpy(&size, map.at, sizeof size);
    if (size < 4 || size % 4 || size >= map.size - sizeof size)
        return 0;
    return trie_is_sound(map.at + sizeof size, size / 4, map.size - sizeof size - size);
}

static int normalizer_is_sound(Bytes spec)
{
    enum { PRECOMPILED_CHARSMAP = 2 };
    uint64_t field;
    Bytes content;
    while (spec.size)
        if (!take_field(&spec, &field, &content) || (field == PRECOMPILED_CHARSMAP && !charsmap_is_sound(content)))
            return 0;
    return 1;
}

int kn_sentencepiece_check(const void *model, size_t bytes, const char *name)
{
    enum { NORMALIZER_SPEC = 3, DENORMALIZER_SPEC = 5 };
    uint64_t field;
    Bytes in = {model, bytes}, content;
    if (!bytes)
        return kn_fail(KN_EFORMAT, "%s is not a SentencePiece model: it is empty", name);
    while (in.size) {
        if (!take_field(&in, &field, &content))
            return kn_fail(KN_EFORMAT, "%s is not a SentencePiece model, or a damaged one", name);
        if ((field == NORMALIZER_SPEC || field == DENORMALIZER_SPEC) && !normalizer_is_sound(content))
            return kn_fail(KN_EFORMAT, "%s is a damaged SentencePiece model: its table of normalizations is broken",
                           name);
    }
    return KN_OK;
}
