#!/bin/sh
# compile.sh STEM NVCC ...: runs nvcc and leaves in STEM.ptxas what it says of each kernel, which is shown if it fails,
# and in STEM.ptx the code for the oldest architecture before it is assembled.
set -eu
stem=$1
shift
kept=$stem.keep
rm -rf "$kept"
mkdir -p "$kept"
trap 'rm -rf "$kept"' EXIT
"$@" --keep --keep-dir "$kept" >"$stem.ptxas" 2>&1 || {
    cat "$stem.ptxas" >&2
    exit 1
}
oldest=$(ls "$kept" | grep '\.ptx$' | sort -V | head -n 1)
mv "$kept/$oldest" "$stem.ptx"
