#!/usr/bin/env bash
# Resuming continues bit for bit: after an orderly end, after SIGTERM, after kill -9, and with damaged checkpoints.
# Labels: slow
source "$(dirname "$0")/run.sh"
prepare 64

train whole
train whole_again
[ "$(tensors whole 12)" = "$(tensors whole_again 12)" ] || fail "two runs of one YAML differ"
[ "$(losses whole)" = "$(losses whole_again)" ] || fail "two runs of one YAML log other losses"
train threads --set train.threads=2
[ "$(tensors whole 12)" = "$(tensors threads 12)" ] || fail "1 and 2 threads differ"
train other_seed --set run.seed=4
[ "$(tensors whole 12)" != "$(tensors other_seed 12)" ] || fail "another seed gives the same weights"

# N, stop, N more: the first run ends at a checkpoint of its own.
cp -r whole stopped
rm -rf stopped/checkpoints/step-00000008 stopped/checkpoints/step-00000012
train stopped --resume
[ "$(tensors whole 12)" = "$(tensors stopped 12)" ] || fail "4 steps and 8 more are not 12 steps"
[ "$(losses whole)" = "$(losses stopped)" ] || fail "the resumed run's metrics differ"

# A signal: a checkpoint, exit code 3, and the same end.
code=0
"$kinora" train small.yaml --set run.dir=term --set train.steps=4000 >>term.log 2>&1 & # appended to by the other, too
pid=$!
until [ -s term/metrics.jsonl ] && [ "$(wc -l <term/metrics.jsonl)" -ge 5 ]; do
    kill -0 $pid 2>/dev/null || fail "the run ended before its signal"
    sleep 0.05
done
# Meanwhile nobody else may train in its folder: its checkpoints and metrics are its own.
lines=$(wc -l <term/metrics.jsonl)
if train term --set train.steps=4 --resume; then fail "two trained in one folder"; fi
grep -q "term is being trained by another kinora, process $pid on" term.log || fail "who trains in the folder is not named"
[ "$(wc -l <term/metrics.jsonl)" -ge "$lines" ] || fail "the refused one touched the metrics"
kill -TERM $pid
wait $pid || code=$?
[ $code = 3 ] || fail "SIGTERM ended with $code, not 3"
grep -q -- "--resume" term.log || fail "SIGTERM's sentence does not say how to go on"
last=$(ls term/checkpoints | tail -1)
[ -n "$last" ] || fail "SIGTERM left no checkpoint"

# kill -9 at any moment.
"$kinora" train small.yaml --set run.dir=killed >killed.log 2>&1 &
pid=$!
until [ -d killed/checkpoints/step-00000004 ]; do
    kill -0 $pid 2>/dev/null || break
    sleep 0.02
done
kill -9 $pid 2>/dev/null || true
wait $pid 2>/dev/null || true
train killed --resume
[ "$(tensors whole 12)" = "$(tensors killed 12)" ] || fail "after kill -9 the run ends elsewhere"
[ "$(losses whole)" = "$(losses killed)" ] || fail "after kill -9 the metrics differ"

# A damaged newest checkpoint is named and passed over.
cp -r whole damaged
file=damaged/checkpoints/step-00000012/rank-00000.safetensors
printf '\377' | dd of=$file bs=1 seek=$(($(stat -c %s $file) / 2)) conv=notrunc 2>/dev/null
train damaged --resume
grep -q "step-00000012" damaged.log || fail "the damaged checkpoint is not named"
[ "$(tensors whole 12)" = "$(tensors damaged 12)" ] || fail "after damage the run ends elsewhere"

# Without --resume a run is not overwritten.
if train whole; then fail "a run was overwritten"; fi
grep -q "already holds a run" whole.log || fail "the refusal does not say why"
echo "resuming: all promises hold"
