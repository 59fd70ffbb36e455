/* `kinora inspect PATH`: says what a path holds (infer/inspect.h). */
#include "infer/commands.h"

#include "core/base/args.h"
#include "core/base/error.h"
#include "infer/inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Options {
    int verify, json;
} Options;

static const KnArg rows[] = {
    {.name = "verify",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, verify),
     .meaning = "also check every hash, and read what has none; fails on the first damage"},
    {.name = "json", .kind = KN_ARG_FLAG, .offset = offsetof(Options, json), .meaning = "print one JSON object"},
};

static const KnArgSpec spec = {
    .command = "inspect",
    .usage = "PATH [--verify] [--json]",
    .description =
        "Explains a shard, data set, checkpoint, run folder, model folder, safetensors file, video or image\n"
        "(one made here with all that made it).",
    .examples = "kinora inspect runs/first\nkinora inspect data/shards --verify\nkinora inspect a.mp4 --json",
    .args = rows,
    .arg_count = sizeof rows / sizeof rows[0],
    .least_positionals = 1,
    .most_positionals = 1,
};

int kn_command_inspect(int argc, char **argv)
{
    Options options = {0};
    KnArgList paths = {0};
    char *text = NULL;
    KN_TRY(kn_args_parse(&spec, argc, argv, &options, &paths));
    int code = kn_inspect(paths.items[0], options.verify, options.json, &text);
    if (code == KN_OK)
        printf("%s%s", text, text[0] && text[strlen(text) - 1] == '\n' ? "" : "\n");
    free(text);
    kn_args_clear(&spec, &options, &paths);
    return code;
}
