#!/usr/bin/env bash
# `generate`, `eval` and `forward` on the CUDA backend, whose plugin is linked to libraries that need no GPU
# (tests/emulated), against the CPU: pixels within 1 of 255, the same verdicts, the same tensors within 1e-5; models that
# were trained on the one drawn on the other; and what is said where GPUs are missing, shared, full or not ours.
# Labels: slow
source "$(dirname "$0")/../shell.sh"
export KINORA_CUDA_PLUGIN=$build/kinora-cuda-emulated.so
[ -e "$KINORA_CUDA_PLUGIN" ] || {
    echo "built without CUDA: skipped"
    exit 77
}
same_pixels() { # FILE FILE
    "$build/tests/tool_pixels" "$1" "$2" >pixels.log 2>&1 || fail "$1 and $2: $(cat pixels.log)"
}
ranks() { # COUNT COMMAND OPTION...
    local count=$1 command=$2
    shift 2
    "${on_ranks[@]}" "$count" "$kinora" "$command" --model run "$@" </dev/null
}
generate() { "$kinora" generate --model run "$@"; }

# A few steps at a high rate: the pictures are nonsense in bright colours. Trained on the device.
make_shards 24 --size 16x16 --frames 4
cat >config.yaml <<'YAML'
run: {dir: run, seed: 1, device: cuda}
model: {hidden: 32, layers: 1, heads: 2, ffn: 64, text_dim: 16, text: {layers: 1, heads: 1}}
data: {shards: [shards], tokens: 32, clips: 4}
optimizer: {lr: 0.05, warmup_steps: 0, ema: 0}
train: {steps: 1, checkpoint_every: 1, precision: f32}
sample: {width: 16, height: 16, frames: 4, steps: 2, guidance: 5, prompts: []}
YAML
"$kinora" train config.yaml >train.log 2>&1
"$kinora" train config.yaml --set run.device=cpu --set run.dir=run-cpu >train-cpu.log 2>&1
expect 1 "computing on emulated device (GPU-0000" train.log

# ---- one video: the run's own device, and the CPU ----

prompt=(--prompt "a red circle moves left" --lossless)
generate --prompt "a blue square" --frames 1 --out first.png --device cpu >first.log 2>&1
generate --prompt "a blue square" --frames 8 --out before.mp4 --lossless --device cpu >before.log 2>&1
one() { # NAME OPTION...: on both
    local name=$1
    shift
    generate "${prompt[@]}" "$@" --device cpu --out "cpu-$name.mp4" >"cpu-$name.log" 2>&1
    generate "${prompt[@]}" "$@" --out "$name.mp4" >"$name.log" 2>&1
    expect 1 "computing on emulated device" "$name.log"
    expect 0 "computing on" "cpu-$name.log"
    same_pixels "cpu-$name.mp4" "$name.mp4"
}
one text --size 24x16 --guidance 3
one image --first-frame first.png --guidance 1 --solver heun --dtype f32
one extend --frames 8 --extend before.mp4
expect 1 '"instructions": "emulated device"' text.json
generate --from text.json --out again.mp4 >again.log 2>&1
cmp text.mp4 again.mp4 || fail "the device makes other bytes of the same"
generate --from text.json --device cpu --out elsewhere.mp4 >elsewhere.log 2>&1
expect 1 "warning: text.json was made with emulated device, what computes here is" elsewhere.log

# A model of the CPU, on the device.
"$kinora" generate --model run-cpu "${prompt[@]}" --out other-cpu.mp4 >other-cpu.log 2>&1
"$kinora" generate --model run-cpu "${prompt[@]}" --device cuda --out other.mp4 >other.log 2>&1
expect 0 "computing on" other-cpu.log
same_pixels other-cpu.mp4 other.mp4

# ---- ranks: one video on all of them, many on groups ----

export KINORA_EMULATED_REGISTERED=1
ranks 2 generate "${prompt[@]}" --size 24x16 --guidance 3 --mesh ulysses=2 --out shared.mp4 >shared.log 2>&1
expect 1 "computing on 2 GPUs, the first emulated device" shared.log
same_pixels cpu-text.mp4 shared.mp4
for i in 1 2 3; do echo "{\"prompt\": \"a red circle moves left, $i\", \"width\": $((8 * i))}"; done >prompts.jsonl
echo '{"prompt": "no picture", "first_frame": "none.png"}' >>prompts.jsonl
expect_exit 1 generate --prompts prompts.jsonl --lossless --device cpu --out alone
expect_exit 1 ranks 4 generate --mesh cfg=2 --prompts prompts.jsonl --lossless --device cuda --out many
expect 3 '"status":"made"' many/report.jsonl
for name in 0001 0002 0003; do same_pixels alone/$name.mp4 many/$name.mp4; done

# ---- eval and forward ----

"$kinora" eval --model run --count 3 --json --device cpu >eval-cpu.json 2>eval.log
ranks 2 eval --count 3 --json >eval.json 2>>eval.log
diff eval-cpu.json eval.json >&2 || fail "the device judges other clips than the CPU"
fixture=$root/tests/fixtures/transformer-odd
"$kinora" forward --model "$fixture" --inputs "$fixture/case.safetensors" --device cuda --gradients --out f.safetensors \
    >forward.log 2>&1
"$build/tests/tool_compare" f.safetensors "$fixture/case.safetensors" --forward 1e-5 --gradient 1e-4 >compare.log ||
    fail "forward on the device: $(cat compare.log)"

# ---- GPUs that are missing or shared ----

small=(--prompt x --out refused.mp4)
none=(env KINORA_CUDA_PLUGIN=none.so "$kinora")
refuse "has run.device: cuda, which --device overrides: none.so is missing" "${none[@]}" generate --model run "${small[@]}"
refuse "none.so is missing" "${none[@]}" eval --model run --count 1 --device cuda
refuse "none.so is missing" "${none[@]}" forward --model "$fixture" --inputs "$fixture/case.safetensors" --device cuda --out f
refuse '"gpu" is not one of auto|cpu|cuda' generate --device gpu "${small[@]}"
"${none[@]}" generate --model run --device auto "${small[@]}" >auto.log 2>&1 || fail "auto: $(cat auto.log)"
expect 1 "computing on the CPU: none.so is missing" auto.log
rm refused.mp4 refused.json

[ -n "$(ldconfig -p | grep libcuda.so.1)" ] ||
    refuse "there is no NVIDIA driver (libcuda.so.1), which GPUs need" env -u KINORA_CUDA_PLUGIN "$kinora" generate --model run "${small[@]}"
KINORA_EMULATED_DEVICES=0 refuse "looking for GPUs failed in CUDA: no CUDA-capable device is detected" generate "${small[@]}"
host=$(hostname)
KINORA_EMULATED_DEVICES=1 refuse "rank 0 and rank 1 would share one GPU, on host $host: emulated device (GPU-0000" \
    ranks 2 generate --mesh cfg=2 "${small[@]}"
[ ! -e refused.mp4 ] || fail "something was made before that was said"
KINORA_EMULATED_DEVICES=1 ranks 2 eval --count 1 --device auto >auto.txt 2>auto.log
expect 1 "computing on the CPU: rank 0 and rank 1 would share one GPU" auto.log
# Ranks that see one GPU each, their own, as Slurm may arrange it.
sees() { echo -n 1 -x KINORA_EMULATED_DEVICES=1 -x KINORA_EMULATED_FIRST="$1"; }
# shellcheck disable=SC2046 # options
"${on_ranks[@]}" $(sees 4) "$kinora" eval --model run --count 1 : -n $(sees 6) "$kinora" eval --model run --count 1 \
    </dev/null >own.txt 2>own.log
expect 1 "computing on 2 GPUs" own.log

# ---- plugins that are none ----

plugin() { # PART FILE
    KINORA_CUDA_PLUGIN=$2 refuse "$1" generate "${small[@]}"
}
echo "no library" >text.so
plugin "cannot open the plugin for GPUs: $work/text.so: " text.so
plugin "cannot open the plugin for GPUs: $work: " .
compile() { cc -shared -fPIC -x c -o "$1" - <<<"$2"; }
compile foreign.so 'int answer = 42;'
plugin "foreign.so is no plugin of this kinora, since it has no kn_cuda_interface: build both together" foreign.so
compile older.so 'const char *kn_cuda_interface(void) { return "older"; } int kn_cuda_open(void) { return *(int *)0; }'
plugin "older.so is of another version than this program: build both together" older.so
compile newer.so 'void kn_of_tomorrow(void); void *kn_cuda_open = (void *)kn_of_tomorrow;'
plugin "undefined symbol: kn_of_tomorrow, which this kinora does not have: build both together" newer.so

# ---- GPUs that are full, or fail ----

# Whichever piece of memory is not to be had, it is named, and nothing is made.
for ((n = 1; n <= 40; n++)); do
    status=0
    KINORA_EMULATED_CUDA=cudaMalloc:$n generate "${small[@]}" >full.log 2>&1 || status=$?
    [ $status != 0 ] || break
    [ $status = 1 ] && [ "$(grep -c 'error: ' full.log)" = 1 ] && [ ! -e refused.mp4 ] ||
        fail "allocation $n failed and it ended with $status: $(cat full.log)"
    grep -o "GPU 0 has no room for .*: [0-9]* MiB wanted, [0-9]* of [0-9]* MiB free" full.log >>full.txt ||
        fail "allocation $n: $(cat full.log)"
done
[ "$n" -gt 6 ] && [ "$n" -lt 40 ] || fail "$n allocations"
expect 1 "the step's intermediate values" full.txt
KINORA_EMULATED_MEMORY=42000000 refuse "rank 0: GPU 0 has no room for the weights" ranks 2 generate --mesh cfg=2 "${small[@]}"
# Of many videos those are made that fit.
printf '%s\n' '{"prompt": "a"}' '{"prompt": "b", "width": 256, "height": 256}' >sizes.jsonl
KINORA_EMULATED_MEMORY=48000000 expect_exit 1 generate --prompts sizes.jsonl --out sizes
expect 1 '"name":"0001.mp4",.*"status":"made"' sizes/report.jsonl
expect 1 '"name":"0002.mp4",.*"status":"failed","reason":"GPU 0 has no room for' sizes/report.jsonl
KINORA_EMULATED_CUDA=cudaGetDeviceProperties:1 refuse "asking what the GPU is failed in CUDA: unknown error" generate "${small[@]}"
KINORA_EMULATED_CUDA=cudaLaunchKernel:20 refuse " failed in CUDA: unknown error, on GPU 0 of host $host (emulated device" generate "${small[@]}"
KINORA_EMULATED_CUDA=cudaMemcpyAsync:3 refuse "a copy to the GPU failed in CUDA: unknown error" generate "${small[@]}"
echo "device: generate, eval and forward agree, and say what is the matter"
