#!/usr/bin/env bash
# What exchanges between two ranks of one thread each cost a training step: the share of the step's time that a rank
# stands and waits for the other, on the configuration of bench/peer.sh with one pack of 2,048 tokens a rank.
#   bench/exchange.sh [BUILD_FOLDER] [STEPS]
# Waiting for a rank that other programs hold up counts too: give it two idle cores.
set -euo pipefail
kinora=$(cd "${1:-build}" && pwd)/kinora
steps=${2:-6}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

"$kinora" synth moving-shapes --out videos --count 32 >/dev/null 2>&1
"$kinora" prep --out shards --patch 1,2,2 --captions videos/captions.csv videos >/dev/null 2>&1 # clips of 2,048 tokens
cat >a.yaml <<YAML
model: {hidden: 384, layers: 8, heads: 6, ffn: 1536, patch: [1, 2, 2]}
data: {shards: [shards], tokens: 2048, clips: 1}
optimizer: {name: adamw}
train: {steps: $steps, packs: 2, checkpoint_every: 0, precision: bf16, threads: 1, log_every: 1}
YAML

# Seconds of all steps but the first, and of them, those that both ranks worked, on average.
shares() { # RUN
    sed -n 's/.*"seconds":\([0-9.e-]*\).*"rank_work_seconds":\[\([0-9.e-]*\),\([0-9.e-]*\)\].*/\1 \2 \3/p' "$1/metrics.jsonl" |
        awk 'NR > 1 { step += $1; work += ($2 + $3) / 2; most += $2 > $3 ? $2 : $3 }
             END { printf "%10.3f %12.1f%% %12.1f%%\n", step / (NR - 1), 100 * (1 - work / step), 100 * (step - most + 1e-9) / step }'
}

lscpu | sed -n 's/^Model name: *//p'
printf '%-24s %10s %13s %13s\n' layout 's a step' 'waiting' 'by the slower'
for layout in "data=2" "shard=2 zero=1" "shard=2 zero=3" "ulysses=2 zero=0" "ring=2 zero=0"; do
    options=()
    for word in $layout; do options+=(--set "parallel.$word"); done
    run=${layout//[ =]/-}
    mpirun --oversubscribe --bind-to none -n 2 "$kinora" train a.yaml --set run.dir="$run" "${options[@]}" >"$run.log" 2>&1 ||
        { tail -n 3 "$run.log" >&2; exit 1; }
    printf '%-24s %s\n' "$layout" "$(shares "$run")"
done
