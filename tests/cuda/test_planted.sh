#!/usr/bin/env bash
# What is seen of bugs planted in kernels (planted.cu): by results in the three orders of threads, by the emulated
# device, by ThreadSanitizer (in a build without other sanitizers), by AddressSanitizer and UndefinedBehaviorSanitizer
# (in the sanitizer build). And nothing is seen where there is no bug.
set -euo pipefail
build=${1:-build}
[ -x "$build/tests/planted" ] || exit 77
output=$(mktemp)
trap 'rm -f "$output"' EXIT
export TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_leaks=0

run() { # PROGRAM BUG ORDER
    local code=0
    { KINORA_EMULATED_THREADS=$3 "$build/tests/$1" "$2" >"$output" 2>&1; } 2>/dev/null || code=$? # "Aborted" is no news
    return $code
}

is_right() { # PROGRAM BUG ORDERS...
    local program=$1 bug=$2 order
    shift 2
    for order; do
        run "$program" "$bug" "$order" || {
            printf '%s %s, %s: should run and be right\n' "$program" "$bug" "$order"
            cat "$output"
            exit 1
        }
    done
}

is_seen() { # PROGRAM BUG WORDS ORDERS...
    local program=$1 bug=$2 words=$3 order
    shift 3
    for order; do
        if run "$program" "$bug" "$order" || ! grep -q -- "$words" "$output"; then
            printf '%s %s, %s: should show "%s"\n' "$program" "$bug" "$order" "$words"
            cat "$output"
            exit 1
        fi
    done
}

orders=(forward backward random:1 random:2)
seeds=(random:1 random:2 random:3 random:4 random:5 random:6 random:7 random:8)

is_right planted none "${orders[@]}"
is_seen planted missing_barrier 'are wrong' forward random
is_right planted write_after_read forward
is_seen planted write_after_read 'are wrong' "${seeds[@]}"
is_seen planted lockstep 'are wrong' forward
is_seen planted absent_lane 'are wrong' "${orders[@]}"
is_seen planted divergent_barrier 'planted_kernel, block (0, 0, 0): threads wait at different barriers' "${orders[@]}"
is_seen planted divergent_barrier 'threads 0 to 31 at __syncthreads, .*planted.cu:[0-9]' forward
is_seen planted shuffle_deadlock 'threads wait for each other for ever' "${orders[@]}"
is_seen planted shuffle_deadlock 'thread 40 in __shfl_down_sync of lanes 0000ffff, .*planted.cu:[0-9]' forward

if [ -x "$build/tests/planted_tsan" ]; then
    is_seen planted far_overflow 'planted_kernel, block (0, 0, 0): thread 7 uses address' forward
    is_seen planted global_overflow 'was written beyond its end' forward
    is_right planted_tsan none forward random
    for bug in missing_barrier write_after_read lockstep vote_as_barrier race_between_blocks; do
        is_seen planted_tsan $bug 'ThreadSanitizer: data race' forward
    done
else
    is_seen planted static_overflow 'insufficient space\|global-buffer-overflow' forward
    is_seen planted dynamic_overflow 'AddressSanitizer: heap-buffer-overflow' forward
    is_seen planted global_overflow 'AddressSanitizer: use-after-poison' forward
    is_seen planted misaligned 'misaligned address' forward
fi
echo 'every planted bug is seen, and none where there is none'
