/* libyaml's event stream gathered into a tree. Depth is bounded, so that no input can exhaust the stack. */
#include "core/base/yaml.h"

#include "core/base/error.h"
#include "core/base/file.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { MAX_DEPTH = 64 };

typedef struct Reader {
    yaml_parser_t parser;
    KnArena *arena;
    const char *name;
} Reader;

static int fail_at(const Reader *reader, yaml_mark_t mark, const char *sentence, const char *detail)
{
    return kn_fail(KN_EFORMAT, "%s:%zu:%zu: %s%s", reader->name, mark.line + 1, mark.column + 1, sentence, detail);
}

/* The next event; the caller deletes it. */
static int next_event(Reader *reader, yaml_event_t *event)
{
    yaml_parser_t *parser = &reader->parser;
    if (yaml_parser_parse(parser, event))
        return KN_OK;
    if (parser->error == YAML_MEMORY_ERROR)
        return kn_fail(KN_EMEMORY, "not enough memory to read %s", reader->name);
    if (parser->error == YAML_READER_ERROR)
        return kn_fail(KN_EFORMAT, "%s is not YAML: %s at byte %zu", reader->name, parser->problem,
                       parser->problem_offset);
    return fail_at(reader, parser->problem_mark, "", parser->problem ? parser->problem : "not YAML");
}

static KnYamlNode *new_node(Reader *reader, KnYamlKind kind, yaml_mark_t mark)
{
    KnYamlNode *node = kn_arena_alloc(reader->arena, sizeof *node);
    node->kind = kind;
    node->line = (int)mark.line + 1;
    node->column = (int)mark.column + 1;
    return node;
}

/* Appends to a node's children; room doubles in the arena, whose garbage dies with it. */
static void add_child(Reader *reader, KnYamlNode *node, KnYamlNode *key, KnYamlNode *value)
{
    int count = node->count++;
    if ((count & (count - 1)) == 0) {
        size_t room = (size_t)(count ? 2 * count : 1) * sizeof *node->values,
               used = (size_t)count * sizeof *node->values;
        KnYamlNode **keys = kn_arena_alloc(reader->arena, room), **values = kn_arena_alloc(reader->arena, room);
        if (count) {
            memcpy(keys, node->keys, used);
            memcpy(values, node->values, used);
        }
        node->keys = keys;
        node->values = values;
    }
    node->keys[count] = key;
    node->values[count] = value;
}

static int read_node(Reader *reader, yaml_event_t *event, int depth, KnYamlNode **out);

/* Reads one child of a collection, or finds its end (*child NULL). */
static int read_child(Reader *reader, yaml_event_type_t end, int depth, KnYamlNode **child)
{
    yaml_event_t event;
    *child = NULL;
    KN_TRY(next_event(reader, &event));
    int code = event.type == end ? KN_OK : read_node(reader, &event, depth + 1, child);
    yaml_event_delete(&event);
    return code;
}

static int read_sequence(Reader *reader, KnYamlNode *node, int depth)
{
    for (;;) {
        KnYamlNode *item;
        KN_TRY(read_child(reader, YAML_SEQUENCE_END_EVENT, depth, &item));
        if (!item)
            return KN_OK;
        add_child(reader, node, NULL, item);
    }
}

static int read_mapping(Reader *reader, KnYamlNode *node, int depth)
{
    for (;;) {
        KnYamlNode *key, *value;
        KN_TRY(read_child(reader, YAML_MAPPING_END_EVENT, depth, &key));
        if (!key)
            return KN_OK;
        if (key->kind != KN_YAML_SCALAR)
            return kn_fail(KN_EFORMAT, "%s:%d:%d: a key must be a word", reader->name, key->line, key->column);
        for (int i = 0; i < node->count; i++)
            if (strcmp(node->keys[i]->text, key->text) == 0)
                return kn_fail(KN_EFORMAT, "%s:%d:%d: the key %s appears twice; first in line %d", reader->name,
                               key->line, key->column, key->text, node->keys[i]->line);
        KN_TRY(read_child(reader, YAML_NO_EVENT, depth, &value));
        add_child(reader, node, key, value);
    }
}

static int read_scalar(Reader *reader, const yaml_event_t *event, KnYamlNode *node)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    if (memchr(text, 0, length))
        return fail_at(reader, event->start_mark, "a value contains a NUL character", "");
    node->text = kn_arena_strdup(reader->arena, text);
    node->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    return KN_OK;
}

static int read_node(Reader *reader, yaml_event_t *event, int depth, KnYamlNode **out)
{
    yaml_mark_t mark = event->start_mark;
    const yaml_char_t *anchor = NULL, *tag = NULL;
    if (depth > MAX_DEPTH)
        return fail_at(reader, mark, "nested too deeply", "");
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
        *out = new_node(reader, KN_YAML_SCALAR, mark);
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
        *out = new_node(reader, KN_YAML_SEQUENCE, mark);
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
        *out = new_node(reader, KN_YAML_MAPPING, mark);
        break;
    case YAML_ALIAS_EVENT:
        return fail_at(reader, mark, "aliases (*name) are not supported: write the value out", "");
    default:
        return fail_at(reader, mark, "a value was expected here", "");
    }
    if (anchor)
        return fail_at(reader, mark, "anchors (&name) are not supported: write the value out", "");
    if (tag)
        return fail_at(reader, mark, "tags (!name) are not supported: remove ", (const char *)tag);
    switch ((*out)->kind) {
    case KN_YAML_SCALAR:
        return read_scalar(reader, event, *out);
    case KN_YAML_SEQUENCE:
        return read_sequence(reader, *out, depth);
    case KN_YAML_MAPPING:
        return read_mapping(reader, *out, depth);
    }
    return KN_OK;
}

/* The whole stream: its start, at most one document, its end. */
static int read_stream(Reader *reader, KnYamlNode **root)
{
    int documents = 0;
    for (;;) {
        yaml_event_t event;
        KN_TRY(next_event(reader, &event));
        yaml_event_type_t type = event.type;
        int code = KN_OK;
        if (type == YAML_DOCUMENT_START_EVENT && documents++)
            code = fail_at(reader, event.start_mark, "a second document starts here; only one is allowed", "");
        yaml_event_delete(&event);
        KN_TRY(code);
        if (type == YAML_STREAM_END_EVENT)
            return KN_OK;
        if (type == YAML_DOCUMENT_START_EVENT)
            KN_TRY(read_child(reader, YAML_NO_EVENT, 0, root));
    }
}

int kn_yaml_parse(KnArena *arena, const char *text, size_t length, const char *name, KnYamlNode **root)
{
    Reader reader = {.arena = arena, .name = name};
    *root = NULL;
    if (!yaml_parser_initialize(&reader.parser))
        return kn_fail(KN_EMEMORY, "not enough memory to read %s", name);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, length);
    KnYamlNode *found = NULL;
    int code = read_stream(&reader, &found);
    yaml_parser_delete(&reader.parser);
    int empty = !found || (found->kind == KN_YAML_SCALAR && !found->quoted && !found->text[0]); /* "---" alone */
    if (code == KN_OK)
        *root = empty ? new_node(&reader, KN_YAML_MAPPING, (yaml_mark_t){0}) : found;
    return code;
}

int kn_yaml_read(KnArena *arena, const char *path, KnYamlNode **root)
{
    char *text;
    size_t length;
    *root = NULL;
    KN_TRY(kn_file_read(path, &text, &length));
    int code = kn_yaml_parse(arena, text, length, path, root);
    free(text);
    return code;
}

const KnYamlNode *kn_yaml_get(const KnYamlNode *mapping, const char *key)
{
    for (int i = 0; mapping->kind == KN_YAML_MAPPING && i < mapping->count; i++)
        if (strcmp(mapping->keys[i]->text, key) == 0)
            return mapping->values[i];
    return NULL;
}
