#!/usr/bin/env bash
# The loop, closed by the real program: videos to shards to a trained model to new videos that are measured, exported
# and explained. What `inspect` says of each thing on the way, and that one changed byte does not pass --verify.
source "$(dirname "$0")/../shell.sh"
run() { "$kinora" "$@" >run.log 2>err.log || fail "kinora $* failed"; }
says() { grep -q -- "$1" run.log || fail "no \"$1\" in: $(cat run.log)"; }

make_shards 24 --size 16x16 --frames 4
cat >config.yaml <<'YAML'
run: {dir: run, seed: 1}
model: {hidden: 32, layers: 1, heads: 1, ffn: 64, text_dim: 16}
data: {shards: [shards], tokens: 64, clips: 8}
train: {steps: 4, checkpoint_every: 2, sample_every: 4}
sample: {width: 16, height: 16, frames: 4, steps: 2, prompts: ["a red circle moves left on a gray background"]}
YAML
run train config.yaml

# Training drew its samples.
[ -s run/samples/step-00000004/sheet.png ] || fail "no sheet of samples"
[ -s run/samples/step-00000004/01-a-red-circle-moves-left-on-a-gray-backgr.mp4 ] || fail "no sample"

run generate --model run --prompt "a red circle moves left on a gray background" --out a.mp4
run generate --from a.json --out b.mp4
cmp a.mp4 b.mp4 || fail "--from made other bytes"
run export --model run --out exported
run generate --model exported --prompt "a red circle moves left on a gray background" --out c.mp4
cmp a.mp4 c.mp4 || fail "the exported model makes other bytes than the run"
run generate --model run/checkpoints/step-00000002 --prompt "a red circle moves left on a gray background" --out d.mp4
if cmp -s a.mp4 d.mp4; then fail "an older checkpoint makes the same bytes"; fi

for order in "" "--trained --seed 3"; do
    # shellcheck disable=SC2086 # two options
    run eval --model run --count 6 --sheet eval.png $order
    says "of 6   95% interval"
    says "most frequent fault"
    [ -s eval.png ] || fail "no sheet"
    rm eval.png
done
run eval --model run --count 2 --json
says '"captions": "held out"'
says '"of": 2'

# What inspect says of everything on the way.
run inspect videos/clip-000000.mp4 && says "video" && says "16"
cp videos/clip-000000.mp4 $'caf\xe9.mp4'
run inspect $'caf\xe9.mp4' && says 'caf\\xe9.mp4: video'
run inspect --verify shards && says "data set" && says "24 clips" && says "verified"
run inspect --verify shards/*.h5 && says "shard, format version"
run inspect --verify run && says "run: run" && says "loss" && says "step-00000004  every hash holds"
run inspect --verify run/checkpoints/step-00000004 && says "all hold"
run inspect --verify exported && says "model" && says "trained with it" && says "model_hash"
run inspect --verify exported/diffusion_pytorch_model.safetensors && says "patch_embedding.weight  F32  \[32, 3, 2, 8, 8\]"
run inspect --verify a.mp4 && says "a red circle moves left" && says "model_hash"
run inspect a.json --json && says '"model_hash"'
for path in shards run run/checkpoints/step-00000004 exported a.mp4; do
    run inspect --json $path && says '"kind"'
done

# One changed byte.
flip() { # FILE OFFSET
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    # shellcheck disable=SC2059 # the format is the byte
    printf "\\$(printf %o $((byte ^ 16)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
weights=run/checkpoints/step-00000004/rank-00000.safetensors
flip $weights $(($(stat -c %s $weights) - 99))
refuse "rank-00000.safetensors" "$kinora" inspect --verify run
refuse "rank-00000.safetensors" "$kinora" inspect --verify run/checkpoints/step-00000004
run inspect run # what is whole can still be seen
says "step-00000002"
flip a.mp4 $(($(stat -c %s a.mp4) - 20))
refuse "is not the video that" "$kinora" inspect --verify a.mp4
shard=$(echo shards/*.h5)
flip "$shard" $(($(stat -c %s "$shard") / 2))
refuse "$shard" "$kinora" inspect --verify "$shard"

echo text >file.txt
refuse "nothing that kinora knows" "$kinora" inspect file.txt
refuse "there is nothing at" "$kinora" inspect nowhere
