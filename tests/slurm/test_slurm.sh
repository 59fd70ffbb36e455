#!/usr/bin/env bash
# Labels: slow waits
# The scripts of slurm/ in a real Slurm, whose nodes are pretended: prep, training that is preempted or whose time is up
# and that ends with the bits of the unbroken run, under srun and under mpirun, and generating as an array.
source "$(dirname "$0")/cluster.sh"
source "$(dirname "$0")/../train/run.sh"
scripts=$root/slurm

# Started by hand they say how to submit them.
for script in train prep generate; do
    code=0
    env -u SLURM_JOB_ID bash "$scripts/$script.sh" --help >outside.log 2>&1 || code=$?
    [ $code = 2 ] && grep -q "submit it with sbatch .*slurm/$script.sh" outside.log ||
        fail "$script.sh outside of a job ended with $code: $(cat outside.log)"
done

start_slurm
export KINORA=$kinora
export ASAN_OPTIONS=detect_leaks=0 # of MPI's own

submit() { # NAME OPTION-OR-SCRIPT...: prints the job's number
    sbatch --parsable --output="$work/$1.log" "${@:2}"
}
has_steps() { # RUN COUNT
    [ -s "$1/metrics.jsonl" ] && [ "$(wc -l <"$1/metrics.jsonl")" -ge "$2" ]
}
submit_training() { # RUN OPTION...: two ranks on two nodes, until it has done a few of its steps; leaves `job`
    local run=$1
    shift
    job=$(submit "$run" --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 "$@" \
        "$scripts/train.sh" small.yaml --set run.dir="$run" "${settings[@]}")
    wait_for 30 has_steps "$run" 10 || fail "$run does not train"
}
finish_training() { # RUN JOB: at the end of the unbroken run
    wait_for 60 is_done "$2" || fail "$1: $(scontrol show job -o "$2")"
    grep -q "^job $2: restart 1" "$1.log" || fail "$1 was not restarted"
    [ "$(tensors "$1" $steps)" = "$(tensors whole $steps)" ] || fail "$1 ends elsewhere than the unbroken run"
    [ "$(losses "$1")" = "$(losses whole)" ] || fail "$1 has other losses than the unbroken run"
}

prepare 64
steps=160
settings=(--set train.steps=$steps --set train.checkpoint_every=50 --set train.validate_every=0 --set train.log_every=100)

# The time limit, which Slurm looks at twice a minute: this job goes on beside the others.
limited=$(submit limited --time=1 --signal=B:USR1@50 "$scripts/train.sh" small.yaml --set run.dir=limited \
    --set train.steps=1000000 --set train.validate_every=0 --set train.checkpoint_every=0)

# prep on two nodes.
submit prep --wait --nodes=2 --ntasks-per-node=1 "$scripts/prep.sh" \
    --out prepared --patch 2,8,8 --captions videos/captions.csv videos >/dev/null || fail "prep.sh failed"
grep -q '"clips": 64,' prepared/index.json || fail "prep.sh did not make 64 clips"
[ "$(ls prepared/*.h5 | wc -l)" = 2 ] || fail "prep.sh did not run on two nodes"

# What cannot run ends with kinora's exit status, and stays out of the queue.
code=0
submit refused --wait "$scripts/train.sh" small.yaml --set run.dir=refused --set train.stepz=1 >/dev/null || code=$?
[ $code = 2 ] || fail "a mistaken key ended with $code, not 2"

"${on_ranks[@]}" 2 "$kinora" train small.yaml --set run.dir=whole "${settings[@]}" >whole.log 2>&1

# A rank that dies takes the others with it, and the job does not come back.
SLURM_WAIT=1 submit_training killed
kill -9 "$(pgrep -f "$kinora train .*run.dir=killed" | tail -n 1)"
killed=$job

# Preempted: Slurm ends the ranks and starts the job again.
submit_training preempted
preempted=$job
scontrol requeue "$preempted"

# Its time is up: the ranks save, and the script puts the job back. Under srun, and under mpirun.
submit_training warned
warned=$job
scancel --batch --signal=USR1 "$warned"
KINORA_LAUNCHER=mpirun submit_training by_mpirun
by_mpirun=$job
scancel --batch --signal=USR1 "$by_mpirun"
for run in warned by_mpirun; do
    wait_for 20 grep -q "^job ${!run}: .* (exit status 3): back into the queue" $run.log || fail "$run was not put back"
done
for run in preempted warned; do # mpirun drops the last words of ranks that it ends
    grep -q "stopped by a signal after saving" $run.log || fail "$run did not save"
    wait_for 30 is_back "${!run}" || fail "$run did not come back: $(scontrol show job -o "${!run}")"
done
for run in preempted warned by_mpirun; do
    finish_training $run "${!run}"
done

wait_for 20 job_is "$killed" FAILED || fail "with a killed rank the job is $(job_field "$killed" JobState)"

wait_for 45 grep -q "^job $limited: .* (exit status 3): back into the queue" limited.log || fail "the time limit is not heeded"
wait_for 20 job_is "$limited" PENDING || fail "after its time limit the job is $(job_field "$limited" JobState)"
ls limited/checkpoints/step-* >/dev/null || fail "the time limit left no checkpoint"
scancel "$limited"

# An array makes all videos of a file of prompts, with the bytes of a single process. One of its tasks is stopped, and
# goes back into the queue alone.
for i in 1 2 3 4; do
    echo '{"prompt": "a red circle moves left on a gray background", "out": "'$i'.mp4", "frames": 4, "steps": 1000}'
done >prompts.jsonl
array=$(submit array-%a --array=0-1 "$scripts/generate.sh" --model whole --prompts prompts.jsonl --out together)
two_work() { [ "$(pgrep -xc kinora)" = 2 ]; }
wait_for 20 two_work || fail "the tasks of the array do not work at the same time"
scancel --batch --signal=USR1 "${array}_1"
"$kinora" generate --model whole --prompts prompts.jsonl --out alone >/dev/null 2>&1
for task in 0 1; do
    wait_for 30 is_done "${array}_$task" || fail "task $task is $(job_field "${array}_$task" JobState)"
    [ "$(job_field "${array}_$task" Restarts)" = $task ] || fail "task $task was put back, or task 1 was not"
done
for i in 1 2 3 4; do
    cmp alone/$i.mp4 together/$i.mp4 || fail "video $i of the array differs"
done
echo "slurm: all promises hold"
