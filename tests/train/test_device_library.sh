#!/usr/bin/env bash
# Training on the CUDA backend with attention by cuDNN, for which a reference stands in (tests/emulated/cudnn.cu),
# against our own kernels: alone, with recomputation, which changes no bit, and where ranks share heads.
# Labels: slow
source "$(dirname "$0")/run.sh"
plugin=$build/kinora-cuda-emulated.so
[ -e "$plugin" ] || {
    echo "built without CUDA: skipped"
    exit 77
}
prepare 12
sed -i 's/hidden: 64/hidden: 128/; s/layers: 2/layers: 1/; s/tokens: 512, clips: 8, validation_clips: 8/tokens: 128, clips: 2/
    s/steps: 12, packs: 2, checkpoint_every: 4/steps: 2, packs: 1, checkpoint_every: 2/; s/, validate_every: 6//' small.yaml
export KINORA_CUDA_PLUGIN=$plugin

run() { # RUN CUDNN RANKS [option ...]
    local run=$1 cudnn=$2 ranks=$3
    shift 3
    KINORA_CUDNN=$cudnn "${on_ranks[@]}" "$ranks" "$kinora" train small.yaml --set run.dir="$run" --set run.device=cuda \
        "$@" >>"$run.log" 2>&1 || fail "$run ($*) ended with $?: $(tail -n 3 "$run.log")"
    [ "$(grep -c 'runs by cuDNN emulated' "$run.log")" = "$cudnn" ] || fail "$run was not as KINORA_CUDNN=$cudnn wants"
}

compare() { # RUN OTHER
    [ "$(losses "$1" | wc -l)" = 2 ] || fail "$1 has not two steps"
    paste <(losses "$1") <(losses "$2") | awk '{ d = $2 - $4; if (!(d * d <= 1e-6 * $2 * $2)) bad = 1 } END { exit bad }' ||
        fail "$2 is not $1 within 0.001: $(paste <(losses "$1") <(losses "$2"))"
}

run own 0 1
run library 1 1
run recomputed 1 1 --set model.recompute=block
run heads 1 2 --set parallel.ulysses=2
compare own library
compare own heads
[ "$(tensors library 2)" = "$(tensors recomputed 2)" ] || fail "the same training gave other bits"
[ "$(tensors library 2)" != "$(tensors own 2)" ] || fail "nothing was computed by the library"
