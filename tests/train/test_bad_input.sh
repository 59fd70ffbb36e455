#!/usr/bin/env bash
# Bad input gets one sentence that names the culprit, exit code non-zero, and nothing half-written.
source "$(dirname "$0")/run.sh"
prepare 24

with() { refuse "$1" "$kinora" train small.yaml --set run.dir=bad --set "${@:2}"; }

# Configuration
printf 'model:\n  hiden: 64\n' >typo.yaml
refuse "typo.yaml:2:3" "$kinora" train typo.yaml --set run.dir=bad
refuse "hidden" "$kinora" train typo.yaml --set run.dir=bad
printf 'train:\n  steps: many\n' >type.yaml
refuse "type.yaml:2:" "$kinora" train type.yaml --set run.dir=bad
printf 'train: [1, 2\n' >syntax.yaml
refuse "syntax.yaml" "$kinora" train syntax.yaml --set run.dir=bad
with "model.heads" model.heads=3
with "model.layers" model.layers=0
with "data.shards" data.shards=[]
with "nowhere" data.shards=nowhere
with "optimizer.name" optimizer.name=sgd
with "patch" model.patch=[1,8,8]
with "data.tokens" data.tokens=32
refuse "missing.yaml" "$kinora" train missing.yaml --set run.dir=bad
refuse "run.dir" "$kinora" train small.yaml
refuse "--config already says how large" "$kinora" bench step --config small.yaml --layers 3
refuse "--patch takes three numbers" "$kinora" bench step --layers 1 --patch 1,2
[ ! -e bad/checkpoints ] || fail "a refused run left checkpoints"

# Shards
cp -r shards torn
shard=$(ls torn/*.h5 | head -1)
truncate -s -100 "$shard"
with "$(basename "$shard")" data.shards=torn
: >"$shard"
with "$(basename "$shard")" data.shards=torn
echo "no shard" >"$shard"
with "$(basename "$shard")" data.shards=torn
mkdir empty
with "empty" data.shards=empty

# Captions
"$kinora" prep --out mute --patch 2,8,8 videos >/dev/null 2>&1
with "none of the 24 clips of data.shards has a caption" data.shards=mute

# Checkpoints and models
train first --set train.steps=4
refuse "no model at" "$kinora" generate --model nothing --prompt x --out x.mp4
refuse "is no model" "$kinora" generate --model shards --prompt x --out x.mp4
cp first/config.yaml before.yaml
refuse "weights.patch_embedding.weight" "$kinora" train small.yaml --set run.dir=first --set model.hidden=32 \
    --set train.steps=8 --resume
# What no shape shows is refused too: other heads, another meaning of the output, moments of another optimizer.
resume() { refuse "$1" "$kinora" train small.yaml --set run.dir=first --set train.steps=8 --resume --set "$2"; }
resume "model.heads is 4, but it was 2 when first/checkpoints/step-00000004" model.heads=4
resume "model.eps is 1e-05, but it was 1e-06" model.eps=1e-5
resume "model.text.heads is 1, but it was 2" model.text.heads=1
resume "flow.prediction is velocity, but it was sample" flow.prediction=velocity
resume "optimizer.name is adamw, but it was muon" optimizer.name=adamw
train unaveraged --set train.steps=4 --set optimizer.ema=0
refuse "holds no averaged weights" "$kinora" train small.yaml --set run.dir=unaveraged --set train.steps=8 --resume
cmp -s before.yaml first/config.yaml || fail "a refused resume changed the run's configuration"
cp -r first flipped
file=$(ls flipped/checkpoints/*/rank-00000.safetensors)
printf '\125' | dd of="$file" bs=1 seek=5000 conv=notrunc 2>/dev/null
refuse "$(basename "$file")" "$kinora" inspect --verify "$(dirname "$file")"
refuse "rank-00000.safetensors" "$kinora" generate --model "$(dirname "$file")" --prompt x --out x.mp4
printf 'not a tensor file' >junk.safetensors
refuse "junk.safetensors" "$kinora" forward --model first --inputs junk.safetensors --out y.safetensors
[ ! -e x.mp4 ] && [ ! -e y.safetensors ] || fail "a refused command left its output"

# Outputs
refuse "/proc/nothing" "$kinora" train small.yaml --set run.dir=/proc/nothing/run
refuse "/proc/nothing" "$kinora" generate --model first --prompt "a red circle stays still on a gray background" \
    --out /proc/nothing/x.mp4 --frames 4 --steps 2
refuse "multiple of the patch" "$kinora" generate --model first --prompt x --out x.mp4 --size 33x32

# Memory: the sentence comes before the machine suffers.
libraries=$(ldd "$kinora")
if [[ $libraries != *libasan* ]]; then # whose shadow memory the limit would forbid
    refuse "memory" bash -c "ulimit -v 4000000; '$kinora' train small.yaml --set run.dir=huge --set train.threads=1 \
    --set model.hidden=16384 --set model.heads=64 --set model.ffn=65536"
fi

# A full disk: a sentence, and the former checkpoint stands.
if mount_disk 3m full; then
    code=0
    "$kinora" train small.yaml --set run.dir=full/run --set train.steps=40 --set train.checkpoint_every=2 \
        >full.log 2>&1 || code=$?
    [ $code -ne 0 ] && [ $code -lt 100 ] || fail "a full disk ended with $code: $(tail -n 3 full.log)"
    grep -qi "space" full.log || fail "a full disk is not named: $(tail -n 3 full.log)"
    for checkpoint in full/run/checkpoints/step-*; do
        [ -e "$checkpoint" ] || continue
        "$kinora" inspect --verify "$checkpoint" >/dev/null || fail "$checkpoint is half"
    done
    umount full && mount -t tmpfs -o size=8k tmpfs full # nothing else can be written at the end either
    refuse "the checkpoint of step 2 could not be saved" "$kinora" train small.yaml --set run.dir=full/run \
        --set train.steps=2
else
    echo "skipped: the full disk needs root and a tmpfs"
fi
echo "bad input: all promises hold"
