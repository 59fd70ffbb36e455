#!/usr/bin/env bash
# Labels: long
# One real clip of 1,024 tokens is learned by heart (configs/overfit.yaml) and sampled from noise: 35 dB at least.
# Uses bikes.mp4 of ../shared/clips where present, else a clip that ffmpeg draws. By hand: ctest -L long
source "$(dirname "$0")/../shell.sh"
clip=$root/../shared/clips/bikes.mp4
if [ -e "$clip" ]; then
    ffmpeg -v error -i "$clip" -vf crop=544:272,scale=128:64 -frames:v 16 -c:v libx264rgb -qp 0 clip.mkv
else
    ffmpeg -v error -f lavfi -i testsrc2=size=128x64:rate=25 -frames:v 16 -c:v libx264rgb -qp 0 clip.mkv
fi
echo "the only clip" >clip.txt
"$kinora" prep --out shards --patch 2,8,8 --max-frames 16 clip.mkv
"$kinora" train "$root/configs/overfit.yaml" --set run.dir=run --set data.shards=shards
"$kinora" generate --model run --prompt "the only clip" --out sampled.mp4 --lossless --seed 7
psnr=$(ffmpeg -v info -i sampled.mp4 -i clip.mkv -lavfi psnr -f null - 2>&1 | sed -n 's/.*average:\([0-9.]*\).*/\1/p')
echo "PSNR of the sampled clip: $psnr dB"
awk -v psnr="$psnr" 'BEGIN { exit !(psnr >= 35) }'
