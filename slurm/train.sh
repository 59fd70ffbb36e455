#!/usr/bin/env bash
# Training as a Slurm job that goes on by itself after preemption, node failure and the time limit:
#
#     sbatch [sbatch options] slurm/train.sh CONFIG.yaml [--set key=value ...]
#
# Its arguments are those of `kinora train`, to which it adds --resume. docs/operations.md has examples.
#SBATCH --job-name=kinora-train
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

[ -n "${SLURM_JOB_ID:-}" ] || {
    echo "error: this is no job of Slurm: submit it with sbatch [sbatch options] slurm/train.sh CONFIG.yaml [--set key=value ...]" >&2
    exit 2
}

# Slurm runs a copy of this file; where it came from says the job's Command, followed by the arguments.
submitted=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s///p;q}')
source "$(dirname "${submitted%" $*"}")/job.sh" || exit 1
run_job train ${SLURM_CPUS_PER_TASK:+--set "train.threads=$SLURM_CPUS_PER_TASK"} "$@" --resume
