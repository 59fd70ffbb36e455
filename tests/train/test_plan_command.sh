#!/usr/bin/env bash
# `kinora plan` against `kinora train`, on one rank and on two: the memory it names is what training takes. Its search
# answers for thousands of ranks, its device files are what `kinora bench calibrate` writes, and its refusals say why.
# Labels: slow
source "$(dirname "$0")/run.sh"
plan=$root/configs/plan-14b.yaml
prepare 24

number() { # KEY FILE
    sed -n "s/.*\"$1\": \([-0-9.e+]*\).*/\1/p" "$2"
}

# Any device will do for memory: the H200 with the CPU's form of the graph.
cat >toy.yaml <<YAML
name: toy
backend: cpu
memory: 4GiB
ranks_per_node: 4
inside: {latency: 1e-6, bandwidth: 1e10}
between: {latency: 1e-5, bandwidth: 1e9}
rates:
- {kind: matmul, points: [[1, 1e11]]}
- {kind: attention, points: [[1, 1e11]]}
- {kind: memory, points: [[1, 1e10]]}
notes: [a toy]
YAML

sed 's/name: toy/name: gpu/; s/backend: cpu/backend: gpu/' toy.yaml >gpu.yaml

compare_arena() { # DEVICE-FILE DEVICE RANKS [setting ...]
    local file=$1 device=$2 ranks=$3 setting said predicted launcher=()
    shift 3
    local options=(--set model.text.vocabulary=32 --set train.validate_every=0)
    for setting; do options+=(--set "$setting"); done
    "$kinora" plan small.yaml "${options[@]}" --device "$file" --clip-tokens 64 --json >plan.json
    [ "$ranks" = 1 ] || launcher=("${on_ranks[@]}" "$ranks")
    "${launcher[@]}" "$kinora" train small.yaml "${options[@]}" --set train.steps=1 --set run.device="$device" \
        --set run.dir="run-$RANDOM$ranks" >train.log 2>&1 || fail "$(tail -n 3 train.log)"
    said=$(sed -n 's/^  arena  *\([0-9.]*\) MiB.*/\1/p' train.log)
    predicted=$(awk '{printf "%.2f", $1 / 1048576}' <<<"$(number arena plan.json)")
    [ "$said" = "$predicted" ] || fail "$device on $ranks, $*: the arena is $said MiB, the plan says $predicted"
}

compare_arena toy.yaml cpu 1
compare_arena toy.yaml cpu 2 parallel.ulysses=2 parallel.zero=3
compare_arena toy.yaml cpu 2 parallel.shard=2 parallel.zero=2 model.recompute=block

# The graph of the CUDA backend, its workspaces and its kernels, without a GPU; and a sentence where it is not here.
KINORA_CUDA_PLUGIN=nowhere.so "$kinora" plan "$root/configs/wan-1.3b.yaml" --device h200 >plain.txt
expect 1 "the graph is that of no backend, .*: nowhere.so is missing" plain.txt
if [ -e "$build/kinora-cuda-emulated.so" ]; then
    export KINORA_CUDA_PLUGIN=$build/kinora-cuda-emulated.so
    little=(model.hidden=32 data.tokens=128 data.clips=2 data.validation_clips=2)
    compare_arena gpu.yaml cuda 1 "${little[@]}"
    compare_arena gpu.yaml cuda 2 "${little[@]}" parallel.ulysses=2 parallel.zero=3 model.recompute=block

    # The table adds up to the step but for what is around the graphs; what is slower in the device is slower in the plan.
    step() { # DEVICE [option ...]: milliseconds of a step of Wan 1.3B
        "$kinora" plan "$root/configs/wan-1.3b.yaml" --device "$@" | sed -n 's/^  step  *//p'
    }
    "$kinora" plan "$root/configs/wan-1.3b.yaml" --device h200 --kernels >wan.txt
    expect 1 "the graph is that of the CUDA backend" wan.txt
    awk '/^  (matmul|attention|memory-bound)  +[0-9.]+$/ {classes += $2} $1 == "sum" {sum = $2}
        END {exit !(sum > 1000 && sum - classes < 0.1 && classes - sum < 0.1)}' wan.txt || fail "kernels do not add up: $(cat wan.txt)"
    awk '$1 == "attention_backward" && $4 == 32760 {exit !($10 == 30 && $11 > 1100 && $11 < 1250)}' wan.txt || fail "no attention"
    echo 'like: h200' >own.yaml && echo 'attention: own' >>own.yaml
    echo 'like: h200' >eager.yaml && echo 'launch: 4e-6' >>eager.yaml
    awk -v a="$(step h200)" -v own="$(step own.yaml)" -v eager="$(step eager.yaml)" -v one="$(step h200 --mode sample)" \
        'BEGIN {exit !(own > 1.4 * a && eager > a && eager < a + 10 && one > a / 4.5 && one < a / 3.5)}' || fail "a step takes $(step h200), with the own attention $(step own.yaml), without a captured graph $(step eager.yaml), sampling $(step h200 --mode sample)"
fi
refuse "leave --kernels and --mode out" "$kinora" plan "$plan" --device h200 --search --mode sample
"$kinora" plan "$plan" --device h200 --nodes 16 --search --rows 2000 >search.txt
grep -q "^128 x h200" search.txt || fail "no search: $(head -n 1 search.txt)"
grep -q "hold more state than the device has memory" search.txt || fail "no reason why layouts do not fit"
awk '/^ +[0-9]+ +[0-9]+ +[0-9.]+%/ {if (last && $1 > last) exit 1; last = $1; count++} END {if (count < 100) exit 1}' search.txt ||
    fail "layouts are not ranked"
awk '/^ +[0-9]+ +[0-9]+ +[0-9.]+%/ && $4 > 135.5 {exit 1}' search.txt || fail "a layout that does not fit is listed"

"$kinora" plan "$plan" --device h200 --nodes 1 --gpus-per-node 1 --search >search.txt
grep -q "^1 x h200, 0 layouts fit" search.txt || fail "212 GiB of state fit one rank: $(head -n 1 search.txt)"

refuse "cannot be cut into groups of 3" "$kinora" plan "$plan" --device h200 --nodes 1 --mesh ring=3
refuse "a mesh has no axis \"rings\"" "$kinora" plan "$plan" --device h200 --mesh rings=3
refuse "there is no device \"tpu\"" "$kinora" plan "$plan" --device tpu
refuse "a job of 1099511627776 ranks" "$kinora" plan "$plan" --device h200 --mesh data=1048576,shard=1048576
refuse "cannot write nowhere/cpu.yaml" timeout 5 "$kinora" bench calibrate --out nowhere/cpu.yaml
"$kinora" plan "$plan" --device h200 --mesh shard=8 >all.txt
"$kinora" plan "$plan" --device h200 --mesh shard=8 --set train.offload=optimizer >offload.txt
grep -q "^  optimizer" all.txt && ! grep -q "^  optimizer" offload.txt || fail "what is offloaded takes memory of the GPU"
# Two shares of one rate: of the data sheet's 989 TFLOP/s, and of the 790 that products reach.
awk '/% of peak$/ {peak = $(NF - 2)} /TFLOP.s a rank: / {limit = $5}
    END {exit !(peak > 0 && limit * 790 > 0.99 * peak * 989 && limit * 790 < 1.01 * peak * 989)}' all.txt ||
    fail "shares differ: $(grep -e 'of peak' -e 'a rank: ' all.txt)"
full=(--device h100 --mesh shard=4 --set model.recompute=block)
"$kinora" plan "$plan" "${full[@]}" >full.txt
grep -q "MiB too much: train.offload=optimizer keeps .* in the host's memory, and fits" full.txt || fail "no advice: $(head -n 15 full.txt)"
"$kinora" plan "$plan" "${full[@]}" --set train.offload=optimizer >fits.txt
! grep -q "does not fit" fits.txt && grep -q "^  of the host, pinned" fits.txt || fail "$(head -n 15 fits.txt)"
step_of() { awk '$1 == "step" {print $2}' "$1"; }
awk -v a="$(step_of full.txt)" -v b="$(step_of fits.txt)" 'BEGIN {exit !(b > a + 900)}' || fail "the bus takes no time"
"$kinora" plan "$plan" "${full[@]}" --set data.tokens=400000 >full.txt
grep -q "MiB too much: try model.recompute=block, fewer data.tokens or more ranks" full.txt || fail "no advice: $(head -n 15 full.txt)"
"$kinora" plan "$plan" --device h200 --nodes 1 --gpus-per-node 2 --search >kept.txt
"$kinora" plan "$plan" --device h200 --nodes 1 --gpus-per-node 2 --search --set train.offload=optimizer >moved.txt
fitting() { sed -n 's/^2 x h200, \([0-9]*\) layouts fit$/\1/p' "$1"; }
[ "$(fitting moved.txt)" -gt "$(fitting kept.txt)" ] || fail "the search does not know of train.offload"
refuse "leave --mesh out" "$kinora" plan "$plan" --device h200 --mesh data=2 --search
refuse "train.packs is 256" "$kinora" plan "$plan" --device h200 --mesh data=3
refuse "model.recompute allows 1048576B" "$kinora" plan "$plan" --device h200 --mesh shard=8 --set model.recompute=1MiB
