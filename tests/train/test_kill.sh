#!/usr/bin/env bash
# Labels: slow
# kill -9 at random moments of training and saving: no checkpoint that was reported is lost, none is damaged, and the
# run ends where the unbroken one does, bit for bit. $2: how many kills (30); $3: seed of the moments.
source "$(dirname "$0")/run.sh"
kills=${2:-30}
RANDOM=${3:-7}
last=$((kills * 6))
prepare 32
# Saves nearly all the time: a checkpoint every second step, three kept.
setting=(--set train.steps=$last --set train.checkpoint_every=2 --set train.keep_last=3 --set train.validate_every=0
    --set train.packs=1 --set data.tokens=128 --set data.validation_clips=0)
train whole "${setting[@]}"

is_whole() { # RUN
    [ "$(tensors whole $last)" = "$(tensors "$1" $last)" ] || fail "after $killed kills the run ends elsewhere"
    [ "$(losses whole)" = "$(losses "$1")" ] || fail "after $killed kills the metrics differ"
    temporaries=$(find "$1/checkpoints" -name '.tmp-*')
    [ -z "$temporaries" ] || fail "temporaries are left: $temporaries"
}

: >killed.log
killed=0 resumed=0 in_start=0
while [ $killed -lt "$kills" ]; do
    "$kinora" train small.yaml --set run.dir=killed "${setting[@]}" --resume >life.log 2>&1 &
    pid=$!
    # One life in six ends somewhere in its start, the others within half a second of steps and saves.
    [ $((RANDOM % 6)) = 0 ] || until grep -q "packs an epoch" life.log; do
        kill -0 $pid 2>/dev/null || break
        sleep 0.01
    done
    sleep "0.$(printf %03d $((RANDOM % 500)))"
    ! kill -9 $pid 2>/dev/null || killed=$((killed + 1))
    code=0
    wait $pid 2>/dev/null || code=$?
    [ $code = 0 ] || [ $code = 137 ] || fail "a life ended with $code: $(tail -n 1 life.log)"
    cat life.log >>killed.log
    grep -q "packs an epoch" life.log || in_start=$((in_start + 1))
    ! grep -q "resuming from" life.log || resumed=$((resumed + 1))
    ! grep "a damaged checkpoint" life.log || fail "a checkpoint was damaged"
    reported=$(sed -n 's/.*step \([0-9]*\): checkpoint of .* saved.*/\1/p' killed.log | tail -1)
    if [ -n "$reported" ]; then
        # Newer ones, which a life did not live to report, may have taken its place.
        newest=$(find killed/checkpoints -name 'step-*' -printf '%f\n' | sort | tail -n 1 | sed 's/step-0*//')
        [ "${newest:-0}" -ge "$reported" ] || fail "the checkpoint of step $reported is lost: the newest is ${newest:-none}"
        "$kinora" checkpoint verify killed >verify.log 2>&1 || fail "kill $killed: $(grep damaged verify.log)"
    fi
    if [ $code = 0 ]; then # it came to its end: another one from the beginning
        is_whole killed
        rm -rf killed
        : >killed.log
    fi
done
train killed "${setting[@]}" --resume
is_whole killed
[ $resumed -gt $((kills / 3)) ] || fail "only $resumed of $kills lives resumed from a checkpoint: this says little"
echo "$kills kills, $in_start in the start, $resumed lives resumed: nothing lost, nothing damaged, the same end"
