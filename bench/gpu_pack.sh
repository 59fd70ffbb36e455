#!/usr/bin/env bash
# Packs what bench/gpu.sh needs on a machine that has a driver and little else: less than 60 MiB.
#   bench/gpu_pack.sh [BUILD_FOLDER] [FILE.tar.xz]
# There: tar xf FILE.tar.xz && kinora-gpu/bench/gpu.sh. The C library must be no older than this machine's.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "${1:-$root/build}" && pwd)
out=$(realpath -m "${2:-kinora-gpu.tar.xz}")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
bundle=$stage/kinora-gpu
mkdir -p "$bundle"/{tests,lib/last/{libnccl.so.2,libcublasLt.so.13},bench}

programs=(kinora kinora-cuda.so tests/{test_ops_emulated,test_products,test_replay,test_sampler_device,tool_compare})
[ ! -x "$build/tests/test_cudnn_gpu" ] || programs+=(tests/test_cudnn_gpu)
for program in "${programs[@]}"; do
    strip -o "$bundle/$program" "$build/$program"
    # All but the C library itself, and those of CUDA that are too large.
    ldd "$build/$program" | awk '$3 ~ /^\// { print $3 }' |
        grep -v '/\(libc\|libm\|libcublasLt\|libnccl\|libcudnn[a-z_]*\)\.so' | xargs -I{} cp -Ln {} "$bundle/lib/"
done
cp -r "$root/tests/fixtures" "$bundle/tests/"
cp -r "$root/bench/gpu.sh" "$root/bench/peers" "$bundle/bench/"

# A library in place of another: `type name` of each symbol that is asked of it; its functions return RETURN.
stand_in() { # FILE RETURN [VERSION of the symbols]
    sed 's/@.*//' | sort -u | awk -v value="$2" '
        $1 == "T" { print "int " $2 "(void) { return " value "; }" }
        $1 != "T" { print "const char " $2 "[16];" }' >"$stage/stand_in.c"
    [ $# = 2 ] || echo "$3 { *; };" >"$stage/versions"
    cc -shared -fPIC -w -Wl,-soname,"$(basename "$1")" ${3:+-Wl,--version-script="$stage/versions"} -o "$1" "$stage/stand_in.c"
}

# One GPU asks nothing of NCCL but to be there, and nothing of a cuBLASLt that does not start: for machines without
# them, some whose functions all fail. A quarter of the packed bytes would be two libraries that only stand in the way
# to FFmpeg's: Unicode's tables and a speech codec.
nm -D --undefined-only "$build/kinora-cuda.so" | awk '$2 ~ /^nccl/ { print "T", $2 }' |
    stand_in "$bundle/lib/last/libnccl.so.2/libnccl.so.2" 3
nm -D --undefined-only "$build/kinora-cuda.so" | awk '$2 ~ /^cublasLt/ { print "T", $2 }' |
    stand_in "$bundle/lib/last/libcublasLt.so.13/libcublasLt.so.13" 1 libcublasLt.so.13
for library in "$bundle"/lib/libicudata.so.* "$bundle"/lib/libcodec2.so.*; do
    [ -e "$library" ] || continue
    nm -D --defined-only "$library" | awk '{ print $2, $3 }' | stand_in "$library" 0
done

tar -C "$stage" -cf - kinora-gpu | xz -T0 -6 >"$out.part"
mv "$out.part" "$out"
bytes=$(stat -c %s "$out")
printf '%s: %d MiB\n' "$out" $((bytes >> 20))
[ "$bytes" -lt $((60 << 20)) ] || { echo "gpu_pack.sh: that is more than 60 MiB" >&2; exit 1; }
