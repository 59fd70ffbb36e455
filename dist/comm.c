/* Choosing the communicator by how the process was started, and what ranks agree on with the table alone. */
#include "dist/comm.h"

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "dist/signals.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SENTENCE_BYTES = 1024 };

static long environment_number(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 10) : otherwise;
}

/* How launchers tell a process that it is one of several. The first whose `present` variable is set decides: mpirun
 * inside a Slurm job sets its own beside Slurm's. A step of Slurm without PMIx, or MPICH's mpiexec, would give Open
 * MPI that many separate worlds of one rank, all writing the same files: that is refused. */
typedef struct Launcher {
    const char *present, *size;
    int works;
    const char *name;
} Launcher;

static const Launcher launchers[] = {
    {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", 1, "mpirun"},
    {"PMIX_NAMESPACE", "SLURM_STEP_NUM_TASKS", 1, "srun --mpi=pmix"},
    {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_TASKS", 0, "srun without --mpi=pmix"},
    {"PMI_SIZE", "PMI_SIZE", 0, "an mpiexec that is not Open MPI's"},
};

int kn_comm_open(KnComm **comm)
{
    enum { UNKNOWN_SIZE = 2 };
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        if (!getenv(launchers[i].present))
            continue;
        long ranks = environment_number(launchers[i].size, UNKNOWN_SIZE);
        if (ranks <= 1)
            break;
        if (!launchers[i].works)
            return kn_fail(KN_EPEER,
                           "started as one of %ld processes by %s, which cannot connect them: use mpirun or "
                           "srun --mpi=pmix, or start a single process",
                           ranks, launchers[i].name);
        KN_TRY(kn_comm_mpi_open(comm));
        kn_log_set_rank((*comm)->rank, (*comm)->ranks);
        return KN_OK;
    }
    return kn_comm_self_open(comm);
}

int kn_comm_close(KnComm *comm, int code)
{
    if (code >= 0 && comm->ranks > 1)
        code = comm->table->barrier(comm, "end of the command");
    if (code < 0 && comm->ranks > 1)
        kn_comm_abort(comm);
    comm->table->destroy(comm);
    return code;
}

static int names_its_rank(const char *sentence)
{
    return strncmp(sentence, "rank ", 5) == 0 && isdigit((unsigned char)sentence[5]);
}

_Noreturn void kn_comm_abort(KnComm *comm)
{
    if (comm->ranks > 1 && !names_its_rank(kn_error_message()))
        kn_fail_prefix(0, "rank %d", comm->job_rank);
    comm->table->abort(comm);
    exit(EXIT_FAILURE);
}

int kn_comm_error_agree(KnComm *comm, int code)
{
    typedef struct Result {
        int32_t code, job_rank;
    } Result;
    if (comm->ranks == 1)
        return code < 0 ? code : KN_OK;
    Result mine = {code, comm->job_rank}, *all = kn_alloc((size_t)comm->ranks * sizeof *all);
    char sentence[SENTENCE_BYTES]; /* taken now: the exchange may leave another one */
    snprintf(sentence, sizeof sentence, "%s", kn_error_message());
    int result = comm->table->all_gather(comm, &mine, all, sizeof mine, "agreement on errors");
    int first = 0;
    while (result == KN_OK && first < comm->ranks && all[first].code >= 0)
        first++;
    if (result == KN_OK && first < comm->ranks) {
        result = comm->table->broadcast(comm, sentence, sizeof sentence, first, "sentence of the rank that failed");
        sentence[sizeof sentence - 1] = '\0';
        if (result == KN_OK && names_its_rank(sentence))
            result = kn_fail(all[first].code, "%s", sentence);
        else if (result == KN_OK)
            result = kn_fail(all[first].code, "rank %d: %s", all[first].job_rank, sentence);
    }
    free(all);
    return result;
}

int kn_comm_any(KnComm *comm, unsigned char mine, unsigned char *any)
{
    unsigned char *all = kn_alloc((size_t)comm->ranks);
    int code = comm->table->all_gather(comm, &mine, all, sizeof mine, "agreement on the next step");
    *any = 0;
    for (int rank = 0; rank < comm->ranks && code == KN_OK; rank++)
        *any |= all[rank];
    free(all);
    return code;
}

int kn_comm_stop_agree(KnComm *comm, int *stop)
{
    unsigned char any;
    int code = kn_comm_any(comm, kn_stop_requested() != 0, &any);
    *stop = any;
    return code;
}

int kn_comm_gather_text(KnComm *comm, const char *mine, char **texts, const char *name)
{
    size_t ranks = (size_t)comm->ranks, bytes = strlen(mine) + 1, longest = 0;
    uint64_t my_bytes = bytes, *lengths = kn_alloc(ranks * sizeof *lengths);
    int code = comm->table->all_gather(comm, &my_bytes, lengths, sizeof my_bytes, name);
    for (size_t rank = 0; rank < ranks && code == KN_OK; rank++)
        longest = lengths[rank] > longest ? (size_t)lengths[rank] : longest;
    free(lengths);
    KN_TRY(code);
    char *padded = kn_alloc(longest), *all = kn_alloc(longest * ranks);
    memcpy(padded, mine, bytes);
    code = comm->table->all_gather(comm, padded, all, longest, name);
    for (size_t rank = 0; rank < ranks && code == KN_OK; rank++)
        texts[rank] = kn_strdup(all + rank * longest);
    free(padded);
    free(all);
    return code;
}

int kn_comm_all_reduce(KnComm *comm, float *values, int64_t count, const char *name)
{
    KnCommTicket ticket;
    KN_TRY(comm->table->all_reduce_start(comm, values, count, KN_F32, name, &ticket));
    return comm->table->wait(comm, ticket);
}
