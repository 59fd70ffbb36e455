#!/usr/bin/env bash
# Labels: slow
# The same YAML on one and two ranks sees the same global batch: losses agree to 1e-5 over 50 steps in f32.
source "$(dirname "$0")/run.sh"
prepare 64
steps=$((sanitized ? 6 : 50))
ranks() { # COUNT RUN [option ...]
    local count=$1 run=$2
    shift 2
    "${on_ranks[@]}" "$count" "$kinora" train small.yaml --set run.dir="$run" \
        --set train.precision=f32 --set train.steps=$steps --set train.checkpoint_every=$((steps / 2)) "$@" >>"$run.log" 2>&1
}
ranks 1 one
ranks 2 two
ranks 2 two_again
[ "$(losses two)" = "$(losses two_again)" ] || fail "two ranks are not reproducible"
[ "$(losses one | wc -l)" = $steps ] || fail "there are not $steps losses"
paste <(losses one) <(losses two) | awk 'BEGIN { worst = 0 }
    { d = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if (d > worst) worst = d }
    END { print "largest relative difference of the losses:", worst; exit !(worst <= 1e-5) }' ||
    fail "one and two ranks differ by more than 1e-5"

# Weights that are rounded before they are gathered are those that are rounded after.
for stage in 1 3; do
    ranks 2 "stage_$stage" --set train.precision=bf16 --set train.steps=3 --set parallel.shard=2 --set parallel.zero=$stage
done
[ "$(losses stage_1)" = "$(losses stage_3)" ] || fail "weights gathered in bfloat16 give other losses"

# A checkpoint of two ranks goes on on one.
cp -r two moved
rm -rf "moved/checkpoints/step-$(printf %08d $steps)"
ranks 1 moved --resume
paste <(losses one) <(losses moved) | awk '
    { d = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if (d > worst) worst = d } END { exit !(worst <= 1e-5) }' ||
    fail "two ranks, then one, differ by more than 1e-5"

# Sample clips are drawn by all ranks together: the pictures are those of one process.
draw() { # COUNT [option ...]
    local count=$1
    shift
    rm -rf drawn # its name is on the sheet
    ranks "$count" drawn --set train.steps=10 --set train.sample_every=10 --set sample.guidance=8 --set sample.steps=5 \
        --set "sample.prompts=[a red circle, a blue square, a triangle]" \
        --set sample.frames=2 --set sample.width=40 --set sample.height=24 "$@"
    [ "$(find drawn/samples/step-00000010 -name '0*.mp4' | wc -l)" = 3 ] || fail "$count ranks have not drawn three clips"
}
draw 1
mv drawn/samples/step-00000010/sheet.png alone.png
draw 2 --set parallel.shard=2
"$build/tests/tool_pixels" alone.png drawn/samples/step-00000010/sheet.png || fail "two ranks draw other clips than one"
draw 4 --set parallel.ring=2 --set parallel.ulysses=2
"$build/tests/tool_pixels" alone.png drawn/samples/step-00000010/sheet.png || fail "four ranks draw other clips than one"

# What cannot be shared is refused with the numbers.
if ranks 3 three; then fail "2 packs on 3 ranks were accepted"; fi
grep -q "train.packs is 2" three.log || fail "the refusal does not name train.packs"
[ "$(grep -c "train.packs is 2" three.log)" = 1 ] || fail "the sentence is printed more than once"

# Ranks that read another configuration or other shards, as on hosts with copies of their own, do not train together.
"$kinora" prep --out fewer/shards --patch 2,8,8 --captions videos/captions.csv videos/*0.mp4 >/dev/null 2>&1
refuse_second() { # SENTENCE FOLDER SETTING: rank 1 starts in the folder, with the setting
    if ASAN_OPTIONS=detect_leaks=0 mpirun --bind-to none --oversubscribe \
        -n 1 "$kinora" train "$work/small.yaml" --set run.dir="$work/mixed" --set data.shards=shards : \
        -n 1 --wdir "$2" "$kinora" train "$work/small.yaml" --set run.dir="$work/mixed" --set data.shards=shards \
        --set "$3" >mixed.log 2>&1; then
        fail "ranks of two kinds trained together"
    fi
    [ "$(grep -c "error: rank [01]: $1" mixed.log)" = 1 ] || fail "no \"$1\" in $(cat mixed.log)"
    [ ! -e mixed/checkpoints ] || fail "ranks of two kinds made a checkpoint"
}
refuse_second "run.seed is 4 here and 3 there, on rank 0" . run.seed=4
refuse_second "data.shards hold 64 clips of 4096 tokens on rank 0, but" fewer run.seed=3
echo "ranks: all promises hold"
