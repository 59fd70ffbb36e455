#!/usr/bin/env bash
# Labels: slow
# Saving beside training: a full disk is a warning and training goes on, on one and on two ranks; what stays is what was
# asked for; and `kinora checkpoint` lists, verifies, consolidates and prunes what training left.
source "$(dirname "$0")/run.sh"
prepare 32
common=(--set train.steps=60 --set train.checkpoint_every=4 --set train.validate_every=0 --set data.validation_clips=0)

# keep_last and keep_every; metrics tell of every checkpoint.
train whole "${common[@]}" --set train.keep_last=2 --set train.keep_every=20
[ "$(cd whole/checkpoints && echo *)" = "step-00000020 step-00000040 step-00000056 step-00000060" ] ||
    fail "not the checkpoints that should stay: $(ls whole/checkpoints)"
[ "$(grep -c '"checkpoint":{"held_seconds":[0-9.e-]*,"copied_seconds":' whole/metrics.jsonl)" = 15 ] || fail "metrics do not tell of 15 checkpoints"

# ---- a full disk ----
await() { # PATTERN FILE
    wait_for 30 grep -q "$1" "$2" || fail "$2 never says: $1"
}
full_disk() { # RANKS: 1 or 2
    local pid code=0 log=full-$1.log
    local command=("$kinora")
    [ "$1" = 1 ] || command=("${on_ranks[@]}" "$1" "$kinora")
    "${command[@]}" train small.yaml --set run.dir="disk/run-$1" "${common[@]}" \
        --set train.steps=120 --set train.keep_last=2 >"$log" 2>&1 &
    pid=$!
    await "step 12: checkpoint" "$log"
    dd if=/dev/zero of=disk/filler bs=64k 2>/dev/null || true # until there is no room
    await "the checkpoint could not be saved, training goes on and former ones stand" "$log"
    "$kinora" checkpoint verify "disk/run-$1" >/dev/null || fail "the full disk damaged a checkpoint"
    rm disk/filler
    wait $pid || code=$?
    [ $code = 0 ] || fail "training on a full disk ended with $code"
    local sentence='cannot write .*/rank-0000[01].safetensors: No space left on device'
    [ "$1" = 1 ] || sentence="rank [01]: $sentence"
    local warnings saves
    warnings=$(grep -c "could not be saved.*$sentence" "$log") || fail "the full disk is not named: $(grep warning "$log")"
    saves=$(grep -c "checkpoint of .* saved" "$log")
    [ $((warnings + saves)) = 30 ] || fail "$saves saves and $warnings warnings are not 30"
    [ "$(losses "disk/run-$1" | wc -l)" = 120 ] || fail "the full disk took lines from the metrics"
    [ -z "$(find "disk/run-$1/checkpoints" -name '.tmp-*')" ] || fail "the full disk left temporaries"
    "$kinora" checkpoint verify "disk/run-$1" >/dev/null || fail "not every checkpoint is whole"
}
if mount_disk 24m disk; then
    full_disk 1
    full_disk 2
else
    echo "skipped: the full disk needs root and a tmpfs"
fi

# ---- kinora checkpoint ----
checkpoint() { "$kinora" checkpoint "$@"; }
refuse_checkpoint() { # PART STATUS ARGUMENT...
    refuse "$1" checkpoint "${@:3}"
    [ $status = "$2" ] || fail "checkpoint ${*:3} ended with $status"
}
checkpoint list whole >list.txt
[ "$(awk '$NF == "whole" { print $1 }' list.txt | paste -sd' ')" = "20 40 56 60" ] || fail "list: $(cat list.txt)"
checkpoint list whole --json >list.json
[ "$(sed -n 's/.*"step": \([0-9]*\).*/\1/p' list.json | paste -sd' ')" = "20 40 56 60" ] || fail "list: $(cat list.json)"
[ "$(grep -c '"whole": true' list.json)" = 4 ] || fail "list: $(cat list.json)"
checkpoint verify whole >verify.txt || fail "verify found damage in a good run"
[ "$(grep -c "every hash holds" verify.txt)" = 4 ] || fail "verify: $(cat verify.txt)"

"${on_ranks[@]}" 2 "$kinora" train small.yaml --set run.dir=two --set train.steps=4 \
    --set train.validate_every=0 >two.log 2>&1
checkpoint consolidate two --out one-file >/dev/null
[ "$(ls one-file)" = "$(printf 'manifest.json\nmanifest.json.sha256\nrank-00000.safetensors')" ] || fail "not one file"
(cd one-file && sha256sum --quiet -c manifest.json.sha256) || fail "sha256sum does not agree"
mkdir -p joined/checkpoints && mv one-file joined/checkpoints/step-00000004 && cp two/metrics.jsonl joined
train joined --set train.steps=8 --set train.validate_every=0 --resume
train two --set train.steps=8 --set train.validate_every=0 --resume
[ "$(tensors joined 8)" = "$(tensors two 8)" ] || fail "from one file the run goes on elsewhere"

checkpoint prune whole --keep-last 1 --keep-every 40 --dry-run >prune.txt
[ "$(grep -c "would go" prune.txt)" = 2 ] && [ "$(ls whole/checkpoints | wc -l)" = 4 ] || fail "dry run: $(cat prune.txt)"
file=whole/checkpoints/step-00000060/rank-00000.safetensors
printf '\377' | dd of=$file bs=1 seek=$(($(stat -c %s $file) / 2)) conv=notrunc 2>/dev/null
refuse_checkpoint "1 of 4 checkpoints of whole is damaged" 1 verify whole
grep -q "$file is damaged: its SHA-256" out.txt || fail "verify does not name the file: $(cat out.txt)"
checkpoint prune whole --keep-last 1 >prune.txt 2>/dev/null
[ "$(ls whole/checkpoints | paste -sd' ')" = "step-00000056 step-00000060" ] || fail "prune: $(ls whole/checkpoints)"

refuse_checkpoint "neither a checkpoint nor a run" 2 list videos
mkdir -p young/checkpoints
refuse_checkpoint "young has no checkpoint yet" 2 verify young
refuse_checkpoint "young/checkpoints has no checkpoint yet" 2 prune young --keep-last 1
refuse_checkpoint "is one checkpoint: name the run" 2 prune whole/checkpoints/step-00000056 --keep-last 1
refuse_checkpoint "did you mean verify" 2 verfy whole
refuse_checkpoint "name it with --out" 2 consolidate whole
refuse_checkpoint "--dry-run does not go with list" 2 list whole --dry-run
refuse_checkpoint "what stays" 2 prune whole
checkpoint --help >help.txt
grep -q "kinora checkpoint prune runs/first --keep-last 3" help.txt || fail "no examples in the help"
echo "saving: all promises hold"
