#!/usr/bin/env bash
# Sourced by the scripts of this folder, in a Slurm job: kinora as the job's tasks, signals passed on to it, and the job
# put back into the queue when its time was too short.
#
# KINORA: the program (default: the one in PATH, else build/kinora beside this folder).
# KINORA_LAUNCHER: srun (default) or mpirun, what starts the tasks and connects them.
set -u

# A task of an array by its place there: its own number may be the whole array's.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() { printf 'job %s: %s\n' "$job" "$*" >&2; }
die() { say "error: $*"; exit 1; }

find_kinora() {
    local built
    built=$(dirname "${BASH_SOURCE[0]}")/../build/kinora
    [ -n "${KINORA:-}" ] || KINORA=$(command -v kinora) || KINORA=$built
    [ -x "$KINORA" ] || die "no program at $KINORA: name it in KINORA, put it into PATH, or run \`./run build\`"
}

choose_launcher() {
    case ${KINORA_LAUNCHER:-srun} in
    srun)
        export SLURM_PMIX_FENCE=${SLURM_PMIX_FENCE:-ring} # the default one crashes now and then between nodes
        export SLURM_WAIT=${SLURM_WAIT:-90} # from the first task's end to that of all; kinora's own limit comes sooner
        [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # not inherited
        launcher=(srun --mpi=pmix)
        ;;
    mpirun)
        export OMPI_MCA_plm_slurm_args=--whole SLURM_CPU_BIND=none # else its ranks on other nodes have one core
        launcher=(mpirun --bind-to none)
        ;;
    *) die "KINORA_LAUNCHER is $KINORA_LAUNCHER: it may be srun or mpirun" ;;
    esac
}

# Runs kinora as the job's tasks until it ends, leaves its exit status in `status`. SIGUSR1 (of --signal=B:USR1@...) comes
# to this script alone, SIGTERM (of a preemption) perhaps too: the tasks get SIGUSR1, which both launchers pass on.
run_tasks() { # ARGUMENT...
    local launched=
    time_is_up=
    trap 'time_is_up=1; kill -USR1 $launched' USR1
    trap 'kill -USR1 $launched' TERM
    "${launcher[@]}" "$KINORA" "$@" &
    launched=$!
    while :; do
        wait $launched
        status=$?
        kill -0 $launched 2>/dev/null || break # else a signal ended the waiting alone
    done
}

# 3 is "stopped after saving"; above 128, a signal ended what does not save but keeps what it has finished.
requeue_if_time_was_up() {
    [ -n "$time_is_up" ] || return 0
    if [ "$status" = 3 ] || [ "$status" -gt 128 ]; then
        say "not done when its time was up (exit status $status): back into the queue, to go on where it stopped"
        scontrol requeue "$job" || die "Slurm did not take the job back: submit it again to go on"
    fi
}

run_job() { # ARGUMENT...
    find_kinora
    choose_launcher
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || say "restart $SLURM_RESTART_COUNT"
    run_tasks "$@"
    requeue_if_time_was_up
    exit "$status"
}
