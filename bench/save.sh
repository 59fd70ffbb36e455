#!/usr/bin/env bash
# For how long a save holds training up: beside it (asynchronous), waited for (synchronous, as at a run's end), and what
# one thread takes to copy as many bytes in memory.
#   bench/save.sh [BUILD_FOLDER]
# 36 M parameters with AdamW and averages, 554 MiB a checkpoint; each round is a run with two saves beside training and one
# that is waited for. ROUNDS (3) may be set, and TMPDIR, which names the disk (2 GiB). Builds bench_copy.
set -euo pipefail
build=$(cd "${1:-build}" && pwd)
rounds=${ROUNDS:-3}
cmake --build "$build" --target bench_copy >/dev/null
work=$(mktemp -d "${TMPDIR:-/tmp}/kinora-bench-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

"$build/kinora" synth moving-shapes --out videos --count 32 >/dev/null 2>&1
"$build/kinora" prep --out shards --patch 2,8,8 --captions videos/captions.csv videos >/dev/null 2>&1
cat >a.yaml <<YAML
model: {hidden: 512, layers: 8, heads: 8, ffn: 2048, patch: [2, 8, 8]}
data: {shards: [shards], tokens: 512}
optimizer: {name: adamw}
train: {steps: 17, checkpoint_every: 8, keep_last: 1, validate_every: 0}
YAML

field() { # KEY, of the checkpoints on standard input
    sed -n "s/.*\"$1\":\([0-9.e-]*\).*/\1/p"
}
row() { # NAME: least, median and most of the numbers on standard input, and the median beside the synchronous one
    sort -g | awk -v name="$1" -v whole="$synchronous" '
        { value[NR] = $1 }
        END {
            median = value[int((NR + 1) / 2)]
            printf "%-42s %9.3f %9.3f %9.3f %11.1f%%\n", name, value[1], median, value[NR], 100 * median / whole
        }'
}
middle() { sort -g | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

for _ in $(seq "$rounds"); do
    "$build/kinora" train a.yaml --set run.dir=run >train.log 2>&1 || { tail -n 3 train.log >&2; exit 1; }
    grep '"checkpoint"' run/metrics.jsonl >saves
    "$build/bench_copy" "$(tail -n 1 saves | field bytes)" >>copies
    head -n -1 saves >>beside
    tail -n 1 saves >>waited
    rm -r run
done
synchronous=$(field held_seconds <waited | middle)
lscpu | sed -n 's/^Model name: *//p'
printf '%.0f MiB, %d rounds\n' "$(tail -n 1 waited | field bytes | awk '{ print $1 / 1048576 }')" "$rounds"
printf '%-42s %9s %9s %9s %12s\n' seconds least median most synchronous
field held_seconds <waited | row 'synchronous: training held up'
field held_seconds <beside | row 'asynchronous: training held up'
field copied_seconds <beside | row '  of that by the copy'
field seconds <beside | row '  until it had its name, beside training'
row 'the same bytes copied in memory' <copies
