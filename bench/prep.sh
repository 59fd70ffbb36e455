#!/usr/bin/env bash
# `kinora prep` against `ffmpeg` decoding and scaling the same videos to nothing, each on one core and one decoder thread.
#   bench/prep.sh [BUILD_FOLDER] [VIDEO...]
# Without videos a few are made. PIXELS (65536; 0 = no scaling) is the size of a frame, ROUNDS (3) how often each runs; the
# fastest counts. The ratio is of processor seconds (user + system): a busy machine changes elapsed time, not those.
set -euo pipefail
build=$(cd "${1:-build}" && pwd)
shift || true
pixels=${PIXELS:-65536} rounds=${ROUNDS:-3}
work=$(mktemp -d "${TMPDIR:-/tmp}/kinora-bench-XXXXXX")
trap 'rm -rf "$work"' EXIT
core=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')

videos=("$@")
if [ ${#videos[@]} = 0 ]; then
    source='testsrc2=s=1280x720:r=25:d=6,noise=alls=8:allf=t'
    ffmpeg -v error -f lavfi -i "$source" -pix_fmt yuv420p -c:v libx264 -preset fast "$work/h264.mp4"
    ffmpeg -v error -f lavfi -i "$source" -pix_fmt yuv420p -c:v mpeg4 -q:v 3 "$work/mpeg4.mp4"
    videos=("$work/h264.mp4" "$work/mpeg4.mp4")
fi

# processor_seconds COMMAND...: of the fastest round
processor_seconds() {
    local TIMEFORMAT='%U %S' best='' seconds
    for _ in $(seq "$rounds"); do
        rm -rf "$work/out"
        seconds=$({ time taskset -c "$core" "$@" >/dev/null 2>&1; } 2>&1 | awk '{ print $1 + $2 }')
        best=$(printf '%s\n%s\n' "$best" "$seconds" | grep . | sort -g | head -1)
    done
    echo "$best"
}

calculate() { awk "BEGIN { print $1 }"; }

printf '%-24s %10s %10s %8s\n' video 'ffmpeg s' 'prep s' ratio
total_peer=0 total_ours=0
for video in "${videos[@]}"; do
    size=$(ffprobe -v error -select_streams v:0 -show_entries stream=width,height -of csv=p=0 "$video" |
        awk -F, -v p="$pixels" '{ s = p > 0 && $1 * $2 > p ? sqrt(p / ($1 * $2)) : 1; printf "%d:%d", $1 * s, $2 * s }')
    peer=$(processor_seconds ffmpeg -y -threads 1 -i "$video" -an -vf "scale=$size" -f null -)
    ours=$(processor_seconds "$build/kinora" prep --out "$work/out" --max-pixels "$pixels" "$video")
    total_peer=$(calculate "$total_peer + $peer") total_ours=$(calculate "$total_ours + $ours")
    printf '%-24s %10.2f %10.2f %8.2f\n' "$(basename "$video")" "$peer" "$ours" "$(calculate "$peer / $ours")"
done
printf '%-24s %10.2f %10.2f %8.2f\n' all "$total_peer" "$total_ours" "$(calculate "$total_peer / $total_ours")"
