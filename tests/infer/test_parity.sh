#!/usr/bin/env bash
# The transformer equals diffusers' on random weights: `kinora forward` against the committed fixtures of tests/oracle.
# float32: relative L2 1e-5 forward and 1e-4 for each gradient; bf16: 1.2 times the error of diffusers in
# bf16, for each tensor the larger of its two ways, weights cast or autocast (some tensors have 60 elements: luck).
# The outputs are the same bytes for 1 and 2 threads.
source "$(dirname "$0")/../shell.sh"
fixtures=$root/tests/fixtures
compare=$build/tests/tool_compare

# The judge itself: it passes a file against itself and refuses another one's tensors.
small=$fixtures/transformer-small/case.safetensors odd=$fixtures/transformer-odd/case.safetensors
"$compare" "$small" "$small" >same.log || fail "tool_compare refuses a file against itself"
if "$compare" "$odd" "$small" >foreign.log; then fail "tool_compare accepts foreign tensors"; fi

failed=0
processor=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')
one_processor() { taskset -c "$processor" "$@"; }
for fixture in "$fixtures"/transformer-*; do
    name=$(basename "$fixture")
    for dtype in f32 bf16; do
        for threads in one_processor command; do
            $threads "$kinora" forward --model "$fixture" --inputs "$fixture/case.safetensors" \
                --out "$name-$dtype-$threads.safetensors" --gradients --dtype $dtype
        done
        out=$name-$dtype-one_processor.safetensors
        if ! cmp "$out" "$name-$dtype-command.safetensors"; then
            echo "$name $dtype: one thread and all give different bytes"
            failed=1
        fi
        bounds=(--forward 1e-5 --gradient 1e-4)
        [ $dtype = bf16 ] && bounds=(--report "$fixture/case.json" --factor 1.2)
        echo "== $name $dtype"
        "$compare" "$out" "$fixture/case.safetensors" "${bounds[@]}" || failed=1
    done
done
exit $failed
