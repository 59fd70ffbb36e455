#!/usr/bin/env bash
# kill -9 at random moments of training and saving: no checkpoint that was reported is lost, none is damaged, and the
# run ends where the unbroken one does, bit for bit. $2: how many kills (30); $3: seed of the moments.
source "$(dirname "$0")/run.sh"
kills=${2:-30}
RANDOM=${3:-7}
prepare 32
# Saves nearly all the time: a checkpoint every second step, three kept.
setting=(--set train.steps=$((kills * 8)) --set train.checkpoint_every=2 --set train.keep_last=3 --set train.validate_every=0
    --set train.packs=1 --set data.tokens=128 --set data.validation_clips=0)
last=$((kills * 8))
train whole "${setting[@]}"

# The steps of checkpoints that the run has reported.
newest_reported() { sed -n 's/.*step \([0-9]*\): checkpoint of .* saved.*/\1/p' killed.log | sort -n | tail -1; }

: >killed.log
killed=0 damaged=0 lost=0
while [ $killed -lt "$kills" ]; do
    "$kinora" train small.yaml --set run.dir=killed "${setting[@]}" --resume >>killed.log 2>&1 &
    pid=$!
    # The first moments are start-up; most of a life is steps and saves.
    sleep "0.$(printf %03d $((RANDOM % 700 + 100)))"
    if kill -9 $pid 2>/dev/null; then killed=$((killed + 1)); fi
    code=0
    wait $pid 2>/dev/null || code=$?
    [ $code = 0 ] || [ $code = 137 ] || fail "a life ended with $code"
    reported=$(newest_reported)
    if [ -n "$reported" ]; then
        "$kinora" checkpoint verify killed >verify.log 2>&1 || damaged=$((damaged + 1))
        [ -d "killed/checkpoints/step-$(printf %08d "$reported")" ] || lost=$((lost + 1))
    fi
    if [ $code = 0 ]; then # another life from the beginning
        [ "$(tensors whole $last)" = "$(tensors killed $last)" ] || fail "after $killed kills the run ends elsewhere"
        rm -rf killed
        : >killed.log
    fi
done
train killed "${setting[@]}" --resume
[ $damaged = 0 ] || fail "$damaged checkpoints were damaged"
[ $lost = 0 ] || fail "$lost reported checkpoints were lost"
[ "$(tensors whole $last)" = "$(tensors killed $last)" ] || fail "after $kills kills the run ends elsewhere"
[ "$(losses whole)" = "$(losses killed)" ] || fail "after $kills kills the metrics differ"
"$kinora" checkpoint verify killed >/dev/null || fail "a checkpoint of the run is damaged"
temporaries=$(find killed/checkpoints -name '.tmp-*')
[ -z "$temporaries" ] || fail "temporaries are left: $temporaries"
grep -c "resuming from" killed.log | sed "s/.*/$kills kills, & resumed from a checkpoint: nothing lost, nothing damaged, the same end/"
