#!/bin/bash
# What `kinora plan` predicts against what `kinora train` takes, on this machine: eight configurations, several rounds.
#   bench/plan.sh [BUILD_FOLDER] [ROUNDS]
# Other programs change the machine's speed from minute to minute, so each configuration is measured between two
# calibrations and the prediction is the mean of theirs; the table shows medians over rounds. Takes about eight minutes a
# round on two idle cores.
set -euo pipefail
kinora=$(cd "${1:-build}" && pwd)/kinora
rounds=${2:-3}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

"$kinora" synth moving-shapes --out videos --count 96 >/dev/null 2>&1
for patch in 2,8,8 1,4,4 1,2,2; do # clips of 64, 512 and 2048 tokens
    "$kinora" prep --out "shards-${patch//,/-}" --patch "$patch" --captions videos/captions.csv videos >/dev/null 2>&1
done

# name ranks patch clip-tokens steps settings; as many steps as take ten seconds, since the speed changes within one
configurations() {
    cat <<'END'
small-f32 1 2,8,8 64 600 model.hidden=64 model.layers=2 model.ffn=256 data.tokens=256 train.precision=f32 optimizer.name=adamw
packed-bf16 1 2,8,8 64 50 model.layers=4 data.tokens=1024 train.packs=2 train.precision=bf16 optimizer.name=muon
recompute 1 1,4,4 512 20 model.hidden=256 model.layers=4 model.heads=4 model.ffn=1024 data.tokens=1024 model.recompute=block
long-f32 1 1,4,4 512 20 model.hidden=256 model.heads=4 model.layers=2 model.ffn=1024 data.tokens=4096 train.precision=f32 optimizer.name=adamw
wide-bf16 1 1,4,4 512 25 model.hidden=512 model.layers=2 model.heads=8 model.ffn=2048 data.tokens=512 optimizer.name=adamw
one-clip 1 1,2,2 2048 9 model.hidden=384 model.layers=3 model.heads=6 model.ffn=1536 data.tokens=2048
two-data 2 2,8,8 64 50 model.layers=4 data.tokens=512 train.packs=4 train.precision=f32 optimizer.name=adamw
two-ulysses 2 1,4,4 512 20 model.hidden=256 model.layers=4 model.heads=4 model.ffn=1024 data.tokens=1024 parallel.ulysses=2 parallel.zero=1
END
}

launch() { # RANKS command ...
    local ranks=$1
    shift
    if [ "$ranks" = 1 ]; then "$@"; else mpirun --oversubscribe --bind-to none -n "$ranks" "$@"; fi
}

median() {
    sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'
}

calibrate() { # RANKS FILE
    launch "$1" "$kinora" bench calibrate --out "$2" 2>/dev/null </dev/null
}

# What the two calibrations before and after predict: the mean.
predict() { # RANKS CLIP-TOKENS options ...
    local ranks=$1 clip=$2 mesh=() file
    shift 2
    [ "$ranks" = 1 ] || mesh=(--nodes 1 --gpus-per-node "$ranks")
    for file in before.yaml after.yaml; do
        "$kinora" plan base.yaml "$@" "${mesh[@]}" --device "$file" --clip-tokens "$clip" --json
    done | sed -n 's/.*"step": \([-0-9.e+]*\)}.*/\1/p' | awk '{sum += $1} END {print sum / NR}'
}

echo "run: {seed: 1}" >base.yaml
for round in $(seq "$rounds"); do
    calibrated=0
    while read -r name ranks patch clip steps settings; do
        options=(--set "data.shards=[shards-${patch//,/-}]" --set "model.patch=[$patch]" --set data.clips=64)
        for setting in $settings; do options+=(--set "$setting"); done
        if [ "$ranks" = "$calibrated" ]; then mv after.yaml before.yaml; else calibrate "$ranks" before.yaml; fi
        calibrated=$ranks
        rm -rf run
        launch "$ranks" "$kinora" train base.yaml "${options[@]}" --set run.dir=run --set train.steps="$steps" >train.log 2>&1 </dev/null ||
            { tail -n 3 train.log >&2; exit 1; }
        measured=$(sed -n 's/.*"seconds":\([-0-9.e+]*\).*/\1/p' run/metrics.jsonl | tail -n +2 | median)
        calibrate "$ranks" after.yaml
        echo "$name $ranks $measured $(predict "$ranks" "$clip" "${options[@]}")" | tee -a results >&2
    done < <(configurations)
done

echo "| configuration | ranks | measured ms | predicted ms | predicted / measured |"
echo "| --- | --- | --- | --- | --- |"
while read -r name ranks rest; do
    rows=$(grep "^$name " results) || continue
    printf '| %s | %s | %.1f | %.1f | %.2f |\n' "$name" "$ranks" "$(awk '{print 1e3 * $3}' <<<"$rows" | median)" \
        "$(awk '{print 1e3 * $4}' <<<"$rows" | median)" "$(awk '{print $4 / $3}' <<<"$rows" | median)"
done < <(configurations)
