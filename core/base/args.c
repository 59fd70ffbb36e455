/* Command-line options from a table of rows: the parser, its error sentences and --help.
 *
 * One function per question: which row does this word name, what value does it carry, does the value fit the row.
 * Fallbacks go through the same parser as typed values, so that a default shown by --help is the default used.
 * Leans on the text helpers for the nearest name. */
#include "core/base/args.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_WIDTH = 100, HELP_COLUMN = 30 };

static void *field_of(const KnArg *arg, void *options)
{
    return (char *)options + arg->offset;
}

static void list_add(KnArgList *list, const char *item)
{
    list->items = kn_realloc(list->items, (size_t)(list->count + 1) * sizeof *list->items);
    list->items[list->count++] = item;
}

static void list_clear(KnArgList *list)
{
    free(list->items);
    *list = (KnArgList){0};
}

static int fail_value(const KnArg *arg, const char *value, const char *wanted)
{
    return kn_fail(KN_EINPUT, "--%s: \"%s\" is not %s", arg->name, value, wanted);
}

static int check_bounds(const KnArg *arg, const char *value, double number)
{
    if (arg->low >= arg->high || (number >= arg->low && number <= arg->high))
        return KN_OK;
    if (number < arg->low)
        return kn_fail(KN_EINPUT, "--%s: %s is too small, the least is %.15g", arg->name, value, arg->low);
    return kn_fail(KN_EINPUT, "--%s: %s is too large, the most is %.15g", arg->name, value, arg->high);
}

/* A decimal integer at *text that ends where `end` allows; moves *text behind it. */
static int read_int(const char **text, int64_t *number)
{
    char *end;
    const char *digits = **text == '-' || **text == '+' ? *text + 1 : *text;
    if (*digits < '0' || *digits > '9')
        return 0;
    errno = 0;
    long long parsed = strtoll(*text, &end, 10);
    if (errno)
        return 0;
    *text = end;
    *number = parsed;
    return 1;
}

static int parse_int(const KnArg *arg, const char *value, int64_t *number)
{
    const char *rest = value;
    if (!read_int(&rest, number) || *rest)
        return fail_value(arg, value, "a whole number");
    return check_bounds(arg, value, (double)*number);
}

static int parse_float(const KnArg *arg, const char *value, double *number)
{
    char *end;
    *number = strtod(value, &end);
    if (end == value || *end || !isfinite(*number) || value[0] == ' ')
        return fail_value(arg, value, "a number");
    return check_bounds(arg, value, *number);
}

static int parse_size(const KnArg *arg, const char *value, KnArgSize *size)
{
    const char *rest = value;
    KnArgSize parsed;
    int whole = read_int(&rest, &parsed.width) && (*rest == 'x' || *rest == 'X') && *++rest &&
                read_int(&rest, &parsed.height) && !*rest;
    if (!whole || parsed.width < 1 || parsed.height < 1)
        return fail_value(arg, value, "a size such as 640x480 (width x height)");
    KN_TRY(check_bounds(arg, value, (double)parsed.width));
    KN_TRY(check_bounds(arg, value, (double)parsed.height));
    *size = parsed;
    return KN_OK;
}

static int parse_ints(const KnArg *arg, const char *value, KnArgInts *list)
{
    KnArgInts parsed = {0};
    for (const char *rest = value;; rest++) {
        if (parsed.count == KN_ARG_INTS_MAX)
            return kn_fail(KN_EINPUT, "--%s: more than %d numbers in \"%s\"", arg->name, KN_ARG_INTS_MAX, value);
        int64_t *number = &parsed.values[parsed.count++];
        if (!read_int(&rest, number) || (*rest && *rest != ','))
            return fail_value(arg, value, "a list of whole numbers such as 2,8,8");
        KN_TRY(check_bounds(arg, value, (double)*number));
        if (!*rest)
            break;
    }
    *list = parsed;
    return KN_OK;
}

static int parse_choice(const KnArg *arg, const char *value, const char **choice)
{
    size_t length = strlen(value);
    for (const char *word = arg->metavariable; *word;) {
        size_t bytes = strcspn(word, "|");
        if (bytes == length && !memcmp(word, value, length)) {
            *choice = value;
            return KN_OK;
        }
        word += bytes + (word[bytes] == '|');
    }
    return kn_fail(KN_EINPUT, "--%s: \"%s\" is not one of %s", arg->name, value, arg->metavariable);
}

static int set_value(const KnArg *arg, const char *value, void *options)
{
    void *field = field_of(arg, options);
    switch (arg->kind) {
    case KN_ARG_FLAG:
        *(int *)field = 1;
        return KN_OK;
    case KN_ARG_STRING:
        *(const char **)field = value;
        return KN_OK;
    case KN_ARG_STRINGS:
        list_add(field, value);
        return KN_OK;
    case KN_ARG_CHOICE:
        return parse_choice(arg, value, field);
    case KN_ARG_INT:
        return parse_int(arg, value, field);
    case KN_ARG_FLOAT:
        return parse_float(arg, value, field);
    case KN_ARG_SIZE:
        return parse_size(arg, value, field);
    case KN_ARG_INTS:
        return parse_ints(arg, value, field);
    }
    KN_ASSERT(!"a kind of option without a parser");
    return KN_OK;
}

static const KnArg *find_arg(const KnArgSpec *spec, const char *name, size_t length)
{
    for (int i = 0; i < spec->arg_count; i++)
        if (strlen(spec->args[i].name) == length && !memcmp(spec->args[i].name, name, length))
            return &spec->args[i];
    return NULL;
}

static int fail_unknown(const KnArgSpec *spec, const char *name, int length)
{
    const char **names = kn_alloc((size_t)(spec->arg_count + 1) * sizeof *names);
    for (int i = 0; i < spec->arg_count; i++)
        names[i] = spec->args[i].name;
    names[spec->arg_count] = "help";
    char *typed = kn_format("%.*s", length, name);
    const char *nearest = kn_nearest(typed, names, spec->arg_count + 1);
    if (nearest)
        kn_fail(KN_EINPUT, "%s: unknown option --%s; did you mean --%s?", spec->command, typed, nearest);
    else
        kn_fail(KN_EINPUT, "%s: unknown option --%s; `kinora %s --help` lists them all", spec->command, typed,
                spec->command);
    free(typed);
    free(names);
    return KN_EINPUT;
}

/* One option at argv[*i]; moves *i to the last word used and marks the row as given. */
static int parse_option(const KnArgSpec *spec, int argc, char **argv, int *i, void *options, unsigned char *given)
{
    const char *name = argv[*i] + 2, *value = strchr(name, '=');
    size_t length = value ? (size_t)(value - name) : strlen(name);
    const KnArg *arg = find_arg(spec, name, length);
    if (!arg)
        return fail_unknown(spec, name, (int)length);
    given[arg - spec->args] = 1;
    if (arg->kind == KN_ARG_FLAG) {
        if (value)
            return kn_fail(KN_EINPUT, "%s: --%s takes no value, but got \"%s\"", spec->command, arg->name, value + 1);
        return set_value(arg, NULL, options);
    }
    if (value)
        return set_value(arg, value + 1, options);
    if (*i + 1 >= argc || !strncmp(argv[*i + 1], "--", 2))
        return kn_fail(KN_EINPUT, "%s: --%s needs a value: --%s %s", spec->command, arg->name, arg->name,
                       arg->metavariable);
    return set_value(arg, argv[++*i], options);
}

static int parse_words(const KnArgSpec *spec, int argc, char **argv, void *options, KnArgList *positionals,
                       unsigned char *given)
{
    int options_ended = 0;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (options_ended || word[0] != '-' || !word[1]) {
            list_add(positionals, word);
        } else if (!strcmp(word, "--")) {
            options_ended = 1;
        } else if (word[1] == '-') {
            KN_TRY(parse_option(spec, argc, argv, &i, options, given));
        } else {
            return kn_fail(KN_EINPUT, "%s: unknown option %s; options are written --name", spec->command, word);
        }
    }
    return KN_OK;
}

static int check_complete(const KnArgSpec *spec, const KnArgList *positionals, const unsigned char *given)
{
    for (int i = 0; i < spec->arg_count; i++)
        if (spec->args[i].required && !given[i])
            return kn_fail(KN_EINPUT, "%s: --%s %s is missing; `kinora %s --help` shows examples", spec->command,
                           spec->args[i].name, spec->args[i].metavariable, spec->command);
    if (positionals->count < spec->least_positionals)
        return kn_fail(KN_EINPUT, "%s: too few arguments; usage: kinora %s %.*s", spec->command, spec->command,
                       (int)strcspn(spec->usage, "\n"), spec->usage);
    if (spec->most_positionals >= 0 && positionals->count > spec->most_positionals)
        return kn_fail(KN_EINPUT, "%s: unexpected argument \"%s\"; usage: kinora %s %.*s", spec->command,
                       positionals->items[spec->most_positionals], spec->command, (int)strcspn(spec->usage, "\n"),
                       spec->usage);
    return KN_OK;
}

/* Only rows the user left alone: a list's fallback must not add to what was typed. */
static int set_fallbacks(const KnArgSpec *spec, void *options, const unsigned char *given)
{
    for (int i = 0; i < spec->arg_count; i++)
        if (spec->args[i].fallback && !given[i])
            KN_TRY(set_value(&spec->args[i], spec->args[i].fallback, options));
    return KN_OK;
}

/* --help wins over every mistake elsewhere in the line. */
static int help_wanted(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return 1;
    return 0;
}

int kn_args_parse(const KnArgSpec *spec, int argc, char **argv, void *options, KnArgList *positionals)
{
    KnArgList none = {0};
    if (help_wanted(argc, argv)) {
        char *help = kn_args_help(spec);
        fputs(help, stdout);
        free(help);
        return KN_END;
    }
    KN_ASSERT(positionals || spec->most_positionals == 0);
    if (!positionals)
        positionals = &none;
    unsigned char *given = kn_alloc((size_t)spec->arg_count + 1);
    int code = parse_words(spec, argc, argv, options, positionals, given);
    if (code == KN_OK)
        code = check_complete(spec, positionals, given);
    if (code == KN_OK)
        code = set_fallbacks(spec, options, given);
    free(given);
    if (code != KN_OK)
        kn_args_clear(spec, options, positionals);
    return code;
}

void kn_args_clear(const KnArgSpec *spec, void *options, KnArgList *positionals)
{
    for (int i = 0; i < spec->arg_count; i++)
        if (spec->args[i].kind == KN_ARG_STRINGS)
            list_clear(field_of(&spec->args[i], options));
    if (positionals)
        list_clear(positionals);
}

/* Appends `words` from column `column` on, breaking lines at HELP_WIDTH; `at` is where the cursor stands now. */
static void append_wrapped(KnText *text, const char *words, size_t column, size_t at)
{
    int fresh = 1;
    while (*words) {
        size_t length = strcspn(words, " \n");
        if (!fresh && at + 1 + length > HELP_WIDTH) {
            kn_text_appendf(text, "\n%*s", (int)column, "");
            at = column;
            fresh = 1;
        }
        if (!fresh) {
            kn_text_append(text, " ");
            at++;
        }
        kn_text_appendn(text, words, length);
        at += length;
        fresh = 0;
        words += length;
        words += strspn(words, " \n");
    }
    kn_text_append(text, "\n");
}

static void append_row(KnText *text, const KnArg *arg)
{
    char *left = arg->kind == KN_ARG_FLAG ? kn_format("  --%s", arg->name)
                                          : kn_format("  --%s %s", arg->name, arg->metavariable);
    const char *note = arg->required ? " (required)" : arg->kind == KN_ARG_STRINGS ? " (may be repeated)" : "";
    char *right = arg->fallback ? kn_format("%s%s [%s]", arg->meaning, note, arg->fallback)
                                : kn_format("%s%s", arg->meaning, note);
    size_t length = strlen(left);
    kn_text_append(text, left);
    if (length + 2 > HELP_COLUMN) {
        kn_text_append(text, "\n");
        length = 0;
    }
    kn_text_appendf(text, "%*s", (int)(HELP_COLUMN - length), "");
    append_wrapped(text, right, HELP_COLUMN, HELP_COLUMN);
    free(left);
    free(right);
}

/* Each line of `lines` after its own prefix. */
static void append_lines(KnText *text, const char *prefix, const char *lines)
{
    while (*lines) {
        size_t length = strcspn(lines, "\n");
        kn_text_appendf(text, "%s%.*s\n", prefix, (int)length, lines);
        lines += length + (lines[length] == '\n');
    }
}

char *kn_args_help(const KnArgSpec *spec)
{
    KnText text = {0};
    char *prefix = kn_format("  kinora %s ", spec->command);
    kn_text_append(&text, "Usage:\n");
    append_lines(&text, prefix, spec->usage);
    free(prefix);
    kn_text_append(&text, "\n");
    append_lines(&text, "", spec->description);
    kn_text_append(&text, "\nOptions (defaults in brackets):\n");
    for (int i = 0; i < spec->arg_count; i++)
        append_row(&text, &spec->args[i]);
    kn_text_appendf(&text, "  %-*sthis text\n", HELP_COLUMN - 2, "--help");
    if (spec->examples) {
        kn_text_append(&text, "\nExamples:\n");
        append_lines(&text, "  ", spec->examples);
    }
    return kn_text_take(&text);
}
