#!/usr/bin/env bash
# Everything that wants a GPU, in one go of less than eight minutes, into one report: the op table on hardware, parity with
# diffusers and with the CPU, the kernels of a step one by one, steps of Wan 1.3B, and PyTorch's beside them.
#   bench/gpu.sh [--emulated] [BUILD_FOLDER] [REPORT]
# It asks for a driver; bench/gpu_pack.sh packs the rest. Where cuBLASLt is found, in a toolkit or PyTorch's packages, a
# step also runs by our own products, else everything does, and fp8 is left out. PEER_PYTHON names a Python with torch
# and diffusers (python3), without which the peer is left out.
# --emulated: the same on the emulated device, with small sizes, to see that the script works. Fails where a check does.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
emulated=0
[ "${1:-}" != --emulated ] || { emulated=1; shift; }
if [ -x "$root/kinora" ]; then packed=$root; else packed=$root/build; fi
build=$(cd "${1:-$packed}" && pwd)
report=$(realpath -m "${2:-gpu-report.md}")
kinora=$build/kinora
python=${PEER_PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
failed=()

# ---- libraries: the packed ones, those of the system, of a toolkit, of Python's packages, stand-ins; for our own ----
libraries=$root/lib cached=$(ldconfig -p) products=cuBLASLt
[ "${KINORA_CUBLASLT:-}" != 0 ] || products=own
for library in libcudart.so.13 libcublasLt.so.13 libcudnn.so.9 libnccl.so.2; do
    grep -q "$library " <<<"$cached" && continue
    for folder in "${CUDA_HOME:-/usr/local/cuda}"/lib64 \
        $("$python" -c 'import site; print(*[f + "/nvidia/*/lib" for f in site.getsitepackages()])' 2>/dev/null); do
        [ -e "$folder/$library" ] && libraries+=:$folder && continue 2
    done
    [ -e "$root/lib/last/$library" ] || continue
    libraries+=:$root/lib/last/$library
    [ $library != libcublasLt.so.13 ] || products=own
done
ours() { LD_LIBRARY_PATH=$libraries "$@"; }
[ $emulated = 0 ] || export KINORA_CUDA_PLUGIN=$build/kinora-cuda-emulated.so

say() { printf '%s\n' "$@" | tee -a "$report"; }
section() { # TITLE COMMAND ...: what it prints goes into the report
    local title=$1 began=$SECONDS status=0
    shift
    say "" "## $title" '```'
    "$@" >section.log 2>&1 || status=$?
    tee -a "$report" <section.log
    case $status in
    0) say '```' "($((SECONDS - began)) s)" ;;
    77) say '```' "(skipped)" ;;
    *) say '```' "($((SECONDS - began)) s, FAILED with $status)" && failed+=("$title") ;;
    esac
}

machine() {
    [ $emulated = 1 ] || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    lscpu | sed -n 's/^Model name: */CPU: /p'
    nproc
}

op_table() {
    local words=(--gpu)
    [ $emulated = 0 ] || words=(--small)
    ours "$build/tests/test_ops_emulated" "${words[@]}" >ops.log 2>&1 && tail -n 2 ops.log && return 0
    grep -v 'OK \]\|RUN  ' ops.log | tail -n 60
    return 1
}

# A test of the emulated device that can do the same on a GPU.
on_gpu() { # PROGRAM
    local words=(--gpu)
    [ $emulated = 0 ] || words=()
    ours "$build/tests/$1" "${words[@]}" 2>&1 | grep -v ' RUN  \| OK \]'
}

# What diffusers computed from the same weights, gradients included.
diffusers_parity() {
    local fixture name bounds dtype status=0
    for fixture in "$root"/tests/fixtures/transformer-*; do
        name=$(basename "$fixture")
        for dtype in f32 bf16; do
            bounds=(--forward 1e-5 --gradient 1e-4)
            [ $dtype = f32 ] || bounds=(--report "$fixture/case.json" --factor 1.5)
            echo "$name $dtype"
            ours "$kinora" forward --device cuda --model "$fixture" --inputs "$fixture/case.safetensors" --gradients \
                --dtype $dtype --out out.safetensors || { status=1; continue; }
            ours "$build/tests/tool_compare" out.safetensors "$fixture/case.safetensors" "${bounds[@]}" >compare.log ||
                { grep -v "^ok " compare.log; status=1; }
            tail -n 1 compare.log
        done
    done
    return $status
}

# Losses and gradient norms of a few steps, side by side.
training_parity() {
    ours "$kinora" synth moving-shapes --out videos --count 24 >/dev/null 2>&1
    ours "$kinora" prep --out shards --patch 2,8,8 --captions videos/captions.csv videos >/dev/null 2>&1
    cat >small.yaml <<'YAML'
run: {seed: 3}
model: {hidden: 128, layers: 2, heads: 2, ffn: 256, patch: [2, 8, 8], text_dim: 32, text: {layers: 1, heads: 2}}
data: {shards: [shards], tokens: 512, clips: 8}
optimizer: {lr: 2.0e-3, warmup_steps: 5}
train: {steps: 4, packs: 2, checkpoint_every: 4}
YAML
    local case name precision optimizer most device
    for case in "adamw f32 1e-5" "muon f32 1e-4" "adamw bf16 3e-3"; do
        read -r optimizer precision most <<<"$case"
        for device in cpu cuda; do
            name=$optimizer-$precision-$device
            ours "$kinora" train small.yaml --set run.dir="$name" --set run.device=$device \
                --set optimizer.name="$optimizer" --set train.precision="$precision" >"$name.log" 2>&1 ||
                { tail -n 3 "$name.log"; return 1; }
            sed -n 's/.*"step":\([0-9]*\),"loss":\([-0-9.e+]*\),.*"gradient_norm":\([-0-9.e+]*\).*/\1 \2 \3/p' \
                "$name/metrics.jsonl" >"$name.txt"
        done
        paste "$optimizer-$precision-cpu.txt" "$optimizer-$precision-cuda.txt" | awk -v most="$most" -v name="$case" '
            function apart(a, b) { return (a > b ? a - b : b - a) / (a > b ? a : b) }
            { for (i = 2; i <= 3; i++) { d = apart($i, $(i + 3)); worst = d > worst ? d : worst; bad += !(d <= most) } }
            END { print name ": losses and norms of " NR " steps apart by at most " worst; exit bad > 0 || NR == 0 }'
    done
}

wan=(--hidden 1536 --layers 30 --heads 12 --ffn 8960 --batch 1 --text 512)
[ $emulated = 0 ] || wan=(--hidden 64 --layers 1 --heads 2 --ffn 128 --batch 1 --text 16)
step() { # MODE TOKENS [option ...]
    local mode=$1 tokens=$2
    shift 2
    [ $emulated = 0 ] || tokens=64
    ours "$kinora" bench step "${wan[@]}" --mode "$mode" --tokens "$tokens" --steps 5 --device cuda "$@" 2>&1
}

steps() {
    local status=0 case
    for case in "train 4096" "train 8192" "train 8192 --dtype fp8" "sample 4096" "sample 8192" "sample 32760"; do
        [[ $products != own || $case != *fp8 ]] || continue
        # shellcheck disable=SC2086 # several words
        step $case || status=1
    done
    step train 32760 --steps 3 || step train 32760 --recompute --steps 3 || status=1
    return $status
}

own_kernels() ( export KINORA_CUBLASLT=0 && kernels "$@" )
kernels() { KINORA_PROFILE=1 step "$@" --steps 2 || KINORA_PROFILE=1 step "$@" --recompute --steps 2; }

peer() {
    "$python" "$root/bench/peers/wan_torch.py" --device cuda --hidden 1536 --layers 30 --heads 12 --ffn 8960 --batch 1 \
        --steps 5 --mode "$1" --tokens "$2"
}

: >"$report"
say "# Kinora on $([ $emulated = 1 ] && echo "the emulated device" || echo "a GPU")"
say "" "Products: by $([ $products = own ] && echo "our own kernels" || echo cuBLASLt)."
section "The machine" machine
section "Op table" op_table
section "Products: fused and of 8 bits" on_gpu test_products
section "Runs: recorded against single nodes" on_gpu test_replay
[ ! -x "$build/tests/test_cudnn_gpu" ] || section "Attention: cuDNN against our own" ours "$build/tests/test_cudnn_gpu"
section "Parity with diffusers" diffusers_parity
section "Training: CPU against device" training_parity
section "Sampling: CPU against device" on_gpu test_sampler_device
section "Steps of Wan 1.3B" steps
section "Kernels of a training step, 8,192 tokens" kernels train 8192
[ $products = own ] || section "Kernels of a training step, 8,192 tokens, our own products" own_kernels train 8192
section "Kernels of a training step, 32,760 tokens" kernels train 32760
section "Kernels of a denoising step, 32,760 tokens" kernels sample 32760
if [ $emulated = 0 ] && "$python" -c 'import torch, diffusers' 2>/dev/null; then
    section "PyTorch, training, 8,192 tokens" peer train 8192
    section "PyTorch, denoising, 8,192 tokens" peer sample 8192
else
    say "" "PyTorch and diffusers are not here: no peer."
fi
say "" "$SECONDS s in all; failed: ${failed[*]:-nothing}"
[ ${#failed[@]} = 0 ]
