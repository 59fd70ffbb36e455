/* Command-line options: a command is one table of rows, which parses, checks, fills a struct and prints --help.
 *
 *     typedef struct Options { const char *out; int64_t count; KnArgSize size; int json; } Options;
 *     static const KnArg rows[] = {
 *         {"out", KN_ARG_STRING, offsetof(Options, out), "DIR", NULL, "folder to write", .required = 1},
 *         {"count", KN_ARG_INT, offsetof(Options, count), "N", "100", "clips to write", .low = 1, .high = 1e9},
 *         {"size", KN_ARG_SIZE, offsetof(Options, size), "WxH", "32x32", "picture size in pixels"},
 *         {"json", KN_ARG_FLAG, offsetof(Options, json), NULL, NULL, "print one JSON object"},
 *     };
 *     static const KnArgSpec spec = {"synth", "WORLD --out DIR [options]", "Writes captioned clips.",
 *                                    "kinora synth moving-shapes --out videos --count 100", rows, 4, 1, 1};
 *     Options options = {0};
 *     KnArgList worlds = {0};
 *     KN_TRY(kn_args_parse(&spec, argc, argv, &options, &worlds));
 *
 * Understood: `--name value`, `--name=value`, `-h` and `--help` anywhere, `--` before what only looks like an option,
 * positionals among options. An option given twice counts as last given, a list option adds up. A value that starts
 * with `--` must be written `--name=value`. Strings point into argv. */
#ifndef KN_BASE_ARGS_H
#define KN_BASE_ARGS_H

#include <stddef.h>
#include <stdint.h>

typedef enum KnArgKind {
    KN_ARG_FLAG,    /* int: set to 1 */
    KN_ARG_STRING,  /* const char * */
    KN_ARG_CHOICE,  /* const char *: one of the words of the metavariable, "f32|bf16" */
    KN_ARG_INT,     /* int64_t */
    KN_ARG_FLOAT,   /* double, finite */
    KN_ARG_SIZE,    /* KnArgSize: "WxH", both at least 1 */
    KN_ARG_INTS,    /* KnArgInts: "2,8,8" */
    KN_ARG_STRINGS, /* KnArgList: the option may be repeated */
} KnArgKind;

enum { KN_ARG_INTS_MAX = 16 };

typedef struct KnArgSize {
    int64_t width, height;
} KnArgSize;

typedef struct KnArgInts {
    int count;
    int64_t values[KN_ARG_INTS_MAX];
} KnArgInts;

typedef struct KnArgList {
    int count;
    const char **items; /* pointers into argv; release them with kn_args_clear */
} KnArgList;

typedef struct KnArg {
    const char *name; /* without the dashes */
    KnArgKind kind;
    size_t offset;            /* of the field in the command's options struct */
    const char *metavariable; /* what --help calls the value; the choices of a KN_ARG_CHOICE */
    const char *fallback;     /* the value, as one would type it, when the option is absent; NULL leaves the field */
    const char *meaning;      /* for --help, one line or more; no full stop */
    double low, high;         /* bounds of numbers (of each number of a size or list); checked when low < high */
    int required;
} KnArg;

typedef struct KnArgSpec {
    const char *command;     /* "synth" */
    const char *usage;       /* what follows `kinora COMMAND`; several forms on several lines */
    const char *description; /* a sentence or a few lines */
    const char *examples;    /* whole command lines, one a line; NULL = none */
    const KnArg *args;
    int arg_count;
    int least_positionals, most_positionals; /* most = -1: any number */
} KnArgSpec;

/* Fills `options` (the fallback of each absent option included) and `positionals` (NULL when the command has none).
 * argv[0] is the command's name. Returns KN_OK; KN_END when --help was asked and printed (pass it up: the program ends
 * with 0); KN_EINPUT with a sentence that names the option, the value and, for a misspelt option, the nearest one. On
 * failure no list of `options` or `positionals` remains allocated. */
int kn_args_parse(const KnArgSpec *spec, int argc, char **argv, void *options, KnArgList *positionals);

/* Frees every KN_ARG_STRINGS field of `options` and `positionals` (NULL is fine). */
void kn_args_clear(const KnArgSpec *spec, void *options, KnArgList *positionals);

/* The text of --help; free() it. */
char *kn_args_help(const KnArgSpec *spec);

/* A command of the program. `run` returns KN_OK, KN_END (help was printed) or another KN_* code with its sentence
 * recorded; argv[0] is the command's name. */
typedef struct KnCommand {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} KnCommand;

#endif
