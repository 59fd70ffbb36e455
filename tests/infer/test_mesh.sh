#!/usr/bin/env bash
# Labels: slow
# `kinora generate --mesh` and `eval --mesh` under mpirun: 2 and 4 ranks make the pixels of one process, to within 1 of
# 255, of one video on all ranks and of many on groups of ranks; what one rank cannot do, all give up and go on.
source "$(dirname "$0")/../shell.sh"
ranks() { # COUNT COMMAND OPTION...; mpirun would read the lists of layouts below
    local count=$1 command=$2
    shift 2
    "${on_ranks[@]}" "$count" "$kinora" "$command" --model run "$@" </dev/null
}
generate() { "$kinora" generate --model run "$@"; }
same_pixels() { # FILE FILE
    "$build/tests/tool_pixels" "$1" "$2" >pixels.log 2>&1 || fail "$1 and $2: $(cat pixels.log)"
}

# A few steps at a high rate: the pictures are nonsense in bright colours.
make_shards 24 --size 16x16 --frames 4
cat >config.yaml <<'YAML'
run: {dir: run, seed: 1}
model: {hidden: 48, layers: 2, heads: 3, ffn: 64, text_dim: 16}
data: {shards: [shards], tokens: 64, clips: 8}
optimizer: {lr: 0.02, warmup_steps: 0, ema: 0}
train: {steps: 20, checkpoint_every: 20, precision: f32}
sample: {width: 16, height: 16, frames: 4, steps: 4, guidance: 5, prompts: []}
YAML
"$kinora" train config.yaml >train.log 2>&1

# ---- one video on all ranks ----

one=(--prompt "a red circle moves left" --size 40x24 --frames 10 --lossless)
generate "${one[@]}" --out one.mp4 >one.log 2>&1
while read -r count mesh; do
    ranks "$count" generate --mesh "$mesh" "${one[@]}" --out "$mesh.mp4" >"one-$mesh.log" 2>&1
    same_pixels one.mp4 "$mesh.mp4"
    expect 1 "^$mesh.mp4$" "one-$mesh.log"
done <<'LAYOUTS'
2 ring=2
2 tensor=2
2 shard=2
4 ulysses=2,cfg=2
4 ring=2,ulysses=2,zero=3
LAYOUTS

# ---- many on groups of ranks ----

"$kinora" generate --from one.json --out first.png --frames 1 --size 16x16 >from.log 2>&1
for i in 1 2 3 4; do
    echo "{\"prompt\": \"a red circle moves left, $i\", \"width\": $((8 * i)), \"steps\": $((3 + i % 2))}"
done >prompts.jsonl
cat >>prompts.jsonl <<'JSONL'
{"prompt": "one picture", "frames": 1, "out": "0005.png", "lossless": false}
{"prompt": "from a picture", "first_frame": "first.png"}
{"prompt": "no guidance", "guidance": 1}
{"prompt": "no picture", "first_frame": "none.png"}
JSONL
expect_exit 1 generate --prompts prompts.jsonl --lossless --out alone
while read -r count groups mesh; do
    expect_exit 1 ranks "$count" generate --mesh "$mesh" --prompts prompts.jsonl --lossless --out "many-$mesh"
    expect 1 'error: 1 of 8 videos could not be made' exit.log
    expect 7 '"status":"made"' "many-$mesh/report.jsonl"
    expect 1 '"status":"failed","reason":".*none.png: No such file' "many-$mesh/report.jsonl"
    for name in 0001.mp4 0002.mp4 0003.mp4 0004.mp4 0005.png 0006.mp4 0007.mp4; do
        same_pixels alone/$name "many-$mesh/$name"
    done
    [ "$(grep -o '"rank":[0-9]*' "many-$mesh/report.jsonl" | sort -u | wc -l)" = "$groups" ] ||
        fail "not all $groups groups of --mesh $mesh have made something"
    [ -s "many-$mesh/sheet.png" ] || fail "no sheet of many-$mesh"
done <<'LAYOUTS'
4 2 cfg=2
2 1 shard=2
4 1 ring=2,ulysses=2
LAYOUTS

# Two ranks of a group in folders of their own. The second one misses the picture: both leave it out. They write in turns.
mkdir -p here/half there/half
cp first.png here
printf '%s\n' '{"prompt": "x", "first_frame": "first.png"}' '{"prompt": "a"}' '{"prompt": "b"}' '{"prompt": "c"}' >picture.jsonl
share=("$kinora" generate --model "$work/run" --mesh ulysses=2 --prompts "$work/picture.jsonl" --out half)
expect_exit 1 "${on_ranks[@]}" 1 --wdir "$work/here" "${share[@]}" : \
    -n 1 --wdir "$work/there" "${share[@]}"
expect 1 '"status":"failed","reason":"rank 1: .*first.png: No such file' here/half/report.jsonl
expect 3 '"status":"made"' here/half/report.jsonl
[ "$(echo here/half/*.mp4 there/half/*.mp4)" = "here/half/0002.mp4 here/half/0004.mp4 there/half/0003.mp4" ] ||
    fail "two ranks wrote $(echo ./*here/half/*.mp4)"

# ---- eval ----

"$kinora" eval --model run --count 7 --json >alone.json 2>eval.log
ranks 3 eval --count 7 --json >shared.json 2>>eval.log
diff alone.json shared.json >&2 || fail "three ranks judge other clips than one"
ranks 4 eval --count 7 --mesh cfg=2 --sheet eval.png >shared.txt 2>>eval.log
expect 1 '7 clips of held-out captions' shared.txt
[ -s eval.png ] || fail "no sheet of eval"

# ---- what does not fit ----

refuse_mesh() { # PART COMMAND...
    refuse "$@" --prompt x --out refused.mp4
    [ ! -e refused.mp4 ] || fail "something was made before \"$1\" was said"
}
refuse_mesh 'mesh ulysses=3: 2 ranks cannot be cut into groups of 3' ranks 2 generate --mesh ulysses=3
refuse_mesh "parallel.tensor is 4, more than the model's 3 heads" ranks 4 generate --mesh tensor=4
refuse_mesh '2 ranks are 2 groups of 1, but there is one video' ranks 2 generate --mesh data=2
refuse_mesh 'a mesh has no axis "ulises"; did you mean ulysses?' generate --mesh ulises=2
refuse_mesh 'cfg=3: cfg is a number from 1 to 2' generate --mesh cfg=3
refuse_mesh '"ring" is no part of a mesh' generate --mesh ring
