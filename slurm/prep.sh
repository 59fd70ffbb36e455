#!/usr/bin/env bash
# Preparing videos as a Slurm job; started again it goes on where it was:
#
#     sbatch [sbatch options] slurm/prep.sh --out shards [option ...] INPUT...
#
# Its arguments are those of `kinora prep`. docs/operations.md has examples.
#SBATCH --job-name=kinora-prep
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60

[ -n "${SLURM_JOB_ID:-}" ] || {
    echo "error: this is no job of Slurm: submit it with sbatch [sbatch options] slurm/prep.sh --out DIR VIDEOS" >&2
    exit 2
}

# Slurm runs a copy of this file; where it came from says the job's Command, followed by the arguments.
submitted=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s///p;q}')
source "$(dirname "${submitted%" $*"}")/job.sh" || exit 1
run_job prep "$@"
