/* `kinora export` and `kinora import`: models to and from the published layout of a diffusers transformer. Opening a
 * model compares every tensor with the architecture; what is written is a folder that exists whole or not at all. */
#include "infer/commands.h"

#include "core/base/args.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/comm.h"
#include "dist/model_file.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Options {
    const char *model, *out;
    int json;
} Options;

#define OUT_ROW                                                                                                        \
    {                                                                                                                  \
        .name = "out", .kind = KN_ARG_STRING, .offset = offsetof(Options, out), .metavariable = "DIR",                 \
        .meaning = "folder to write; it must not exist, or be empty", .required = 1                                    \
    }
#define JSON_ROW                                                                                                       \
    {                                                                                                                  \
        .name = "json", .kind = KN_ARG_FLAG, .offset = offsetof(Options, json),                                        \
        .meaning = "print one JSON object about what was written"                                                      \
    }

static const KnArg export_rows[] = {
    {.name = "model",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, model),
     .metavariable = "RUN",
     .meaning = "run folder (averaged weights of its newest checkpoint), checkpoint, or model folder",
     .required = 1},
    OUT_ROW,
    JSON_ROW,
};

static const KnArgSpec export_spec = {
    .command = "export",
    .usage = "--model RUN --out DIR",
    .description =
        "Writes a model as a folder that `diffusers` loads by WanTransformer3DModel.from_pretrained(DIR):\n"
        "config.json and float32 safetensors. A text encoder trained with it goes to DIR/text_encoder, the\n"
        "run's configuration to DIR/kinora.yaml; diffusers overlooks both, and kinora opens the folder like\n"
        "the run.",
    .examples = "kinora export --model runs/first --out models/first",
    .args = export_rows,
    .arg_count = sizeof export_rows / sizeof export_rows[0],
};

static const KnArg import_rows[] = {OUT_ROW, JSON_ROW};

static const KnArgSpec import_spec = {
    .command = "import",
    .usage = "DIR --out DIR",
    .description =
        "Reads the transformer of a `diffusers` model (a folder with config.json and safetensors in one file\n"
        "or several with an index, or the folder above its transformer/), checks that names and shapes are\n"
        "exactly those of the architecture, and writes it as `kinora export` does.",
    .examples = "kinora import Wan2.1-T2V-1.3B-Diffusers --out models/wan",
    .args = import_rows,
    .arg_count = sizeof import_rows / sizeof import_rows[0],
    .least_positionals = 1,
    .most_positionals = 1,
};

/* ---- what both do ---- */

static void report(const KnModelFile *file, const Options *options)
{
    const KnModelConfig *c = &file->model.config;
    int64_t count = kn_parameter_count(&file->model.parameters);
    if (!options->json) {
        printf("%s: %lld layer%s of %lld, %.2f M parameters, hash %.12s\n", options->out, (long long)c->layers,
               c->layers == 1 ? "" : "s", (long long)c->hidden, (double)count * 1e-6, file->hash);
        return;
    }
    json_t *from = json_string(file->path), *out = json_string(options->out);
    json_t *root =
        json_pack("{so so ss sI si}", "from", from ? from : json_null(), "out", out ? out : json_null(), "model_hash",
                  file->hash, "parameters", (json_int_t)count, "tensors", file->model.parameters.count);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    json_decref(root);
    KN_ASSERT(text);
    printf("%s\n", text);
    free(text);
}

/* An existing folder is found out before the weights are read. */
static int check_out(const char *out)
{
    KnStringList names = {0};
    int empty = 1;
    if (!kn_file_exists(out))
        return KN_OK;
    if (!kn_is_directory(out))
        return kn_fail(KN_EINPUT, "%s is there already and no folder: choose another --out", out);
    KN_TRY(kn_list_directory(out, &names));
    empty = names.count == 0;
    kn_string_list_clear(&names);
    return empty ? KN_OK : kn_fail(KN_EINPUT, "%s is not empty: choose another --out", out);
}

static int run_command(const KnArgSpec *spec, int argc, char **argv,
                       int (*run)(const Options *options, const char *folder, KnModelFile *file, KnComm *comm))
{
    Options options = {0};
    KnArgList folders = {0};
    KnModelFile file = {0};
    KnComm *comm = NULL;
    KN_TRY(kn_args_parse(spec, argc, argv, &options, spec->most_positionals ? &folders : NULL));
    int code = kn_comm_open(&comm);
    if (code == KN_OK) {
        if (options.json)
            kn_log_set_quiet(1);
        code = comm->ranks > 1 ? kn_fail(KN_EINPUT, "%s works in one process: start it without mpirun", spec->command)
                               : check_out(options.out);
        if (code == KN_OK)
            code = run(&options, folders.count ? folders.items[0] : NULL, &file, comm);
        if (code == KN_OK)
            code = kn_model_export(&file, options.out);
        if (code == KN_OK)
            report(&file, &options);
        kn_model_close(&file);
        code = kn_comm_close(comm, code);
    }
    kn_args_clear(spec, &options, spec->most_positionals ? &folders : NULL);
    return code;
}

/* ---- export ---- */

static int open_for_export(const Options *options, const char *folder, KnModelFile *file, KnComm *comm)
{
    (void)folder;
    return kn_model_open(file, comm, options->model);
}

int kn_command_export(int argc, char **argv)
{
    return run_command(&export_spec, argc, argv, open_for_export);
}

/* ---- import ---- */

static int open_for_import(const Options *options, const char *folder, KnModelFile *file, KnComm *comm)
{
    (void)options;
    char *inner = kn_path_join(folder, "transformer"), *inner_config = kn_path_join(inner, "config.json");
    char *own_config = kn_path_join(folder, "config.json");
    int code;
    if (!kn_file_exists(own_config) && kn_file_exists(inner_config))
        code = kn_model_open(file, comm, inner);
    else if (!kn_file_exists(own_config) && kn_file_exists(folder))
        code = kn_fail(KN_EINPUT,
                       "%s has neither a config.json nor a transformer/config.json: it is no model of "
                       "diffusers",
                       folder);
    else
        code = kn_model_open(file, comm, folder);
    free(inner);
    free(inner_config);
    free(own_config);
    return code;
}

int kn_command_import(int argc, char **argv)
{
    return run_command(&import_spec, argc, argv, open_for_import);
}
