#!/usr/bin/env bash
# `kinora plan` against `kinora train`, on one rank and on two: the memory it names is what training takes. Its search
# answers for thousands of ranks, its device files are what `kinora bench calibrate` writes, and its refusals say why.
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

for case in "1" "2 parallel.ulysses=2 parallel.zero=3" "2 parallel.shard=2 parallel.zero=2 model.recompute=block"; do
    read -r ranks settings <<<"$case"
    options=(--set model.text.vocabulary=32 --set train.validate_every=0)
    for setting in $settings; do options+=(--set "$setting"); done
    "$kinora" plan small.yaml "${options[@]}" --device toy.yaml --clip-tokens 64 --json >plan.json
    launcher=()
    [ "$ranks" = 1 ] || launcher=("${on_ranks[@]}" "$ranks")
    "${launcher[@]}" "$kinora" train small.yaml "${options[@]}" --set train.steps=1 --set run.dir="run-$RANDOM$ranks" >train.log 2>&1 ||
        fail "$(tail -n 3 train.log)"
    said=$(sed -n 's/^  arena  *\([0-9.]*\) MiB.*/\1/p' train.log)
    predicted=$(awk '{printf "%.2f", $1 / 1048576}' <<<"$(number arena plan.json)")
    [ "$said" = "$predicted" ] || fail "$case: the arena is $said MiB, the plan says $predicted"
done

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
refuse "leave --mesh out" "$kinora" plan "$plan" --device h200 --mesh data=2 --search
refuse "train.packs is 256" "$kinora" plan "$plan" --device h200 --mesh data=3
refuse "model.recompute allows 1048576B" "$kinora" plan "$plan" --device h200 --mesh shard=8 --set model.recompute=1MiB
