#!/usr/bin/env bash
# Layouts in whole runs, over real ranks: the layout-invariant mode gives the bits of one process, and a checkpoint of
# any layout goes on on any other, with losses within 1e-6 of the unbroken run; so does Muon's, whose matrices the tensor
# ranks have cut.
# Labels: slow
source "$(dirname "$0")/run.sh"
prepare 48
sed -i 's/optimizer: {/optimizer: {name: adamw, /; s/tokens: 512, clips: 8/tokens: 256, clips: 4/; s/precision: bf16/precision: f32/
    s/steps: 12, packs: 2, checkpoint_every: 4/steps: 8, packs: 4, checkpoint_every: 4/; s/heads: 2, ffn/heads: 4, ffn/' small.yaml

run() { # RUN RANKS [key=value of parallel ... or option ...]
    local run=$1 ranks=$2 options=()
    shift 2
    for word in "$@"; do
        case $word in
        --*) options+=("$word") ;;
        optimizer.*) options+=(--set "$word") ;;
        *) options+=(--set "parallel.$word") ;;
        esac
    done
    "${on_ranks[@]}" "$ranks" "$kinora" train small.yaml --set run.dir="$run" "${options[@]}" >>"$run.log" 2>&1 || fail "$run on $ranks ranks ($*) ended with $?"
}

# Rewrites the last checkpoint as one rank would have written it: RUN.whole.
whole() { # RUN
    "$kinora" checkpoint consolidate "$1/checkpoints/step-00000008" --out "$1.whole" >>"$1.log" 2>&1 ||
        fail "cannot consolidate $1"
}

compare() { # RUN TOLERANCE [RUN OF ONE PROCESS]
    [ "$(losses "$1" | wc -l)" = 8 ] || fail "$1 has not 8 losses"
    paste <(losses "${3:-one}") <(losses "$1") | awk -v most="$2" '
        { d = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if (d > worst) worst = d } END { exit !(worst <= most) }' ||
        fail "the losses of $1 differ by more than $2 from those of one process"
}

invariant=(mode=layout_invariant)
run same 1 "${invariant[@]}"
whole same
for layout in "2 ring=2" "3 ulysses=3 zero=2" "4 data=2 ulysses=2 zero=1" "4 shard=2 ring=2"; do
    read -ra words <<<"$layout"
    name=same-${layout//[ =]/-}
    run "$name" "${words[0]}" "${words[@]:1}" "${invariant[@]}"
    [ "$(losses same)" = "$(losses "$name")" ] || fail "losses of $layout are not those of one process, bit for bit"
    whole "$name"
    cmp same.whole/rank-00000.safetensors "$name.whole/rank-00000.safetensors" ||
        fail "weights and moments of $layout are not those of one process, bit for bit"
done
echo "layout-invariant: bits hold"

# Half on one layout, half on the other, both ways.
run one 1
for layout in "2 data=2" "2 shard=2 zero=1" "2 shard=2 zero=2" "2 shard=2 zero=3" "2 ring=2" "2 ulysses=2" "2 tensor=2" \
    "4 ring=2 ulysses=2"; do
    read -ra words <<<"$layout"
    name=${layout//[ =]/-}
    run "$name" "${words[0]}" "${words[@]:1}"
    compare "$name" 1e-6
    cp -r one "to-$name"
    mv "$name" "from-$name"
    rm -r "to-$name/checkpoints/step-00000008" "from-$name/checkpoints/step-00000008"
    run "to-$name" "${words[0]}" "${words[@]:1}" --resume
    run "from-$name" 1 --resume
    compare "to-$name" 1e-6
    compare "from-$name" 1e-6
done
echo "layouts: checkpoints go on on others"

# Two layouts with Muon, each half of the other's run; four heads on three ranks are cut unevenly.
run muon 1 optimizer.name=muon
for pair in "2 tensor=2|2 data=2" "3 tensor=3|4 shard=2 tensor=2 zero=3"; do
    read -ra first <<<"${pair%|*}"
    read -ra second <<<"${pair#*|}"
    run first "${first[@]}" optimizer.name=muon
    run second "${second[@]}" optimizer.name=muon
    compare first 1e-6 muon
    compare second 1e-6 muon
    rm -r first/checkpoints/step-00000008 second/checkpoints/step-00000008
    run first "${second[@]}" optimizer.name=muon --resume
    run second "${first[@]}" optimizer.name=muon --resume
    compare first 1e-6 muon
    compare second 1e-6 muon
    rm -r first second
done
echo "muon: tensor ranks agree with one process, and go on on other layouts"
