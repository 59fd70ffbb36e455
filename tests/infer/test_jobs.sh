#!/usr/bin/env bash
# Many videos: made by one process, by ranks or by processes that know nothing of each other, the bytes are the same; a
# killed process loses what it was making and nothing else; what stands is skipped, what cannot be made is reported.
source "$(dirname "$0")/../shell.sh"
pids=()
clean_up() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null; done
}

generate() { "$kinora" generate --model run "$@"; }
ranks() { # COUNT COMMAND...
    local count=$1
    shift
    "${on_ranks[@]}" "$count" "$kinora" generate --model run "$@"
}
count() { # PATTERN FILE
    grep -c -- "$1" "$2" || true
}
same() { # FOLDER FOLDER: every video, description and the sheet
    diff -r -x report.jsonl -x .kinora-job "$1" "$2" || fail "$1 and $2 differ"
}
wait_for_claim() { # FOLDER: somebody holds the lock of its first request
    local lock
    for _ in $(seq 3000); do
        lock=":$(stat -c %i "$1/.kinora-job" 2>/dev/null || true) 16777216 "
        ! grep -qF "$lock" /proc/locks || return 0
        sleep 0.01
    done
    fail "nobody claims what is to be made in $1"
}

make_shards 24 --size 16x16 --frames 4
cat >config.yaml <<'YAML'
run: {dir: run, seed: 1}
model: {hidden: 32, layers: 1, heads: 1, ffn: 64, text_dim: 16}
data: {shards: [shards], tokens: 64, clips: 8}
train: {steps: 2, checkpoint_every: 2}
sample: {width: 16, height: 16, frames: 4, steps: 4, prompts: []}
YAML
"$kinora" train config.yaml >train.log 2>&1

# ---- the same bytes, whoever makes them ----

for i in 1 2 3 4 5 6; do
    echo "{\"prompt\": \"a red circle moves left, $i\"}"
    echo "{\"prompt\": \"a blue square, $i\", \"width\": $((8 * i)), \"steps\": $((2 + i % 2)), \"out\": \"sub/wide-$i.mp4\"}"
done >prompts.jsonl
cat >>prompts.jsonl <<'JSONL'
{"prompt": "a loop", "out": "loop.gif", "solver": "unipc"}
{"prompt": "pictures", "out": "pictures/"}
{"prompt": "numbered", "out": "numbered-%02d.png", "guidance": 1}
{"prompt": "one picture", "frames": 1}
JSONL

generate --prompts prompts.jsonl --out one >one.log 2>one-said.log
[ "$(wc -l <one/report.jsonl)" = 16 ] || fail "not one line a request"
expect 16 '"status":"made"' one/report.jsonl
expect 1 '16 made, 0 skipped, 0 failed' one-said.log
[ "$(wc -l <one.log)" = 17 ] || fail "not the names of 16 videos and a sheet were printed"
grep -q '^{"request":4,"name":"sub/wide-2.mp4","prompt":"a blue square, 2","seed":3,"status":"made","seconds":[0-9.e+-]*,"tokens":8,"host":".*","pid":[0-9]*,"rank":0,"time":"....-..-..T..:..:..Z"}$' \
    one/report.jsonl || fail "line 4: $(sed -n 4p one/report.jsonl)"
for frame in 0 3; do [ -s one/pictures/frame-000$frame.png ] || fail "no frame $frame"; done

for n in 2 3; do
    ranks $n --prompts prompts.jsonl --out "ranks$n" >"ranks$n.log" 2>&1
    same one "ranks$n"
    expect 16 '"status":"made"' "ranks$n/report.jsonl"
    expect 1 'made, 0 skipped' "ranks$n.log"
    for rank in $(seq 0 $((n - 1))); do
        [ "$(count "\"rank\":$rank" "ranks$n/report.jsonl")" -gt 1 ] || fail "rank $rank of $n was idle"
    done
done

for i in 1 2 3; do
    generate --prompts prompts.jsonl --out apart >"apart$i.log" 2>&1 &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || fail "one of three processes failed"; done
pids=()
same one apart
[ "$(wc -l <apart/report.jsonl)" = 16 ] || fail "not one line a request by three processes"

# ---- again: only what is missing or otherwise ----

inodes() { (cd one && stat -c '%n %i' ./*.mp4 sub/*.mp4 ./*.gif pictures/*); }
inodes >before.txt
rm one/0001.mp4 one/0003.json one/pictures/frame-0002.png
printf x >>one/sub/wide-2.mp4
sed -i '7s/circle/triangle/' prompts.jsonl
touch one/.tmp-0001.mp4-0123456789ab one/.tmp-mine.mp4-0123456789ab
makers=$(count '"time"' one/report.jsonl)
cp one/report.jsonl former.jsonl
generate --prompts prompts.jsonl --out one >again.log 2>&1
expect 1 '5 made, 11 skipped, 0 failed' again.log
expect "$makers" '"time"' one/report.jsonl
expect 1 '"name":"0007.mp4",.*"status":"made","reason":"made again: it was made with another prompt"' one/report.jsonl
expect 1 'made again: the video is not the one that was made"' one/report.jsonl
expect 2 'made again: the video cannot be read"' one/report.jsonl
inodes >after.txt
[ "$(comm -13 <(sort before.txt) <(sort after.txt) | grep -c mp4)" = 4 ] || fail "others were made than 4 videos"
sed -n 5p former.jsonl | sed 's/"made"/"skipped"/' | cmp - <(sed -n 5p one/report.jsonl) ||
    fail "a skipped video forgot who made it"
[ ! -e one/.tmp-0001.mp4-0123456789ab ] || fail "what a killed process left is still there"
[ -e one/.tmp-mine.mp4-0123456789ab ] || fail "another's file was removed"
rm one/.tmp-mine.mp4-0123456789ab
cmp -s one/0001.mp4 apart/0001.mp4 || fail "the missing video has other bytes"

# ---- one is killed, others take over; nobody else disturbs ----

head -n 12 prompts.jsonl | grep circle >long.jsonl
long=(--prompts long.jsonl --out killed --steps 1500)
"$kinora" generate --model run "${long[@]}" >killed1.log 2>&1 & # not by the function: its shell would be stopped
pids+=($!)
wait_for_claim killed
kill -STOP "${pids[0]}"
expect_exit 2 generate --prompts long.jsonl --out killed --steps 5
expect 1 'error: other processes are making other videos in killed' exit.log
for i in 2 3; do
    generate "${long[@]}" >"killed$i.log" 2>&1 &
    pids+=($!)
done
sleep 1
[ ! -s killed/report.jsonl ] || fail "what one has claimed was made by another, or too fast to be killed in the middle"
kill -9 "${pids[0]}"
wait "${pids[0]}" 2>killed.log || true
wait "${pids[1]}" "${pids[2]}" || fail "those who took over failed"
expect 5 '"status":"made"' killed/report.jsonl
expect 0 "\"pid\":${pids[0]}," killed/report.jsonl
pids=()
for name in 0001 0005; do
    "$kinora" generate --from killed/$name.json --out again.mp4 >from.log 2>&1
    cmp again.mp4 killed/$name.mp4 || fail "a video that was taken over has other bytes"
done
[ -z "$(find killed -name '.tmp-*')" ] || fail "leftovers: $(find killed -name '.tmp-*')"

# ---- what cannot be made ----

touch taken
cat >some.jsonl <<'JSONL'
{"prompt": "good"}
{"prompt": "no picture", "first_frame": "first.png"}
{"prompt": "no folder", "out": "../taken/x.mp4"}
{"prompt": "no suffix", "out": "x.avi"}
{"prompt": "good too"}
JSONL
expect_exit 1 ranks 2 --prompts some.jsonl --out some
expect 1 'error: 3 of 5 videos could not be made: some/report.jsonl says why' exit.log
expect 3 'warning: .* cannot be made' exit.log
expect 2 '"status":"made"' some/report.jsonl
expect 1 '"status":"failed","reason":"cannot open first.png: No such file' some/report.jsonl
expect 1 '"status":"failed","reason":".*taken' some/report.jsonl
expect 1 '"status":"failed","reason":".*the suffix must be' some/report.jsonl
cp one/numbered-00.png first.png
expect_exit 1 generate --prompts some.jsonl --out some
expect 1 '1 made, 2 skipped, 2 failed' exit.log
cp one/numbered-01.png first.png
expect_exit 1 generate --prompts some.jsonl --out some
expect 1 '"name":"0002.mp4".*made again: it was made with another first_frame_sha256' some/report.jsonl
expect_exit 1 generate --prompts <(sed -n 3p some.jsonl) --out none --json
expect 1 '"status": "failed"' exit.log
expect 0 '"sheet"' exit.log

refuse_all() { # PART COMMAND...
    refuse "$@" --out refused
    [ $status = 2 ] || fail "${*:2} ended with $status"
    [ ! -e refused ] || fail "something was made before \"$1\" was said"
}
printf '{"prompt": "x"}\n{"prompt"\n' >bad.jsonl
refuse_all 'bad.jsonl:2: not a JSON object' generate --prompts bad.jsonl
expect_exit 1 ranks 2 --prompts bad.jsonl --out refused
expect 1 'error: .*bad.jsonl:2: not a JSON object' exit.log
printf '{"prompt": "x"}\n{"prompt": "y", "width": 17}\n' >bad.jsonl
refuse_all 'refused/0002.mp4: width 17 is no multiple' generate --prompts bad.jsonl
printf '{"prompt": "x", "out": "a.mp4"}\n{"prompt": "y", "out": "./sheet.png", "frames": 1}\n' >bad.jsonl
refuse_all 'refused/./sheet.png is both video 2 of 2 and the contact sheet' generate --prompts bad.jsonl
refuse_all 'go together' generate --template 'a {color} car'
refuse_all 'exclude each other' generate --template 'a {color} car' --variables cars.csv --prompts bad.jsonl

# ---- a template ----

printf '\xef\xbb\xbfcolor,city,seed,frames\r\nred,Paris,,\r\n"dark, blue","S\xc3\xa3o Paulo",7,1\r\n' >cars.csv
refuse_all '"colour"; did you mean color' generate --template 'a {colour} car' --variables cars.csv
generate --template '{{a}} {color} car in {city}' --variables cars.csv --out cars --seed 20 >cars.log 2>&1
expect 1 '"name":"0001-red-Paris.mp4","prompt":"{a} red car in Paris","seed":20,"status":"made"' cars/report.jsonl
expect 1 $'"name":"0002-dark-blue-S\xc3\xa3o-Paulo.png","prompt":"{a} dark, blue car in S\xc3\xa3o Paulo","seed":7' cars/report.jsonl
[ -s $'cars/0002-dark-blue-S\xc3\xa3o-Paulo.png' ] || fail "no picture of the second row"
