/* The configuration written out: as YAML that reads back to the same values, as help, and as a hash. */
#include "core/base/config_table.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "core/base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LEVELS = 4 };

/* A double-quoted YAML scalar. */
static void append_quoted(KnText *out, const char *text)
{
    kn_text_append(out, "\"");
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            kn_text_appendf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            kn_text_appendf(out, "\\x%02X", c);
        else
            kn_text_appendn(out, text, 1);
    }
    kn_text_append(out, "\"");
}

const char *kn_precision_name(KnPrecision precision)
{
    static const char *const names[] = {
        [KN_PRECISION_F32] = "f32", [KN_PRECISION_BF16] = "bf16", [KN_PRECISION_FP8] = "fp8"};
    return names[precision];
}

/* The shortest of the usual precisions that reads back to the same bits. */
static void append_double(KnText *out, double value)
{
    char text[32];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    kn_text_append(out, text);
}

static void append_value(KnText *out, const KnConfig *config, const KnConfigRow *row)
{
    const void *field = kn_config_field(config, row);
    const KnStringList *list = field;
    const int64_t *integers = field;
    int length;
    switch (row->type) {
    case KN_CONFIG_INT:
        if (row->zero_word && *integers == 0)
            kn_text_append(out, row->zero_word);
        else
            kn_text_appendf(out, "%lld", (long long)*integers);
        break;
    case KN_CONFIG_RECOMPUTE:
        if (*integers > 0)
            kn_text_appendf(out, "%lldB", (long long)*integers);
        else
            kn_text_append(out, *integers == KN_RECOMPUTE_NONE ? "none" : "block");
        break;
    case KN_CONFIG_FLOAT:
        append_double(out, *(const double *)field);
        break;
    case KN_CONFIG_BOOL:
        kn_text_append(out, *(const int *)field ? "true" : "false");
        break;
    case KN_CONFIG_CHOICE: {
        const char *word = kn_config_choice(row->choices, *(const int *)field, &length);
        kn_text_appendn(out, word, (size_t)length);
        break;
    }
    case KN_CONFIG_STRING: {
        const char *text = *(char *const *)field ? *(char *const *)field : "";
        if (row->choices)
            kn_text_append(out, text);
        else
            append_quoted(out, text);
        break;
    }
    case KN_CONFIG_TRIPLE:
        kn_text_appendf(out, "[%lld, %lld, %lld]", (long long)integers[0], (long long)integers[1],
                        (long long)integers[2]);
        break;
    case KN_CONFIG_STRINGS:
        kn_text_append(out, "[");
        for (int i = 0; i < list->count; i++) {
            kn_text_append(out, i ? ", " : "");
            append_quoted(out, list->items[i]);
        }
        kn_text_append(out, "]");
        break;
    }
}

/* The length of the longest common prefix of two dotted keys that ends at a dot. */
static size_t common_sections(const char *a, const char *b)
{
    size_t common = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '.')
            common = i + 1;
    return common;
}

static void append_yaml(KnText *out, const KnConfig *config, int with_all)
{
    const char *previous = "";
    for (int i = 0; i < kn_config_row_count; i++) {
        const KnConfigRow *row = &kn_config_rows[i];
        if (!with_all && row->no_result)
            continue;
        const char *name = row->key + common_sections(previous, row->key);
        int level = 0;
        for (const char *c = row->key; c < name; c++)
            level += *c == '.';
        for (const char *dot; (dot = strchr(name, '.')); name = dot + 1, level++)
            kn_text_appendf(out, "%*s%.*s:\n", 2 * level, "", (int)(dot - name), name);
        kn_text_appendf(out, "%*s%s: ", 2 * level, "", name);
        append_value(out, config, row);
        kn_text_append(out, "\n");
        previous = row->key;
    }
}

char *kn_config_to_yaml(const KnConfig *config)
{
    KnText out = {0};
    append_yaml(&out, config, 1);
    return kn_text_take(&out);
}

void kn_config_hash(const KnConfig *config, char hex[65])
{
    KnText out = {0};
    append_yaml(&out, config, 0);
    kn_sha256_hex(out.bytes, out.length, hex);
    kn_text_clear(&out);
}

/* Of the first key, of all or of those by which the state is read, whose values differ: "KEY is " VALUE `between` VALUE
 * `after`. NULL where none does. */
static char *describe_difference(const KnConfig *config, const KnConfig *other, int of_state, const char *between,
                                 const char *after)
{
    KnText value = {0}, other_value = {0};
    char *difference = NULL;
    for (int i = 0; i < kn_config_row_count && !difference; i++) {
        const KnConfigRow *row = &kn_config_rows[i];
        if (of_state && !row->reads_state)
            continue;
        kn_text_clear(&value);
        kn_text_clear(&other_value);
        append_value(&value, config, row);
        append_value(&other_value, other, row);
        if (strcmp(value.bytes, other_value.bytes))
            difference = kn_format("%s is %s%s%s%s", row->key, value.bytes, between, other_value.bytes, after);
    }
    kn_text_clear(&value);
    kn_text_clear(&other_value);
    return difference;
}

char *kn_config_misreads(const KnConfig *config, const KnConfig *saved)
{
    return describe_difference(config, saved, 1, ", but it was ", "");
}

char *kn_config_differs(const KnConfig *config, const KnConfig *other)
{
    return describe_difference(config, other, 0, " here and ", " there");
}

char *kn_config_help(void)
{
    static const char *const sections[][2] = {
        {"run.", "the run"},
        {"model.", "the transformer and its text encoder"},
        {"data.", "what it learns from"},
        {"flow.", "the objective: rectified flow, and which patches are given"},
        {"optimizer.", "how it learns"},
        {"parallel.", "how ranks share the work"},
        {"train.", "the course of training"},
        {"sample.", "videos drawn during training, and the defaults of `kinora generate`"},
    };
    KnText out = {0};
    kn_text_append(&out, "One YAML file describes a run; every key has a default. `base: FILE` at its top starts from "
                         "another file,\nrelative to this one; `--set key=value` overrides.\n");
    for (size_t s = 0; s < sizeof sections / sizeof *sections; s++) {
        kn_text_appendf(&out, "\n%.*s: %s\n", (int)strlen(sections[s][0]) - 1, sections[s][0], sections[s][1]);
        for (int i = 0; i < kn_config_row_count; i++) {
            const KnConfigRow *row = &kn_config_rows[i];
            char description[128];
            if (!kn_starts_with(row->key, sections[s][0]))
                continue;
            kn_config_describe(row, description, sizeof description);
            kn_text_appendf(&out, "  %-30s %-13s %s\n  %-30s %-13s (%s)\n", row->key, row->default_text, row->meaning,
                            "", "", description);
        }
    }
    return kn_text_take(&out);
}
