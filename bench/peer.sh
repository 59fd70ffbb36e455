#!/usr/bin/env bash
# Kinora against PyTorch on this CPU: training and denoising steps, run in turn, compared by the ratio of medians.
#   PEER_PYTHON=/tmp/peer/bin/python bench/peer.sh [BUILD_FOLDER]
# ROUNDS (3), THREADS (all), STEPS (3) and CASES ("mode tokens batch; ...") may be set. bench/peers/README.md says more.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
kinora=${1:-$root/build}/kinora
python=${PEER_PYTHON:?set PEER_PYTHON to a Python with torch and diffusers, see bench/peers/README.md}
rounds=${ROUNDS:-3}
threads=${THREADS:-$(nproc)}
steps=${STEPS:-3}
cases=${CASES:-train 2048 2; sample 2048 2; train 8192 1; sample 8192 1}
sizes=(--hidden 384 --layers 8 --heads 6 --ffn 1536 --dtype bf16)
[ -x "$kinora" ] || { echo "peer.sh: $kinora is not there; build it first" >&2; exit 1; }

# The tokens per second in a line of JSON on standard input.
speed() {
    local line value
    line=$(tail -n 1)
    value=$(sed -n 's/.*"tokens_per_second": *\([0-9.eE+]*\).*/\1/p' <<< "$line")
    [ -n "$value" ] || { echo "peer.sh: no tokens_per_second in: $line" >&2; return 1; }
    echo "$value"
}

median() {
    sort -g | awk '{ value[NR] = $1 } END { print NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2 }'
}

lscpu | sed -n 's/^Model name: *//p'
printf '%-8s %-10s %14s %14s %8s   load before\n' mode tokens 'kinora tok/s' 'peer tok/s' ratio
while read -r mode tokens batch; do
    [ -n "$mode" ] || continue
    ours=() peers=()
    load=$(cut -d ' ' -f 1 /proc/loadavg)
    options=("${sizes[@]}" --mode "$mode" --tokens "$tokens" --batch "$batch")
    for ((round = 0; round < rounds; round++)); do
        ours+=("$("$kinora" bench step "${options[@]}" --threads "$threads" --json | tr -d '\n' | speed)")
        peers+=("$("$python" "$root/bench/peers/wan_torch.py" "${options[@]}" --threads "$threads" --warmup 1 \
            --steps "$steps" | speed)")
    done
    our_median=$(printf '%s\n' "${ours[@]}" | median)
    peer_median=$(printf '%s\n' "${peers[@]}" | median)
    ratio=$(awk -v a="$our_median" -v b="$peer_median" 'BEGIN { printf "%.2f", a / b }')
    printf '%-8s %-10s %14.0f %14.0f %8s   %s\n' "$mode" "${tokens}x$batch" "$our_median" "$peer_median" "$ratio" "$load"
done <<< "$(tr ';' '\n' <<< "$cases")"
