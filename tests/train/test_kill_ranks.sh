#!/usr/bin/env bash
# Labels: long
# kill -9 of any one of several ranks at random moments: the job ends with a failure and leaves no process, no checkpoint
# is lost or damaged, and `--resume` ends where the unbroken run does, bit for bit. $2: how many kills (6); $3: seed.
source "$(dirname "$0")/run.sh"
kills=${2:-6}
RANDOM=${3:-5}
last=$((kills * 8))
prepare 32
setting=(--set train.steps=$last --set train.checkpoint_every=2 --set train.keep_last=3 --set train.validate_every=0
    --set train.packs=2 --set data.tokens=128 --set data.validation_clips=0 --set run.watchdog_seconds=6
    --set parallel.shard=2 --set parallel.ring=2 --set parallel.zero=3)

ranks() { # RUN [option ...]
    local run=$1
    shift
    exec "${on_ranks[@]}" 4 "$kinora" train small.yaml \
        --set run.dir="$run" "${setting[@]}" "$@"
}

(ranks whole) >whole.log 2>&1 || fail "the unbroken run ended with $?"

killed=0
while [ $killed -lt "$kills" ]; do
    (ranks killed --resume) >life.log 2>&1 &
    launcher=$!
    until grep -q "packs an epoch" life.log; do
        kill -0 $launcher 2>/dev/null || break
        sleep 0.01
    done
    sleep "0.$(printf %03d $((RANDOM % 700)))"
    mapfile -t processes < <(pgrep -P $launcher || true)
    [ ${#processes[@]} -gt 0 ] || { wait $launcher && break; fail "a life ended by itself: $(tail -n 1 life.log)"; }
    victim=${processes[RANDOM % ${#processes[@]}]}
    ! kill -9 "$victim" 2>/dev/null || killed=$((killed + 1))
    code=0
    timeout 20 tail --pid=$launcher -f /dev/null || fail "the job goes on without rank process $victim"
    wait $launcher || code=$?
    for process in "${processes[@]}"; do
        for _ in $(seq 50); do
            kill -0 "$process" 2>/dev/null || break
            sleep 0.1
        done
        ! kill -0 "$process" 2>/dev/null || fail "process $process of the job is left"
    done
    cat life.log >>killed.log
    [ $code != 0 ] || break # it had come to its end
    ! grep "a damaged checkpoint" life.log || fail "a checkpoint was damaged"
done
(ranks killed --resume) >>killed.log 2>&1 || fail "the last life ended with $?"
[ "$(losses whole)" = "$(losses killed)" ] || fail "after $killed kills the losses differ"
for run in whole killed; do
    "$kinora" checkpoint consolidate $run/checkpoints/step-"$(printf %08d $last)" --out $run.one >>$run.log 2>&1 ||
        fail "the last checkpoint of $run cannot be read"
done
cmp whole.one/rank-00000.safetensors killed.one/rank-00000.safetensors || fail "the runs end elsewhere"
[ $killed -gt 0 ] || fail "no rank was killed: this says little"
echo "$killed ranks killed: each job ended, nothing was lost, the same end"
