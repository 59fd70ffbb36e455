#!/usr/bin/env bash
# The same YAML on one and two ranks sees the same global batch: losses agree to 1e-5 over 50 steps in f32.
source "$(dirname "$0")/run.sh"
prepare 64
ranks() { # COUNT RUN [option ...]
    local count=$1 run=$2
    shift 2
    # leaks are looked for in runs without MPI, which leaves some of its own
    ASAN_OPTIONS=detect_leaks=0 mpirun -n "$count" --bind-to none --oversubscribe "$kinora" train small.yaml --set run.dir="$run" \
        --set train.precision=f32 --set train.steps=50 --set train.checkpoint_every=25 "$@" >>"$run.log" 2>&1
}
ranks 1 one
ranks 2 two
ranks 2 two_again
[ "$(losses two)" = "$(losses two_again)" ] || fail "two ranks are not reproducible"
[ "$(losses one | wc -l)" = 50 ] || fail "there are not 50 losses"
paste <(losses one) <(losses two) | awk 'BEGIN { worst = 0 }
    { d = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if (d > worst) worst = d }
    END { print "largest relative difference of 50 losses:", worst; exit !(worst <= 1e-5) }' ||
    fail "one and two ranks differ by more than 1e-5"

# A checkpoint of two ranks goes on on one.
cp -r two moved
rm -rf moved/checkpoints/step-00000050
ranks 1 moved --resume
paste <(losses one) <(losses moved) | awk '
    { d = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if (d > worst) worst = d } END { exit !(worst <= 1e-5) }' ||
    fail "two ranks, then one, differ by more than 1e-5"

# What cannot be shared is refused with the numbers.
if ranks 3 three; then fail "2 packs on 3 ranks were accepted"; fi
grep -q "train.packs is 2" three.log || fail "the refusal does not name train.packs"
[ "$(grep -c "train.packs is 2" three.log)" = 1 ] || fail "the sentence is printed more than once"
echo "ranks: all promises hold"
