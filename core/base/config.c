/* Reading and checking a configuration by the table in core/base/config_table.c.
 *
 * A file is walked as a YAML tree; each leaf finds its row, is converted, checked and stored, and the place it came
 * from is remembered, so that a check over several keys can still name file, line and column. Defaults go through the
 * same door. What a configuration looks like written out is in core/base/config_print.c. */
#include "core/base/config_table.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "core/base/yaml.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 128, MAX_BASES = 16 };
_Static_assert(sizeof(KnPrecision) == sizeof(int), "choices are stored as int");

typedef struct Loader {
    KnConfig *config;
    KnArena *arena;
    const char *places[MAX_ROWS]; /* "FILE:LINE:COLUMN: " or "--set KEY=VALUE: " of the last setting; NULL: not set */
    char *chain[MAX_BASES];       /* real paths of the files being read, to refuse circles */
    int depth;
} Loader;

/* ---- one value ---- */

static const char *node_kind(const KnYamlNode *node)
{
    return node->kind == KN_YAML_MAPPING ? "a section" : "a list";
}

static int wrong(const KnConfigRow *row, const KnYamlNode *value, const char *place)
{
    char description[128];
    kn_config_describe(row, description, sizeof description);
    if (value->kind != KN_YAML_SCALAR)
        return kn_fail(KN_EINPUT, "%s%s must be %s, not %s", place, row->key, description, node_kind(value));
    return kn_fail(KN_EINPUT, "%s%s must be %s, not %s%s%s", place, row->key, description, value->quoted ? "\"" : "",
                   value->text, value->quoted ? "\"" : "");
}

/* A finite decimal number, plain: no hexadecimal, no "nan", no trailing text. */
static int parse_number(const KnYamlNode *value, double *number)
{
    if (value->kind != KN_YAML_SCALAR || value->quoted || !value->text[0] ||
        value->text[strspn(value->text, "0123456789+-.eE")])
        return 0;
    char *end;
    *number = strtod(value->text, &end);
    return *end == 0 && isfinite(*number);
}

static int in_range(const KnConfigRow *row, double number)
{
    if (number < row->low || (row->above_low && number == row->low))
        return 0;
    return row->high == 0 || (row->below_high ? number < row->high : number <= row->high);
}

/* An integer, also as 1e6 or 100.0; beyond 2^53 only as plain digits, where a double would lose some. */
static int parse_integer(const KnConfigRow *row, const KnYamlNode *value, int64_t *integer)
{
    double number;
    if (!parse_number(value, &number) || !in_range(row, number))
        return 0;
    char *end;
    errno = 0;
    long long digits = strtoll(value->text, &end, 10);
    if (*end == 0) {
        *integer = digits;
        return errno == 0;
    }
    *integer = fabs(number) < 0x1p53 ? (int64_t)number : 0;
    return fabs(number) < 0x1p53 && (double)*integer == number;
}

static int find_choice(const char *choices, const char *word)
{
    int length;
    const char *choice;
    for (int i = 0; (choice = kn_config_choice(choices, i, &length)); i++)
        if (strlen(word) == (size_t)length && memcmp(choice, word, (size_t)length) == 0)
            return i;
    return -1;
}

/* A list of texts; a single scalar is a list of one. */
static int set_strings(const KnConfigRow *row, KnStringList *list, const KnYamlNode *value, const char *place)
{
    if (value->kind == KN_YAML_MAPPING)
        return wrong(row, value, place);
    int count = value->kind == KN_YAML_SCALAR ? 1 : value->count;
    for (int i = 0; i < count; i++) {
        const KnYamlNode *item = value->kind == KN_YAML_SCALAR ? value : value->values[i];
        if (item->kind != KN_YAML_SCALAR)
            return kn_fail(KN_EINPUT, "%s%s must be a list of texts, but its item %d is %s", place, row->key, i + 1,
                           node_kind(item));
    }
    kn_string_list_clear(list);
    for (int i = 0; i < count; i++)
        kn_string_list_add(list, value->kind == KN_YAML_SCALAR ? value->text : value->values[i]->text);
    return KN_OK;
}

static int set_triple(const KnConfigRow *row, int64_t triple[3], const KnYamlNode *value, const char *place)
{
    int64_t parsed[3];
    if (value->kind != KN_YAML_SEQUENCE || value->count != 3)
        return wrong(row, value, place);
    for (int i = 0; i < 3; i++)
        if (!parse_integer(row, value->values[i], &parsed[i]))
            return wrong(row, value->values[i], place);
    memcpy(triple, parsed, sizeof parsed);
    return KN_OK;
}

/* true and false are the words of older files. */
static int parse_recompute(const KnYamlNode *value, int64_t *recompute)
{
    static const struct {
        const char *word;
        int64_t value;
    } words[] = {{"none", KN_RECOMPUTE_NONE},
                 {"block", KN_RECOMPUTE_BLOCK},
                 {"false", KN_RECOMPUTE_NONE},
                 {"true", KN_RECOMPUTE_BLOCK}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(value->text, words[i].word) == 0) {
            *recompute = words[i].value;
            return 1;
        }
    return kn_parse_bytes(value->text, recompute) && *recompute > 0;
}

static int set_scalar(const KnConfigRow *row, void *field, const KnYamlNode *value, const char *place)
{
    if (value->kind != KN_YAML_SCALAR)
        return wrong(row, value, place);
    int choice = row->choices ? find_choice(row->choices, value->text) : 0;
    if (choice < 0)
        return wrong(row, value, place);
    double number;
    switch (row->type) {
    case KN_CONFIG_INT:
        if (row->zero_word && strcmp(value->text, row->zero_word) == 0)
            *(int64_t *)field = 0;
        else if (!parse_integer(row, value, field))
            return wrong(row, value, place);
        break;
    case KN_CONFIG_FLOAT:
        if (!parse_number(value, &number) || !in_range(row, number))
            return wrong(row, value, place);
        *(double *)field = number;
        break;
    case KN_CONFIG_BOOL:
        if (value->quoted || (strcmp(value->text, "true") != 0 && strcmp(value->text, "false") != 0))
            return wrong(row, value, place);
        *(int *)field = value->text[0] == 't';
        break;
    case KN_CONFIG_RECOMPUTE:
        if (!parse_recompute(value, field))
            return wrong(row, value, place);
        break;
    case KN_CONFIG_CHOICE:
        *(int *)field = choice;
        break;
    default: /* KN_CONFIG_STRING */
        free(*(char **)field);
        *(char **)field = value->text[0] ? kn_strdup(value->text) : NULL;
    }
    return KN_OK;
}

static int set_value(KnConfig *config, const KnConfigRow *row, const KnYamlNode *value, const char *place)
{
    void *field = kn_config_field(config, row);
    if (value->kind == KN_YAML_SCALAR && !value->quoted &&
        (!value->text[0] || strcmp(value->text, "~") == 0 || strcmp(value->text, "null") == 0))
        return kn_fail(KN_EINPUT, "%s%s has no value: give one or remove the key", place, row->key);
    if (row->type == KN_CONFIG_STRINGS)
        return set_strings(row, field, value, place);
    if (row->type == KN_CONFIG_TRIPLE)
        return set_triple(row, field, value, place);
    return set_scalar(row, field, value, place);
}

/* ---- keys ---- */

static const KnConfigRow *find_row(const char *key)
{
    for (int i = 0; i < kn_config_row_count; i++)
        if (strcmp(kn_config_rows[i].key, key) == 0)
            return &kn_config_rows[i];
    return NULL;
}

static int is_section(const char *key)
{
    size_t length = strlen(key);
    for (int i = 0; i < kn_config_row_count; i++)
        if (strncmp(kn_config_rows[i].key, key, length) == 0 && kn_config_rows[i].key[length] == '.')
            return 1;
    return 0;
}

/* What may stand directly in `section` ("" or "model."): names of keys and of sections, without doubles. */
static void list_names(KnStringList *names, KnArena *arena, const char *section)
{
    size_t length = strlen(section);
    if (!length)
        kn_string_list_add(names, "base");
    for (int i = 0; i < kn_config_row_count; i++) {
        if (!kn_starts_with(kn_config_rows[i].key, section))
            continue;
        const char *rest = kn_config_rows[i].key + length;
        const char *name = kn_arena_format(arena, "%.*s", (int)strcspn(rest, "."), rest);
        if (!names->count || strcmp(names->items[names->count - 1], name) != 0)
            kn_string_list_add(names, name);
    }
}

/* A row whose last word is `name`, in whatever section. */
static const KnConfigRow *find_by_last_word(const char *name)
{
    for (int i = 0; i < kn_config_row_count; i++)
        if (strcmp(strrchr(kn_config_rows[i].key, '.') + 1, name) == 0)
            return &kn_config_rows[i];
    return NULL;
}

/* Names the nearest key of the same section; else a key of this very name elsewhere; else all that the section has. */
static int unknown_key(Loader *loader, const char *section, const char *name, const char *place)
{
    KnStringList names = {0};
    list_names(&names, loader->arena, section);
    const char *nearest = kn_nearest(name, (const char *const *)names.items, names.count);
    const char *last = strrchr(name, '.') ? strrchr(name, '.') + 1 : name;
    const KnConfigRow *elsewhere = find_by_last_word(last);
    KnText advice = {0};
    if (find_row(name))
        kn_text_append(&advice, "write it inside its section, without a dot");
    else if (nearest)
        kn_text_appendf(&advice, "did you mean %s%s?", section, nearest);
    else if (elsewhere)
        kn_text_appendf(&advice, "did you mean %s?", elsewhere->key);
    else
        for (int i = 0; i < names.count; i++)
            kn_text_appendf(&advice, "%s %s",
                            i            ? ","
                            : section[0] ? "the keys here are"
                                         : "the sections are",
                            names.items[i]);
    int code = kn_fail(KN_EINPUT, "%sunknown key %s%s; %s", place, section, name, advice.bytes);
    kn_string_list_clear(&names);
    kn_text_clear(&advice);
    return code;
}

static int set_row(Loader *loader, const KnConfigRow *row, const KnYamlNode *value, const char *place)
{
    KN_TRY(set_value(loader->config, row, value, place));
    loader->places[row - kn_config_rows] = place;
    return KN_OK;
}

static int walk(Loader *loader, const char *path, const KnYamlNode *mapping, const char *section)
{
    for (int i = 0; i < mapping->count; i++) {
        const KnYamlNode *name = mapping->keys[i], *value = mapping->values[i];
        const char *place = kn_arena_format(loader->arena, "%s:%d:%d: ", path, name->line, name->column);
        const char *key = kn_arena_format(loader->arena, "%s%s", section, name->text);
        const KnConfigRow *row = strchr(name->text, '.') ? NULL : find_row(key);
        if (!section[0] && strcmp(name->text, "base") == 0)
            continue; /* read before everything else */
        if (row) {
            KN_TRY(set_row(loader, row, value, place));
        } else if (!strchr(name->text, '.') && is_section(key)) {
            int empty = value->kind == KN_YAML_SCALAR && !value->quoted && !value->text[0];
            if (value->kind != KN_YAML_MAPPING && !empty)
                return kn_fail(KN_EINPUT, "%s%s is a section: write its keys below it, indented", place, key);
            if (!empty)
                KN_TRY(walk(loader, path, value, kn_arena_format(loader->arena, "%s.", key)));
        } else {
            return unknown_key(loader, section, name->text, place);
        }
    }
    return KN_OK;
}

/* ---- files ---- */

static int load_file(Loader *loader, const char *path);

/* Reads the file that `base` names, relative to `path`, unless it is one of those being read. */
static int load_base(Loader *loader, const char *path, const KnYamlNode *key, const KnYamlNode *value)
{
    const char *place = kn_arena_format(loader->arena, "%s:%d:%d", path, key->line, key->column);
    if (value->kind != KN_YAML_SCALAR || !value->text[0])
        return kn_fail(KN_EINPUT, "%s: base must be the name of one file", place);
    char *folder = kn_path_folder(path), *base = kn_path_join(folder, value->text), *real = realpath(base, NULL);
    int code = KN_OK;
    for (int i = 0; real && i < loader->depth; i++)
        if (strcmp(real, loader->chain[i]) == 0)
            code = kn_fail(KN_EINPUT, "%s: base files form a circle: %s starts from this one", place, base);
    if (code == KN_OK && loader->depth == MAX_BASES)
        code = kn_fail(KN_EINPUT, "%s: more than %d base files below each other", place, MAX_BASES);
    if (code == KN_OK) {
        code = load_file(loader, base);
        if (code == KN_EIO)
            kn_fail_prefix(code, "%s", place);
    }
    free(real);
    free(base);
    free(folder);
    return code;
}

static int check_is_mapping(const KnYamlNode *root, const char *path)
{
    if (root->kind != KN_YAML_MAPPING)
        return kn_fail(KN_EINPUT, "%s:%d:%d: a configuration is made of sections such as `model:`, this is not", path,
                       root->line, root->column);
    return KN_OK;
}

static int load_file(Loader *loader, const char *path)
{
    KnYamlNode *root;
    KN_TRY(kn_yaml_read(loader->arena, path, &root));
    KN_TRY(check_is_mapping(root, path));
    char *real = realpath(path, NULL);
    if (!real)
        return kn_fail(KN_EIO, "cannot open %s: %s", path, strerror(errno));
    loader->chain[loader->depth++] = real;
    int code = KN_OK;
    for (int i = 0; i < root->count && code == KN_OK; i++)
        if (strcmp(root->keys[i]->text, "base") == 0)
            code = load_base(loader, path, root->keys[i], root->values[i]);
    loader->depth--;
    free(real);
    KN_TRY(code);
    return walk(loader, path, root, "");
}

/* ---- --set ---- */

static int apply_override(Loader *loader, const char *override)
{
    const char *equals = strchr(override, '=');
    if (!equals)
        return kn_fail(KN_EINPUT, "--set %s: write it as key=value", override);
    const char *key = kn_arena_format(loader->arena, "%.*s", (int)(equals - override), override);
    const char *place = kn_arena_format(loader->arena, "--set %s: ", override);
    const KnConfigRow *row = find_row(key);
    if (!row && strcmp(key, "base") == 0)
        return kn_fail(KN_EINPUT, "%sbase can only stand at the top of the file", place);
    if (!row && is_section(key))
        return kn_fail(KN_EINPUT, "%s%s is a section: name one of its keys, as in %s.KEY=VALUE", place, key, key);
    if (!row) {
        const char *dot = strrchr(key, '.');
        const char *section = dot ? kn_arena_format(loader->arena, "%.*s", (int)(dot + 1 - key), key) : "";
        int known = dot && is_section(kn_arena_format(loader->arena, "%.*s", (int)(dot - key), key));
        return unknown_key(loader, known ? section : "", known ? dot + 1 : key, place);
    }
    KnYamlNode *value;
    if (!equals[1])
        return kn_fail(KN_EINPUT, "%s%s has no value", place, key);
    const char *name = kn_arena_format(loader->arena, "--set %s", override);
    KN_TRY(kn_yaml_parse(loader->arena, equals + 1, strlen(equals + 1), name, &value));
    return set_row(loader, row, value, place);
}

/* ---- checks over several keys ---- */

/* Every number in its row's range: for values that did not come through a file. */
static int check_ranges(const Loader *loader)
{
    for (int i = 0; i < kn_config_row_count; i++) {
        const KnConfigRow *row = &kn_config_rows[i];
        const void *field = kn_config_field(loader->config, row);
        int values = row->type == KN_CONFIG_TRIPLE ? 3 : row->type == KN_CONFIG_INT || row->type == KN_CONFIG_FLOAT;
        for (int j = 0; j < values; j++) {
            double number = row->type == KN_CONFIG_FLOAT ? *(const double *)field : (double)((const int64_t *)field)[j];
            char description[128];
            if (isfinite(number) && in_range(row, number))
                continue;
            kn_config_describe(row, description, sizeof description);
            return kn_fail(KN_EINPUT, "%s must be %s, not %.15g", row->key, description, number);
        }
    }
    return KN_OK;
}

/* Where the first of these keys that was set was set. */
static const char *place_of(const Loader *loader, const char *key, const char *other)
{
    const char *place = loader->places[find_row(key) - kn_config_rows];
    if (!place)
        place = loader->places[find_row(other) - kn_config_rows];
    return place ? place : "";
}

static int check_model(const Loader *loader)
{
    const KnModelConfig *model = &loader->config->model;
    const KnTextConfig *text = &loader->config->text;
    long long hidden = model->hidden, heads = model->heads, dim = model->text_dim, text_heads = text->heads;
    if (hidden % heads)
        return kn_fail(KN_EINPUT, "%smodel.heads (%lld) does not divide model.hidden (%lld): change one of them",
                       place_of(loader, "model.heads", "model.hidden"), heads, hidden);
    if (hidden / heads % 2)
        return kn_fail(KN_EINPUT,
                       "%smodel.hidden / model.heads, the head size, is %lld / %lld = %lld, and rotary embedding needs "
                       "it even: change one of them",
                       place_of(loader, "model.heads", "model.hidden"), hidden, heads, hidden / heads);
    if (model->freq_dim % 2)
        return kn_fail(KN_EINPUT, "%smodel.freq_dim is %lld and must be even: half sines, half cosines",
                       place_of(loader, "model.freq_dim", "model.freq_dim"), (long long)model->freq_dim);
    if (text->kind == KN_TEXT_TRAINED && text->layers > 0 && dim % text_heads)
        return kn_fail(KN_EINPUT, "%smodel.text.heads (%lld) does not divide model.text_dim (%lld): change one of them",
                       place_of(loader, "model.text.heads", "model.text_dim"), text_heads, dim);
    return KN_OK;
}

static int check_data(const Loader *loader)
{
    const KnFlowConfig *flow = &loader->config->flow;
    const KnDataConfig *data = &loader->config->data;
    if (flow->given_none + flow->given_first + flow->given_first_frames + flow->given_both_ends + flow->given_random ==
        0)
        return kn_fail(KN_EINPUT, "%sall weights of flow.given are 0: make at least one larger",
                       place_of(loader, "flow.given.none", "flow.given.first"));
    if (data->text_tokens && data->text_tokens < loader->config->text.max_tokens)
        return kn_fail(
            KN_EINPUT,
            "%sdata.text_tokens (%lld) holds not even one caption of model.text.max_tokens (%lld): raise it, "
            "or set it to 0",
            place_of(loader, "data.text_tokens", "model.text.max_tokens"), (long long)data->text_tokens,
            (long long)loader->config->text.max_tokens);
    return KN_OK;
}

/* The size of sample clips matters to training only where it draws some. */
static int check_sample(const Loader *loader)
{
    static const char *const keys[3] = {"sample.frames", "sample.height", "sample.width"};
    const KnConfig *config = loader->config;
    const int64_t size[3] = {config->sample.frames, config->sample.height, config->sample.width};
    for (int i = 0; i < 3 && config->train.sample_every > 0; i++)
        if (size[i] % config->model.patch[i])
            return kn_fail(KN_EINPUT, "%s%s is %lld, not a multiple of the %lld in model.patch: set it to %lld",
                           place_of(loader, keys[i], "model.patch"), keys[i], (long long)size[i],
                           (long long)config->model.patch[i],
                           (long long)((size[i] / config->model.patch[i] + 1) * config->model.patch[i]));
    return KN_OK;
}

/* ---- the public functions ---- */

void kn_config_init(KnConfig *config)
{
    *config = (KnConfig){0};
    KnArena *arena = kn_arena_create();
    KN_ASSERT(kn_config_row_count <= MAX_ROWS);
    for (int i = 0; i < kn_config_row_count; i++) {
        const KnConfigRow *row = &kn_config_rows[i];
        KnYamlNode *value;
        KN_ASSERT(kn_yaml_parse(arena, row->default_text, strlen(row->default_text), row->key, &value) == KN_OK);
        KN_ASSERT(set_value(config, row, value, "default: ") == KN_OK);
    }
    kn_arena_destroy(arena);
}

void kn_config_clear(KnConfig *config)
{
    for (int i = 0; i < kn_config_row_count; i++) {
        void *field = kn_config_field(config, &kn_config_rows[i]);
        if (kn_config_rows[i].type == KN_CONFIG_STRING)
            free(*(char **)field);
        else if (kn_config_rows[i].type == KN_CONFIG_STRINGS)
            kn_string_list_clear(field);
    }
    *config = (KnConfig){0};
}

static int check(const Loader *loader)
{
    KN_TRY(check_ranges(loader));
    KN_TRY(check_model(loader));
    KN_TRY(check_data(loader));
    return check_sample(loader);
}

int kn_config_load(KnConfig *config, const char *path, const char *const *overrides, int override_count)
{
    Loader loader = {.config = config, .arena = kn_arena_create()};
    int code = path ? load_file(&loader, path) : KN_OK;
    for (int i = 0; i < override_count && code == KN_OK; i++)
        code = apply_override(&loader, overrides[i]);
    if (code == KN_OK)
        code = check(&loader);
    kn_arena_destroy(loader.arena);
    return code;
}

int kn_config_parse(KnConfig *config, const char *yaml, const char *name)
{
    Loader loader = {.config = config, .arena = kn_arena_create()};
    KnYamlNode *root = NULL;
    int code = kn_yaml_parse(loader.arena, yaml, strlen(yaml), name, &root);
    if (code == KN_OK)
        code = check_is_mapping(root, name);
    if (code == KN_OK)
        code = walk(&loader, name, root, "");
    if (code == KN_OK)
        code = check(&loader);
    kn_arena_destroy(loader.arena);
    return code;
}

int kn_config_check(const KnConfig *config)
{
    Loader loader = {.config = (KnConfig *)(uintptr_t)config};
    return check(&loader);
}
