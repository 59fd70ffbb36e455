#!/usr/bin/env bash
# Training with 8-bit products, on a CUDA backend that needs no GPU (tests/emulated): losses follow those of bf16 within
# 1%, on one rank, and on two that share the tokens, gather weights and compute blocks twice; a resumed run ends with the
# bits of one that was not interrupted; who has no such products is told before anything begins. The tokens of a pack are
# no multiple of 16.
# Labels: slow
source "$(dirname "$0")/run.sh"
plugin=$build/kinora-cuda-emulated.so
[ -e "$plugin" ] || {
    echo "built without CUDA: skipped"
    exit 77
}
prepare 24
sed -i 's/hidden: 64/hidden: 32/; s/optimizer: {/optimizer: {name: adamw, /; s/tokens: 512, clips: 8, validation_clips: 8/tokens: 264, clips: 4/
    s/steps: 12, packs: 2, checkpoint_every: 4/steps: 4, packs: 1, checkpoint_every: 2/; s/layers: 2, heads/layers: 1, heads/; s/, validate_every: 6//' small.yaml
export KINORA_CUDA_PLUGIN=$plugin

run() { # RUN RANKS [option ...]
    local run=$1 ranks=$2
    shift 2
    "${on_ranks[@]}" "$ranks" "$kinora" train small.yaml --set run.dir="$run" --set run.device=cuda "$@" \
        >>"$run.log" 2>&1 || fail "$run (on $ranks ranks, $*) ended with $?: $(tail -n 3 "$run.log")"
}

follows() { # RUN OTHER
    [ "$(losses "$1" | wc -l)" = 4 ] && [ "$(losses "$2" | wc -l)" = 4 ] || fail "$1 and $2 have not 4 steps"
    paste <(losses "$1") <(losses "$2") | awk '{ d = $2 - $4; if (d < 0) d = -d; if (!(d <= 0.01 * $2)) bad = 1
        if ($2 != $4) other = 1 } END { exit bad || !other }' ||
        fail "$2 does not follow $1, or is the same: $(paste <(losses "$1") <(losses "$2"))"
}

run half 1 --set train.precision=bf16
run eight 1 --set train.precision=fp8
follows half eight
run ranks 2 --set train.precision=fp8 --set parallel.ring=2 --set model.recompute=block
follows half ranks

run part 1 --set train.precision=fp8 --set train.steps=2
run part 1 --set train.precision=fp8 --resume
[ "$(tensors part 4)" = "$(tensors eight 4)" ] || fail "a resumed run is not the unbroken one"

# A checkpoint of another precision has no magnitudes: they begin anew.
run half 1 --set train.precision=fp8 --set train.steps=5 --resume

refuse "computes on the CPU: take bf16" \
    "$kinora" train small.yaml --set run.dir=none --set run.device=cpu --set train.precision=fp8
KINORA_EMULATED_CAPABILITY=89 refuse "computes on an older one or without it: take bf16" \
    "$kinora" train small.yaml --set run.dir=none --set run.device=cuda --set train.precision=fp8
[ ! -e none ] || fail "a run was begun"
echo "fp8: follows bf16, and resumes to the bit"
