#!/usr/bin/env bash
# Labels: slow waits
# Two hosts, each a network of its own with a link between them: training over both gives the bits of two ranks on one.
# When the link is cut in the middle, all processes of both end by themselves, the lost rank is named, and with the
# link back the run goes on from its checkpoint. Also on emulated GPUs.
source "$(dirname "$0")/../machine.sh"
command -v ip >/dev/null || cannot "there is no ip (\`./run test\` installs iproute2)"
enter_machine "$@"
source "$(dirname "$0")/../train/run.sh"
prepare 64

# host1 is the machine itself, host2 lives as long as a process that sleeps.
hostname host1
unshare --net --uts sh -c 'hostname host2; exec sleep 600' &
far=$!
on_far() { nsenter --target $far --net --uts "$@"; }
is_named() { [ "$(on_far hostname)" = host2 ]; }
wait_for 5 is_named || fail "there is no second host"
name_hosts '10.78.0.1 host1' '10.78.0.2 host2'
ip link add link0 type veth peer name link0 netns $far
near() { "$@"; }
address=10.78.0.1
for host in near on_far; do
    $host ip link set lo up
    $host ip address add $address/24 dev link0
    $host ip link set link0 up
    # How often the kernel sends again before it gives a connection up; the usual 15 take a quarter of an hour, and Open
    # MPI's daemons wait for it. docs/operations.md
    $host sh -c 'echo 3 >/proc/sys/net/ipv4/tcp_retries2'
    address=10.78.0.2
done
# Nobody listens on the port, but the host's kernel says so. A link that has just come up takes a moment to reach it.
answers() { # near|on_far ADDRESS
    grep -q refused <<<"$($1 env LC_ALL=C bash -c ": <>/dev/tcp/$2/9" 2>&1)"
}
await_link() {
    wait_for 20 answers near 10.78.0.2 && wait_for 20 answers on_far 10.78.0.1 || fail "the hosts do not reach each other"
}
await_link

# What mpirun starts in place of ssh.
cat >agent <<AGENT
#!/bin/sh
shift
exec nsenter --target $far --net --uts sh -c "\$*"
AGENT
chmod +x agent

launch() { # HOSTS RUN [option ...]
    "${on_ranks[@]}" 2 --host "$1" --mca plm_rsh_agent "$work/agent" --mca btl self,vader,tcp \
        --mca btl_tcp_if_include link0 --mca oob_tcp_if_include link0 "$kinora" train small.yaml --set run.dir="$2" \
        --set train.steps=60 --set train.checkpoint_every=5 --set train.validate_every=0 "${@:3}" >>"$2.log" 2>&1
}
same_as_one() { # RUN
    [ "$(tensors "$1" 60)" = "$(tensors one 60)" ] || fail "$1 ends elsewhere than the run on one host"
    [ "$(losses "$1")" = "$(losses one)" ] || fail "$1 has other losses than the run on one host"
}

launch host1:2 one
launch host1,host2 two
same_as_one two

# Emulated GPUs, whose memory is registered over a network with a NCCL that can.
if [ -e "$build/kinora-cuda-emulated.so" ]; then
    on_gpus() { # RUN
        KINORA_CUDA_PLUGIN=$build/kinora-cuda-emulated.so KINORA_EMULATED_REGISTERED=1 \
            launch host1,host2 "$1" --set run.device=cuda --set train.steps=2
    }
    KINORA_EMULATED_NCCL_VERSION=23200 on_gpus gpus || fail "training on GPUs of two hosts: $(tail -n 3 gpus.log)"
    KINORA_EMULATED_NCCL_VERSION=22809 on_gpus older && fail "an older NCCL registers memory over a network"
    grep -q "failed in NCCL: invalid usage: its memory is not registered" older.log || fail "$(tail -n 3 older.log)"
fi

has_checkpoint() { [ -d cut/checkpoints/step-00000010 ]; }
all_ended() { ! pgrep -x 'kinora|mpirun|orted'; }
launch host1,host2 cut --set run.watchdog_seconds=5 &
launched=$!
wait_for 60 has_checkpoint || fail "the run over two hosts does not train"
ip link set link0 down
wait_for 30 all_ended || fail "30 s after the link was cut there is still $(pgrep -x 'kinora|mpirun|orted' -a)"
code=0
wait $launched || code=$?
[ $code != 0 ] || fail "the run whose link was cut ended with 0"
grep -q "error: rank 0 has waited .* for rank 1 on host host2, which does not answer" cut.log || fail "the lost rank is not named"
[ ! -e cut/checkpoints/step-00000060 ] || fail "the link was cut too late"

ip link set link0 up
await_link
launch host1,host2 cut --resume
same_as_one cut
echo "two hosts: all promises hold"
