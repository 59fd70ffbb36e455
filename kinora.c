/* The front door: the table of commands, and the only place where the program ends.
 *
 * `kinora COMMAND ...` runs a row of the table with the arguments from the command's name on. A command returns a KN_*
 * code with its sentence recorded; here that becomes one line on standard error and an exit status:
 * 0 done, 1 failed, 2 asked for something impossible (an option, a key, a value), 3 stopped by a signal after saving.
 */
#include "core/base/args.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/cpu/backend.h"
#include "core/cpu/isa.h"
#include "data/commands.h"
#include "dist/commands.h"
#include "infer/commands.h"
#include "train/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 3 };

static int train(int argc, char **argv)
{
    return kn_command_train(argc, argv, kn_draw_samples);
}

static const KnCommand commands[] = {
    {"synth", "write captioned clips of a procedural world as video files", kn_command_synth},
    {"prep", "turn video files and folders into shards, alone or under mpirun", kn_command_prep},
    {"train", "train the model that a configuration describes, alone or under mpirun", train},
    {"generate", "make videos of prompts and of given frames, alone or under mpirun", kn_command_generate},
    {"eval", "generate captions of a world with ground truth and measure what came out", kn_command_eval},
    {"import", "take over the transformer of a diffusers model", kn_command_import},
    {"export", "write a model as a folder that diffusers loads", kn_command_export},
    {"inspect", "explain a shard, data set, checkpoint, run, model, safetensors file or video", kn_command_inspect},
    {"checkpoint", "verify, list, consolidate or prune the checkpoints of a run", kn_command_checkpoint},
    {"forward", "one pass of a model on given tensors, to compare with other implementations", kn_command_forward},
    {"plan", "what a training step will need and take, on a device and a layout, or on all", kn_command_plan},
    {"bench", "time training or denoising steps on this machine", kn_command_bench},
    {"config", "explain every configuration key, or print what a file resolves to", kn_command_config},
};
enum { COMMAND_COUNT = sizeof commands / sizeof *commands };

static void print_help(FILE *out)
{
    fprintf(out,
            "kinora %s - trains and runs video diffusion transformers, from raw video files to MP4s\n\n"
            "Usage:\n  kinora COMMAND [arguments]\n  kinora COMMAND --help\n  kinora --version\n\nCommands:\n",
            KINORA_VERSION);
    for (int i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nA failed command prints one line, `kinora: error: ...`, and ends with\n"
                 "  1 failed   2 impossible option, key or value   3 stopped by a signal after saving\n");
}

static void print_version(void)
{
    printf("kinora %s\n", KINORA_VERSION);
    printf("backend  cpu, %d threads, instruction sets up to %s\n", kn_cpu_threads(), kn_cpu_isa_name(kn_cpu_isa()));
}

static int fail_unknown(const char *name)
{
    const char *names[COMMAND_COUNT];
    for (int i = 0; i < COMMAND_COUNT; i++)
        names[i] = commands[i].name;
    const char *nearest = kn_nearest(name, names, COMMAND_COUNT);
    if (nearest)
        return kn_fail(KN_EINPUT, "unknown command \"%s\"; did you mean %s?", name, nearest);
    return kn_fail(KN_EINPUT, "unknown command \"%s\"; `kinora --help` lists them all", name);
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return kn_fail(KN_EINPUT, "no command given");
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return KN_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        print_version();
        return KN_OK;
    }
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    return fail_unknown(argv[1]);
}

/* Ranks read the same command line and find the same mistake in it: one of them is enough to say so. All other
 * failures of several ranks are told once by kn_comm_close, which does not return. */
static int is_first_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i]))
            return atoi(getenv(names[i])) == 0;
    return 1;
}

static int exit_status(int code)
{
    switch (code) {
    case KN_OK:
    case KN_END:
        return EXIT_DONE;
    case KN_EINPUT:
        return EXIT_USAGE;
    case KN_EINTERRUPTED:
        return EXIT_INTERRUPTED;
    default:
        return EXIT_FAILED;
    }
}

/* Help or results that the disk or a closed pipe did not take are a failure too. */
static int flush_output(int code)
{
    if ((fflush(stdout) != 0 || ferror(stdout)) && (code == KN_OK || code == KN_END))
        return kn_fail(KN_EIO, "cannot write to standard output");
    return code;
}

int main(int argc, char **argv)
{
    int code = flush_output(run(argc, argv));
    if (code == KN_EINTERRUPTED)
        kn_log("%s", kn_error_message());
    else if (exit_status(code) != EXIT_DONE && (code != KN_EINPUT || is_first_rank()))
        kn_log_error("%s", kn_error_message());
    else if (exit_status(code) != EXIT_DONE)
        sleep(1); /* the launcher ends all ranks once one has ended: rank 0 must have spoken by then */
    return exit_status(code);
}
