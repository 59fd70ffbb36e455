#!/usr/bin/env bash
# `kinora bench step`: on the CPU and, where the emulated device is built, on the CUDA backend, training and denoising.
source "$(dirname "$0")/../shell.sh"
plugin=$build/kinora-cuda-emulated.so
step() { # DEVICE MODE [option ...]
    local device=$1 mode=$2
    shift 2
    "$kinora" bench step --hidden 32 --layers 1 --heads 2 --ffn 64 --tokens 64 --batch 2 --text 8 --steps 2 --threads 1 \
        --device "$device" --mode "$mode" --json "$@" >"$device-$mode.json" 2>>step.log
    expect 1 "\"device\": \"$device\", \"mode\": \"$mode\"" "$device-$mode.json"
    tr ',{}' '\n' <"$device-$mode.json" | awk -F': ' '
        /"(seconds|tokens_per_second|gflops|matmul_peak_gflops|arena_bytes)"/ { seen++; bad += !($2 > 0) }
        END { exit seen != 5 || bad }' || fail "$(cat "$device-$mode.json")"
}

step cpu train
step cpu sample
if [ -e "$plugin" ]; then
    KINORA_CUDA_PLUGIN=$plugin step cuda train --recompute
    KINORA_CUDA_PLUGIN=$plugin step cuda sample
fi
KINORA_CUDA_PLUGIN=nowhere.so refuse "nowhere.so is missing" "$kinora" bench step --layers 1 --device cuda
refuse "auto|cpu|cuda" "$kinora" bench step --layers 1 --device gpu
