#!/usr/bin/env bash
# Videos to shards by the real command: exact, the same for any number of ranks, stopped anywhere and gone on with, and
# one sentence for whatever cannot be.
source "$(dirname "$0")/../shell.sh"
tool=$build/tests/tool_prep
prep() { "$tool" prep "$@"; }
ranks() { "${on_ranks[@]}" "$1" "$tool" prep "${@:2}"; } # COUNT [option ...]
expect_failure() { # SENTENCE COMMAND...: fails, says so once, and nothing else
    refuse "$@"
    [ $status = 1 ] || fail "${*:2} ended with $status"
}

# ---- videos ----
mkdir -p videos/more
"$tool" make videos/long.mp4 64x48x70
"$tool" make videos/odd.mp4 45x37x13
"$tool" make videos/wide.mkv 96x24x20
"$tool" make videos/more/short.mp4 32x32x1
"$tool" make videos/more/tiny.mp4 6x40x8
"$tool" make "videos/more/spaced name é.mp4" 40x40x9
"$tool" make videos/image.png 33x34x1
printf 'no video' >videos/broken.mp4
: >videos/more/empty.mkv
mkdir videos/folder.mp4
echo "not looked at" >videos/notes.txt
printf 'a sidecar\n' >videos/odd.txt
cat >captions.csv <<TABLE
path,caption
videos/long.mp4,"long, with a comma"
long.mp4,a second one
TABLE
flags=(--max-frames 16 --clips-per-shard 2 --captions captions.csv)

# ---- exact ----
prep --out a "${flags[@]}" videos >summary.txt
"$tool" same a
"$tool" verify a >/dev/null
"$tool" clips a >clips.txt
[ "$(wc -l <clips.txt)" = 10 ] || fail "$(cat clips.txt)"
grep -q '^long.mp4 4 64x48x6 10 6.4 .* \[long, with a comma\] \[a second one\]$' clips.txt || fail "long: $(cat clips.txt)"
grep -q '^odd.mp4 0 40x32x12 10 0 [0-9a-f]* \[a sidecar\]$' clips.txt || fail "odd: $(cat clips.txt)"
grep -q '^image.png 0 32x32x2 0 0 ' clips.txt || fail "image: $(cat clips.txt)"
for expected in 'broken.mp4": "unreadable' 'empty.mkv": "empty file' 'short.mp4": "too short' 'tiny.mp4": "too small'; do
    grep -qF "$expected" <<<"$(tr -d '\n' <a/index.json | sed 's/",  *"reason": "/": "/g')" || fail "no $expected in $(cat a/index.json)"
done
grep -q '"clips_without_caption": 4' a/index.json || fail "captions: $(cat a/index.json)"

# a link has what lies beside it and what tables say of its name, beside what its file has, under whatever name it is met
mkdir links
ln -s ../videos/odd.mp4 links/alias.mp4
printf 'beside the link\n' >links/alias.txt
printf 'path,caption\nalias.mp4,of the name of the link\n' >links.csv
for inputs in links links/alias.mp4 "videos/odd.mp4 links"; do
    ranks 2 --out linked --captions links.csv $inputs >/dev/null 2>&1
    grep -q '^odd.mp4 0 .* \[of the name of the link\] \[a sidecar\] \[beside the link\]$' <<<"$("$tool" clips linked)" ||
        fail "$inputs: $("$tool" clips linked)"
    rm -r linked
done

# scaled down only as far as asked, aspect kept
prep --out scaled --max-pixels 1100 videos/long.mp4 videos/more/tiny.mp4 --patch 1,2,2 >summary.txt 2>&1
grep -q '^long.mp4 0 38x28x70 ' <<<"$("$tool" clips scaled)" || fail "scaled: $("$tool" clips scaled)"
grep -q '^tiny.mp4 0 6x40x8 ' <<<"$("$tool" clips scaled)" || fail "scaled: $("$tool" clips scaled)"

# a table that names none of the videos is worth a warning
printf 'path,caption\nnobody.mp4,of another folder\n' >nobody.csv
prep --out nobody --captions nobody.csv --patch 1,2,2 videos/more/tiny.mp4 >summary.txt 2>&1
grep -q 'warning: no row of the caption files names one of the videos' summary.txt || fail "$(cat summary.txt)"

# ---- one input that cannot be used does not end the run ----
mkdir mixed
cp videos/odd.mp4 mixed/fine.mp4
cp videos/odd.mp4 mixed/secret.mp4
ln -s /proc/self/mem mixed/secret.txt # opens, and cannot be read
mkfifo mixed/pipe.mp4
ln -s absent.mp4 mixed/gone.mp4
ln -s ring.mp4 mixed/ring.mp4
if command -v ffmpeg >/dev/null; then
    ffmpeg -v error -y -f lavfi -i testsrc2=size=2000x32:rate=10:duration=0.4 -vf setsar=12/1 mixed/stretched.mp4
    prep --out mixed-shards mixed >/dev/null 2>err.txt || fail "a video of 24000 columns ended the run: $(cat err.txt)"
    grep -q 'stretched.mp4: a picture of 24000x32 cannot be made: .*; ask for fewer with --max-pixels' err.txt ||
        fail "stretched: $(cat err.txt)"
fi
prep --out mixed-shards mixed >/dev/null 2>err.txt || fail "a sidecar that cannot be read ended the run: $(cat err.txt)"
grep -q 'no clip: .*gone.mp4: missing: No such file' err.txt || fail "a link to nothing: $(cat err.txt)"
grep -q 'no clip: .*ring.mp4: missing: Too many levels of symbolic links' err.txt || fail "ring: $(cat err.txt)"
grep -q 'no clip: .*pipe.mp4 is not a regular file' err.txt || fail "a pipe: $(cat err.txt)"
grep -q 'no clip: .*secret.txt' err.txt || fail "secret: $(cat err.txt)"
[ "$("$tool" clips mixed-shards | cut -d' ' -f1)" = fine.mp4 ] || fail "mixed: $("$tool" clips mixed-shards)"

# ---- what gave no clip is tried again, and noted anew only if it comes out otherwise ----
head -c 900 videos/odd.mp4 >mixed/half.mp4
prep --out mixed-shards mixed >/dev/null 2>&1
before=$(cat mixed-shards/* | sha256sum)
prep --out mixed-shards mixed >/dev/null 2>err.txt
ranks 2 --out mixed-shards mixed >/dev/null 2>&1
[ "$before" = "$(cat mixed-shards/* | sha256sum)" ] || fail "trying in vain changed something: $(ls -A mixed-shards)"
grep -q '"no frames": 1' mixed-shards/index.json || fail "half: $(cat mixed-shards/index.json)"
inputs=$(grep '"inputs"' mixed-shards/index.json)
rm mixed/secret.txt
printf 'told at last\n' >mixed/secret.txt
cp videos/odd.mp4 mixed/half.mp4
ranks 2 --out mixed-shards mixed >/dev/null 2>err.txt || fail "mended inputs: $(cat err.txt)"
"$tool" clips mixed-shards | sed 's/ .*\[/ [/; s/ 0 .*//' | tr '\n' ' ' | grep -qx 'fine.mp4 half.mp4 secret.mp4 \[told at last\] ' ||
    fail "mended: $("$tool" clips mixed-shards)"
grep -q 'secret\|half' mixed-shards/index.json && fail "mended inputs are still listed: $(cat mixed-shards/index.json)"
[ "$inputs" = "$(grep '"inputs"' mixed-shards/index.json)" ] || fail "mended inputs are counted twice"

# ---- any number of ranks, any order of inputs ----
for n in 2 3; do
    ranks $n --out ranks$n "${flags[@]}" videos/more videos/wide.mkv videos >summary.txt 2>&1
    "$tool" clips ranks$n | cmp - clips.txt || fail "$n ranks gave other clips"
    diff <(grep -v '"file"' a/index.json | sed '/"shards"/,/\]/d') <(grep -v '"file"' ranks$n/index.json | sed '/"shards"/,/\]/d') ||
        fail "$n ranks gave another index"
done

# ---- killed and gone on with ----
for i in $(seq 1 "${KILLS:-14}"); do
    rm -rf killed
    delay=$(awk -v i="$i" 'BEGIN { printf "%.3f", 0.004 * i * i / 4 + 0.01 }')
    for again in 1 2 3; do
        "$tool" prep --out killed "${flags[@]}" videos >/dev/null 2>&1 &
        pid=$!
        sleep "$delay"
        kill -9 $pid 2>/dev/null || true
        wait $pid 2>/dev/null || true
    done
    if [ $((i % 2)) = 0 ]; then
        prep --out killed "${flags[@]}" videos >/dev/null 2>&1
    else
        ranks 2 --out killed "${flags[@]}" videos >/dev/null 2>&1
    fi
    "$tool" clips killed | cmp - clips.txt || fail "killed after $delay s: other clips"
    [ -z "$(find killed -name '.tmp*')" ] || fail "temporary files are left: $(ls -A killed)"
    "$tool" verify killed >/dev/null
done
# a rank that outlives the others holds the folder: what it still finishes would be there twice
mkdir slow
"$tool" make slow/0.mp4 640x480x200
cp slow/0.mp4 slow/1.mp4
"${on_ranks[@]}" 2 "$tool" prep --out outlived --max-frames 8 slow >/dev/null 2>&1 &
launcher=$!
until [ -n "$(find outlived -name '.tmp-clips-00001*' 2>/dev/null)" ] || ! kill -0 $launcher 2>/dev/null; do sleep 0.01; done
for pid in $(cat /proc/$launcher/task/*/children); do
    if tr '\0' '\n' <"/proc/$pid/environ" | grep -qx OMPI_COMM_WORLD_RANK=1; then
        survivor=$pid
        kill -STOP "$pid"
    else
        others="${others:-} $pid"
    fi
done
[ -n "${survivor:-}" ] && [ -n "${others:-}" ] || fail "the two ranks were not found"
kill -STOP $launcher # or it would end the survivor
kill -9 $others
expect_failure "another \`kinora prep\` is working in this folder" prep --out outlived --max-frames 8 slow
kill -9 $launcher "$survivor"
wait $launcher 2>/dev/null || true
while [ -e "/proc/$survivor" ]; do sleep 0.01; done
prep --out outlived --max-frames 8 slow >/dev/null 2>&1
[ "$("$tool" clips outlived | wc -l)" = 50 ] || fail "outlived: $("$tool" clips outlived)"
# a shard lost while stopped is made again, and nothing is doubled
for shard in $(cd killed && ls *.h5); do
    cp -r killed lost
    rm "lost/$shard"
    prep --out lost "${flags[@]}" videos >/dev/null 2>&1
    "$tool" clips lost | cmp - clips.txt || fail "$shard was lost: other clips"
    diff <(grep '"inputs"' a/index.json) <(grep '"inputs"' lost/index.json) || fail "$shard was lost: other inputs"
    rm -r lost
done
# more inputs join; a second run changes nothing
prep --out grown "${flags[@]}" videos/wide.mkv videos/odd.mp4 >/dev/null 2>&1
prep --out grown "${flags[@]}" videos >/dev/null 2>&1
"$tool" clips grown | cmp - clips.txt || fail "grown: other clips"
before=$(cat grown/* | sha256sum)
prep --out grown "${flags[@]}" videos >/dev/null 2>&1
[ "$before" = "$(cat grown/* | sha256sum)" ] || fail "a run with nothing to do changed something"

# ---- full disk ----
if mount_disk 400k small; then
    expect_failure "No space left" ranks 2 --out small/d "${flags[@]}" videos
    expect_failure "No space left" prep --out small/d "${flags[@]}" videos
    [ -z "$(find small -name '.tmp*')" ] || fail "half-written files are left: $(ls -A small/d)"
    for shard in small/d/*.h5; do # finished ones are whole
        [ ! -e "$shard" ] || h5dump -H "$shard" >/dev/null
    done
    mount -o remount,size=64m small
    prep --out small/d "${flags[@]}" videos >/dev/null 2>&1
    "$tool" verify small/d >/dev/null
    "$tool" clips small/d | cmp - clips.txt || fail "after a full disk: other clips"
else
    echo "no right to mount: the full disk was not tried"
fi

# ---- what is refused ----
expect_failure "a was begun with --max-frames 16, not 18" prep --out a --max-frames 18 --captions captions.csv videos
expect_failure "a was begun with --patch [2,8,8], not [1,8,8]" prep --out a "${flags[@]}" --patch 1,8,8 videos
expect_failure "a was begun with other --captions files" prep --out a --max-frames 16 videos
expect_failure "--patch needs three numbers" prep --out b --patch 2,8 videos
expect_failure "--max-frames 1 is less than" prep --out b --max-frames 1 videos
expect_failure "nowhere: cannot be opened" prep --out b nowhere videos
expect_failure "no video or image found" prep --out b videos/folder.mp4
expect_failure "none of the 2 inputs gave a clip" prep --out b videos/broken.mp4 videos/more/empty.mkv
expect_failure "none of the 2 inputs gave a clip" ranks 2 --out b videos/broken.mp4 videos/more/empty.mkv
expect_failure "nowhere: cannot be opened" ranks 3 --out b nowhere
"$tool" make large.png 2000x2000x1
if (ulimit -v 1000000 && "$tool" clips a) >/dev/null 2>&1; then # not under AddressSanitizer
    (ulimit -v 1000000 && expect_failure "large.png: not enough memory for the frames of a patch" prep --out b --patch 100,8,8 large.png)
    rm -r b
fi
expect_failure "videos/notes.txt" prep --out videos/notes.txt videos
[ ! -e b ] || fail "a refused run left its folder: $(ls -A b)"
mkdir foreign && echo x >foreign/their.h5
expect_failure "foreign holds their.h5 but no index.json" prep --out foreign videos
printf 'path,caption\nx\n' >captions2.csv
expect_failure "captions2.csv:2: 1 fields where the first line has 2" prep --out b --captions captions2.csv videos
printf 'longer than before' >>videos/odd.mp4
expect_failure "videos/odd.mp4 has changed since a was begun" prep --out a "${flags[@]}" videos
(
    flock 9
    expect_failure "another \`kinora prep\` is working in this folder" prep --out a "${flags[@]}" videos
) 9<a
"$tool" clips a | cmp - clips.txt || fail "a refused run changed the data set"
echo "all as promised"
