#!/usr/bin/env bash
# Labels: slow
# A signal in the middle of a step of many packs, to any rank: the step is given up, the state after the last whole
# step is saved, the job ends with 3, and the resumed run gives the bits of the unbroken one.
source "$(dirname "$0")/run.sh"
prepare 64
pid=
clean_up() {
    [ -z "$pid" ] || kill -TERM "$pid"
    wait
}

launch() { # RANKS RUN [option ...]; in place of the (sub)shell
    local launcher=()
    [ "$1" = 1 ] || launcher=("${on_ranks[@]}" "$1")
    exec "${launcher[@]}" "$kinora" train small.yaml --set run.dir="$2" --set train.packs=64 --set train.steps=2 \
        --set train.validate_every=0 "${@:3}" >>"$2.log" 2>&1
}

# The process of a rank, among the children of mpirun.
process_of() { # RANK
    local child
    for child in $(pgrep -P "$pid"); do
        if grep -qz "^OMPI_COMM_WORLD_RANK=$1\$" "/proc/$child/environ"; then
            echo "$child"
        fi
    done
}

# Starts a run, sends the signal within its second step, and goes on with it.
interrupt() { # RUN RANKS SIGNAL TARGET
    local run=$1 ranks=$2 signal=$3 target=$4 code=0
    launch "$ranks" "$run" &
    pid=$!
    until [ -s "$run/metrics.jsonl" ]; do
        kill -0 $pid 2>/dev/null || fail "$run ended before its signal"
        sleep 0.02
    done
    sleep 0.1
    case $target in
    launched) kill -"$signal" $pid ;;
    *) kill -"$signal" "$(process_of "$target")" ;;
    esac
    wait $pid || code=$?
    pid=
    [ $code = 3 ] || fail "$run: ended with $code, not 3"
    [ "$(grep -c "step 2 is given up after [0-9]* of 64 packs" "$run.log")" = 1 ] || fail "$run: no step was given up"
    grep -q "stopped at 1 of 2 steps" "$run.log" || fail "$run: $(grep stopped "$run.log")"
    [ "$(ls "$run/checkpoints")" = step-00000001 ] || fail "$run: saved $(ls "$run/checkpoints"), not its first step"
    (launch "$ranks" "$run" --resume)
    [ "$(tensors "$run" 2)" = "$(tensors "whole_$ranks" 2)" ] || fail "$run: the resumed run ends elsewhere"
    [ "$(losses "$run")" = "$(losses "whole_$ranks")" ] || fail "$run: the resumed run's losses differ"
}

# Signals a rank while it is still starting MPI, whose plugins are being loaded: nothing is done, nothing lost.
interrupt_start() { # RUN RANK
    local run=$1 rank=$2 process='' code=0
    launch 2 "$run" &
    pid=$!
    until [ -n "$process" ] && grep -q /mca_ "/proc/$process/maps"; do
        kill -0 $pid 2>/dev/null || fail "$run ended before its signal"
        process=$(process_of "$rank")
    done
    kill -USR1 "$process"
    wait $pid || code=$?
    pid=
    [ $code = 3 ] || fail "$run: ended with $code, not 3"
    [ "$(ls "$run/checkpoints")" = step-00000000 ] || fail "$run: saved $(ls "$run/checkpoints"), not its start"
    (launch 2 "$run" --resume)
    [ "$(losses "$run")" = "$(losses whole_2)" ] || fail "$run: the resumed run's losses differ"
}

(launch 1 whole_1)
(launch 2 whole_2)
interrupt alone 1 TERM launched
interrupt first_rank 2 TERM 0
interrupt other_rank 2 USR1 1
interrupt launcher 2 USR1 launched
interrupt_start starting 1
echo "signals: all promises hold"
