#!/usr/bin/env bash
# Generating the videos of a file of prompts as an array job:
#
#     sbatch --array=0-7 [sbatch options] slurm/generate.sh --model RUN --prompts FILE.jsonl --out DIR [option ...]
#
# Its arguments are those of `kinora generate`. Every task of the array runs the same command; kinora shares the lines of
# the file among those that write into one folder. docs/operations.md has examples.
#SBATCH --job-name=kinora-generate
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60

[ -n "${SLURM_JOB_ID:-}" ] || {
    echo "error: this is no job of Slurm: submit it with sbatch [sbatch options] slurm/generate.sh --model RUN --prompts FILE.jsonl --out DIR" >&2
    exit 2
}

# Slurm runs a copy of this file; where it came from says the job's Command, followed by the arguments.
submitted=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s///p;q}')
source "$(dirname "${submitted%" $*"}")/job.sh" || exit 1
run_job generate "$@"
