#!/usr/bin/env bash
# Labels: slow
# Steps that go wrong: a spike is left out or rolled back as configured, the data go on behind it, a resumed run judges
# as the unbroken one, and what is not finite never becomes a checkpoint.
source "$(dirname "$0")/run.sh"
prepare 32
# A learning rate so small that the losses only follow the data: spikes are then where they are in any run.
flat=(--set optimizer.lr=1e-7 --set optimizer.lr_other=1e-7 --set optimizer.schedule=constant --set train.packs=1
    --set train.validate_every=0 --set train.checkpoint_every=10 --set data.validation_clips=0)
field() { sed -n "s/^{\"step\":$2,.*\"$3\":\([-0-9.e+]*\).*/\1/p" "$1/metrics.jsonl"; } # RUN STEP KEY

# Where are the two largest spikes of 40 steps? Between them lies the limit that finds one.
train seen "${flat[@]}" --set train.steps=40
[ -z "$(field seen 20 zscore)" ] || fail "a trend of 19 losses was believed"
read -r limit spike < <(for step in $(seq 21 40); do echo "$(field seen "$step" zscore) $step"; done | sort -gr |
    awk 'NR == 1 { first = $1; step = $2 } NR == 2 { printf "%.6f %d\n", (first + $1) / 2, step }')
[ "$spike" -gt 20 ] || fail "no spike is to be found"
zscore=(--set train.spike_zscore="$limit")

# warn: told, and nothing else.
train warned "${flat[@]}" "${zscore[@]}" --set train.steps=40
grep -q "warning: step $spike: its loss is far above the trend" warned.log || fail "the spike of step $spike is not told"
[ "$(tensors seen 40)" = "$(tensors warned 40)" ] || fail "a warning changes the weights"
grep -q "^{\"step\":$spike,.*\"fault\":\"spike\"}" warned/metrics.jsonl || fail "metrics do not name the spike"

# skip: the step leaves every weight, moment and average as it was.
train skipped "${flat[@]}" "${zscore[@]}" --set train.on_spike=skip --set train.steps="$spike"
train before "${flat[@]}" "${zscore[@]}" --set train.steps=$((spike - 1))
[ "$(tensors skipped "$spike")" = "$(tensors before $((spike - 1)))" ] || fail "a step that was left out changed something"
grep -q "^{\"step\":$spike,.*\"skipped\":true}" skipped/metrics.jsonl || fail "metrics do not tell what was left out"

# rollback: back to the checkpoint, on with the data behind the spike.
train rolled "${flat[@]}" "${zscore[@]}" --set train.on_spike=rollback --set train.steps=40 --set train.keep_last=0
to=$(((spike - 1) / 10 * 10))
grep -q "step $spike went wrong (spike): back to the checkpoint of step $to" rolled.log || fail "the rollback is not told"
[ "$(grep -c rollback rolled/metrics.jsonl)" = 1 ] || fail "metrics do not tell of one rollback"
[ "$(losses rolled | wc -l)" = 40 ] || fail "the metrics of a run with a rollback are not 40 steps"
position=$(sed -n 's/.*"data_step": \([0-9]*\).*/\1/p' rolled/checkpoints/step-00000040/manifest.json)
[ "$position" = $((40 + spike - to)) ] || fail "the data stand at $position, not at $((40 + spike - to))"
if [ "$spike" -lt 40 ]; then # the step after the rollback sees what the one behind the spike saw
    awk -v a="$(field rolled $((to + 1)) loss)" -v b="$(field seen $((spike + 1)) loss)" \
        'BEGIN { d = (a - b) / b; exit !(d < 1e-3 && d > -1e-3) }' || fail "the data did not go on behind the spike"
fi

# A resumed run is the unbroken one: the trend and the place in the data are part of the checkpoint.
cp -r rolled again
rm -rf again/checkpoints/step-00000040
train again "${flat[@]}" "${zscore[@]}" --set train.on_spike=rollback --set train.steps=40 --set train.keep_last=0 --resume
[ "$(tensors rolled 40)" = "$(tensors again 40)" ] || fail "resuming after a rollback ends elsewhere"
for step in 31 40; do
    [ "$(field rolled $step zscore)" = "$(field again $step zscore)" ] || fail "the trend of step $step is another"
done

# No end of spikes: after three attempts from one checkpoint a sentence.
if train never "${flat[@]}" --set train.spike_zscore=0.01 --set train.on_spike=rollback --set train.steps=40; then
    fail "endless rollbacks ended well"
fi
grep -q "and so did 3 attempts from the checkpoint of step 20" never.log || fail "the end of rollbacks is not explained"
[ "$(grep -c '"rollback"' never/metrics.jsonl)" = 3 ] || fail "metrics do not tell of three rollbacks"

# Not finite: nothing of it is saved, and the newest checkpoint stays.
broken=(--set optimizer.name=adamw --set optimizer.lr=100 --set optimizer.lr_other=100 --set optimizer.clip_norm=0
    --set optimizer.warmup_steps=8 --set train.precision=f32 --set train.checkpoint_every=1 --set train.steps=12)
if train poisoned "${flat[@]}" "${broken[@]}"; then fail "a run that was not finite ended well"; fi
grep -q "step 12, the last, was not finite and is not saved" poisoned.log || fail "it is not said why nothing was saved"
newest=$(ls poisoned/checkpoints | tail -1)
good=$(sed -n 's/^{"step":\([0-9]*\),"loss":[0-9.e+-]*,"gradient_norm":[0-9.e+-]*,.*/\1/p' poisoned/metrics.jsonl | tail -1)
[ "$newest" = "step-$(printf %08d "$good")" ] || fail "the newest checkpoint is $newest, the last good step $good"
if train returned "${flat[@]}" "${broken[@]}" --set train.on_nonfinite=rollback; then fail "poison ended well"; fi
grep -q "went wrong (not_finite): back to the checkpoint" returned.log || fail "no rollback where it was not finite"
grep -q "and so did 3 attempts" returned.log || fail "rollbacks of what is never finite do not end"
echo "faults: all promises hold"
