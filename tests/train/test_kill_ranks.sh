#!/usr/bin/env bash
# Labels: slow
# kill -9 of any one of several ranks at random moments: the job ends with a failure and leaves no process, no checkpoint
# is lost or damaged, and `--resume` ends where the unbroken run does, bit for bit. $2: how many kills (4); $3: seed.
source "$(dirname "$0")/run.sh"
kills=${2:-4}
RANDOM=${3:-5}
last=$((kills * 8))
prepare 16
setting=(--set train.steps=$last --set train.checkpoint_every=2 --set train.keep_last=3 --set train.validate_every=0
    --set train.packs=2 --set data.tokens=128 --set data.validation_clips=0 --set run.watchdog_seconds=6
    --set parallel.shard=2 --set parallel.ring=2 --set parallel.zero=3)

ranks() { # RUN [option ...], in place of the (sub)shell
    local run=$1
    shift
    exec "${on_ranks[@]}" 4 "$kinora" train small.yaml --set run.dir="$run" "${setting[@]}" "$@"
}
consolidate() { # RUN: its last checkpoint in RUN.one
    "$kinora" checkpoint consolidate "$1/checkpoints/step-$(printf %08d $last)" --out "$1.one" >>"$1.log" 2>&1 ||
        fail "the last checkpoint of $1 cannot be read"
}
is_whole() { # RUN; removed then
    [ "$(losses whole)" = "$(losses "$1")" ] || fail "after $killed kills the losses differ"
    consolidate "$1"
    cmp whole.one/rank-00000.safetensors "$1.one/rank-00000.safetensors" || fail "after $killed kills the run ends elsewhere"
    rm -r "$1" "$1.one"
}
is_gone() { ! kill -0 "$1"; } # PROCESS

(ranks whole) >whole.log 2>&1 || fail "the unbroken run ended with $?"
consolidate whole

: >killed.log
killed=0 resumed=0
while [ $killed -lt "$kills" ]; do
    (ranks killed --resume) >life.log 2>&1 &
    launcher=$!
    until grep -q "packs an epoch" life.log; do
        kill -0 $launcher 2>/dev/null || break
        sleep 0.01
    done
    sleep "0.$(printf %03d $((RANDOM % 500)))"
    mapfile -t processes < <(pgrep -P $launcher || true)
    victim=
    [ ${#processes[@]} = 0 ] || victim=${processes[RANDOM % ${#processes[@]}]}
    if [ -n "$victim" ] && kill -9 "$victim" 2>/dev/null; then killed=$((killed + 1)); else victim=; fi
    wait_for 20 is_gone $launcher || fail "the job goes on without rank process $victim"
    code=0
    wait $launcher || code=$?
    for process in "${processes[@]}"; do
        wait_for 5 is_gone "$process" || fail "process $process of the job is left"
    done
    cat life.log >>killed.log
    ! grep -q "resuming from" life.log || resumed=$((resumed + 1))
    ! grep "a damaged checkpoint" life.log || fail "a checkpoint was damaged"
    if [ $code = 0 ]; then # it came to its end: another one from the beginning
        is_whole killed
    else
        [ -n "$victim" ] || fail "a life ended by itself: $(tail -n 1 life.log)"
    fi
done
(ranks killed --resume) >>killed.log 2>&1 || fail "the last life ended with $?"
is_whole killed
[ $resumed -ge $((kills / 4)) ] || fail "only $resumed of $killed lives resumed from a checkpoint: this says little"
echo "$killed ranks killed, $resumed lives resumed: each job ended, nothing was lost, the same end"
