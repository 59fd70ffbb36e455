/* `kinora train CONFIG.yaml [--set key=value ...] [--resume]` */
#include "train/commands.h"

#include "core/base/args.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "dist/comm.h"
#include "dist/signals.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct Options {
    KnArgList set;
    int resume;
} Options;

static const KnArg rows[] = {
    {.name = "set",
     .kind = KN_ARG_STRINGS,
     .offset = offsetof(Options, set),
     .metavariable = "KEY=VALUE",
     .meaning = "override one key of the configuration; may be repeated"},
    {.name = "resume",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, resume),
     .meaning = "continue from the newest valid checkpoint of run.dir (from step 0 when there is none)"},
};

static const KnArgSpec spec = {
    .command = "train",
    .usage = "CONFIG.yaml [--set key=value ...] [--resume]",
    .description = "Trains the model that the configuration describes, alone or under mpirun. The run folder receives\n"
                   "checkpoints, metrics.jsonl, TensorBoard events, sample clips and the loss curve. `kinora config\n"
                   "--help` lists every key. SIGTERM, SIGUSR1 or Ctrl-C save a checkpoint and end with exit code 3.",
    .examples = "kinora train configs/demo.yaml --set run.dir=runs/first\n"
                "kinora train configs/demo.yaml --set run.dir=runs/first --resume\n"
                "mpirun -n 2 kinora train configs/demo.yaml --set run.dir=runs/two --set train.packs=2",
    .args = rows,
    .arg_count = sizeof rows / sizeof rows[0],
    .least_positionals = 1,
    .most_positionals = 1,
};

/* Each rank reads the files for itself, on another host perhaps an older copy: unnoticed, it would train something else
 * with them. */
static int compare_with_first(const KnConfig *config, KnComm *comm)
{
    char *yaml = kn_config_to_yaml(config), *differs = NULL;
    int64_t size = (int64_t)strlen(yaml) + 1;
    KnConfig first;
    kn_config_init(&first);
    int code = comm->table->broadcast(comm, &size, sizeof size, 0, "size of the configuration");
    yaml = kn_realloc(yaml, (size_t)size);
    if (code == KN_OK)
        code = comm->table->broadcast(comm, yaml, (size_t)size, 0, "configuration");
    if (code == KN_OK)
        code = kn_config_parse(&first, yaml, "the configuration of rank 0");
    if (code == KN_OK)
        differs = kn_config_differs(config, &first);
    if (differs)
        code = kn_fail(KN_EINPUT, "%s, on rank 0: give all ranks the same configuration and options", differs);
    free(differs);
    free(yaml);
    kn_config_clear(&first);
    return code;
}

static int train(const Options *options, const char *path, KnSampleHook draw_samples, KnComm *comm)
{
    KnConfig config;
    kn_config_init(&config);
    int code = kn_config_load(&config, path, options->set.items, options->set.count);
    if (code == KN_OK && comm->ranks > 1)
        code = kn_comm_error_agree(comm, compare_with_first(&config, comm));
    if (code == KN_OK) {
        kn_comm_set_watchdog(comm, config.run_watchdog_seconds);
        int share = kn_cpu_threads() / comm->local_ranks;
        kn_cpu_set_threads(config.train.threads > 0 ? (int)config.train.threads : share > 1 ? share : 1);
        code = kn_train(&(KnTrainOptions){.config = &config, .resume = options->resume, .draw_samples = draw_samples},
                        comm);
    }
    kn_config_clear(&config);
    return code;
}

int kn_command_train(int argc, char **argv, KnSampleHook draw_samples)
{
    Options options = {0};
    KnArgList files = {0};
    KnComm *comm = NULL;
    KN_TRY(kn_args_parse(&spec, argc, argv, &options, &files));
    kn_signals_install(); /* before the ranks find each other, which may take long */
    int code = kn_comm_open(&comm);
    if (code == KN_OK) {
        code = train(&options, files.items[0], draw_samples, comm);
        int stopped = code == KN_TRAIN_STOPPED;
        code = kn_comm_close(comm, code < 0 ? code : KN_OK);
        if (code == KN_OK && stopped)
            code = kn_fail(KN_EINTERRUPTED, "stopped by a signal after saving a checkpoint: continue with --resume");
    }
    kn_args_clear(&spec, &options, &files);
    return code;
}
