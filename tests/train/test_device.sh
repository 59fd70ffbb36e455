#!/usr/bin/env bash
# Training on the CUDA backend, whose plugin is linked to libraries that need no GPU (tests/emulated), against the CPU:
# alone and on ranks that exchange by NCCL, with both optimizers; checkpoints that go on on the other backend; clips
# drawn on the way. Losses and gradient norms agree within 1e-5. Each layout: test_device_layouts.c.
# Labels: slow
source "$(dirname "$0")/run.sh"
plugin=$build/kinora-cuda-emulated.so
[ -e "$plugin" ] || {
    echo "built without CUDA: skipped"
    exit 77
}
prepare 24
sed -i 's/hidden: 64/hidden: 32/; s/optimizer: {/optimizer: {name: adamw, /; s/tokens: 512, clips: 8, validation_clips: 8/tokens: 256, clips: 4/
    s/precision: bf16/precision: f32/; s/steps: 12, packs: 2, checkpoint_every: 4/steps: 2, packs: 2, checkpoint_every: 2/
    s/, validate_every: 6//' small.yaml
export KINORA_CUDA_PLUGIN=$plugin KINORA_EMULATED_REGISTERED=1

run() { # RUN RANKS DEVICE [option ...]
    local run=$1 ranks=$2 device=$3
    shift 3
    "${on_ranks[@]}" "$ranks" "$kinora" train small.yaml --set run.dir="$run" --set run.device="$device" "$@" \
        >>"$run.log" 2>&1 || fail "$run ($device on $ranks ranks, $*) ended with $?: $(tail -n 3 "$run.log")"
}

numbers() { # RUN: step, loss and gradient norm, one step a line
    sed -n 's/.*"step":\([0-9]*\),"loss":\([-0-9.e+]*\),.*"gradient_norm":\([-0-9.e+]*\).*/\1 \2 \3/p' "$1/metrics.jsonl"
}

compare() { # RUN OTHER STEPS [TOLERANCE]
    [ "$(numbers "$1" | wc -l)" = "$3" ] && [ "$(numbers "$2" | wc -l)" = "$3" ] || fail "$1 and $2 have not $3 steps"
    paste <(numbers "$1") <(numbers "$2") | awk -v most="${4:-1e-5}" '
        function apart(a, b) { return (a > b ? a - b : b - a) / (a > b ? a : b) }
        { for (i = 2; i <= 3; i++) if (!(apart($i, $(i + 3)) <= most)) bad = 1 } END { exit bad }' ||
        fail "$2 is not $1 within ${4:-1e-5}: $(paste <(numbers "$1") <(numbers "$2"))"
}

run cpu 1 cpu
run cuda 1 cuda
compare cpu cuda 2
run ranks 4 cuda --set parallel.shard=2 --set parallel.ring=2 --set parallel.zero=3
compare cpu ranks 2

run muon-cpu 1 cpu --set optimizer.name=muon
run muon-cuda 2 cuda --set optimizer.name=muon --set parallel.tensor=2 --set train.offload=optimizer
compare muon-cpu muon-cuda 2 1e-4 # it orthogonalizes in bfloat16

run half-cpu 1 cpu --set train.precision=bf16
run half-cuda 1 cuda --set train.precision=bf16
compare half-cpu half-cuda 2 1e-3

# What the one has saved, the other goes on from.
cp -r cpu on-cuda
cp -r cuda on-cpu
run on-cpu 1 cpu --resume --set train.steps=3
run on-cuda 1 cuda --resume --set train.offload=optimizer --set train.steps=3 --set train.sample_every=3 --set 'sample.prompts=[a red circle]' \
    --set sample.steps=2 --set sample.frames=4 --set sample.width=32 --set sample.height=32
compare on-cpu on-cuda 3
[ -s on-cuda/samples/step-00000003/sheet.png ] || fail "no clip was drawn on the device"

# Without a GPU: the CPU, and a sentence.
KINORA_CUDA_PLUGIN=nowhere.so run alone 1 auto
expect 1 "computing on the CPU: nowhere.so is missing" alone.log
KINORA_CUDA_PLUGIN=nowhere.so refuse "nowhere.so is missing" "$kinora" train small.yaml --set run.dir=none --set run.device=cuda
refuse "use auto, cpu or cuda" "$kinora" train small.yaml --set run.dir=none --set run.device=gpu
[ ! -e none ] || fail "a run was begun"
echo "device: all backends agree"
