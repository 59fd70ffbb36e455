#!/usr/bin/env bash
# Labels: slow waits
# Ranks that train on the CUDA backend and exchange by NCCL (both emulated) where one of them is stopped, killed or
# refused a call in the middle: the job says which one, ends with a failure and leaves no process. All at the same time.
source "$(dirname "$0")/run.sh"
[ -e "$build/kinora-cuda-emulated.so" ] || {
    echo "built without CUDA: skipped"
    exit 77
}
export KINORA_CUDA_PLUGIN=$build/kinora-cuda-emulated.so
prepare 16
setting=(--set train.steps=1000 --set train.validate_every=0 --set data.tokens=128 --set data.validation_clips=0
    --set run.device=cuda --set train.log_every=1)

train_on_ranks() { # NAME [option ...]
    local name=$1
    shift
    exec "${on_ranks[@]}" 2 "$kinora" train small.yaml --set run.dir="$work/$name" "${setting[@]}" "$@" >"$name.log" 2>&1
}
processes_of() { pgrep -f -- "run.dir=$work/$1 " || true; } # RUN
is_over() { [ -z "$(processes_of "$1")" ]; }
rank_of() { # NAME RANK: its process
    local process
    for process in $(processes_of "$1"); do
        ! tr '\0' '\n' 2>/dev/null <"/proc/$process/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$2" || echo "$process"
    done
}
trains() { [ "$(grep -c '"step":' "$1/metrics.jsonl")" -ge 2 ]; }
clean_up() {
    local name
    for name in stopped killed refused; do
        kill -9 $(processes_of $name) 2>/dev/null
    done
}

(train_on_ranks stopped --set parallel.ulysses=2 --set run.watchdog_seconds=8) &
stopped=$!
(train_on_ranks killed --set parallel.shard=2 --set parallel.zero=3) &
killed=$!
(KINORA_EMULATED_NCCL=refuse:10 train_on_ranks refused) &
refused=$!
for name in stopped killed; do
    wait_for 60 trains $name || fail "$name does not begin to train"
done
kill -STOP "$(rank_of stopped 1)"
kill -KILL "$(rank_of killed 1)"
for name in stopped killed refused; do
    wait_for 90 is_over $name || fail "$name goes on: $(tail -n 3 $name.log), or has left a process: $(processes_of $name)"
    ! wait "${!name}" || fail "$name ended with success"
done
expect 1 "for rank 1 on host .*which does not answer: its process is stopped or gone" stopped.log
expect 1 "process rank 1 with PID" killed.log
expect 1 "rank [01]: call [0-9]* of .* failed in NCCL: .*refused as planned" refused.log
echo "stopped, killed and refused ranks were named, and nothing is left of their jobs"
