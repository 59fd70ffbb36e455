# Sourced by the tests of this folder, whose first argument is the build folder: a small world prepared once, and short
# ways to train on it.
source "$(dirname "${BASH_SOURCE[0]}")/../shell.sh"

prepare() { # COUNT
    make_shards "$1"
    cat >small.yaml <<YAML
run: {seed: 3}
model: {hidden: 64, layers: 2, heads: 2, ffn: 128, patch: [2, 8, 8], text_dim: 32, text: {layers: 1, heads: 2}}
flow: {given: {none: 4, first: 1, first_frames: 1, both_ends: 1, random: 1}}
data: {shards: [shards], tokens: 512, clips: 8, validation_clips: 8}
optimizer: {lr: 2.0e-3, warmup_steps: 5}
train: {steps: 12, packs: 2, checkpoint_every: 4, keep_last: 0, precision: bf16, threads: 1, log_every: 4, validate_every: 6}
YAML
}

train() { # RUN [option ...]
    local run=$1
    shift
    "$kinora" train small.yaml --set run.dir="$run" "$@" >>"$run.log" 2>&1
}

# The hashes of a checkpoint's tensors, without what names the run.
tensors() { # RUN STEP
    (cd "$1/checkpoints/step-$(printf %08d "$2")" && sha256sum rank-*.safetensors)
}

# The losses of a run, one a line.
losses() {
    sed -n 's/.*"step":\([0-9]*\),"loss":\([-0-9.e+]*\),.*/\1 \2/p' "$1/metrics.jsonl"
}
