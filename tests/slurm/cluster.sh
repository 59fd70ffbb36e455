#!/usr/bin/env bash
# Sourced first by the tests of this folder: a real Slurm of two pretended nodes, munged, slurmctld and two slurmd of the
# distribution, in a machine of its own. A node is a name: Open MPI names shared memory by it.
source "$(dirname "${BASH_SOURCE[0]}")/../machine.sh"
for needed in munged slurmctld slurmd sbatch srun ip mpirun; do
    command -v "$needed" >/dev/null || cannot "there is no $needed (\`./run test\` installs it)"
done
enter_machine "$@"

nodes_are_idle() { [ "$(timeout 3 sinfo -h -t idle -o %D)" = 2 ]; }

# Loopback, and an interface for Open MPI, which does not take loopback.
start_network() {
    hostname controller
    ip link set lo up
    ip link add port0 type veth peer name port1
    ip address add 10.77.0.1/24 dev port0
    ip link set port0 up
    ip link set port1 up
    name_hosts '10.77.0.1 controller node1 node2'
}

configure_slurm() { # FOLDER
    cat <<CONF
ClusterName=pretended
SlurmctldHost=controller(10.77.0.1)
SlurmctldPort=7000
NodeName=node[1-2] NodeAddr=10.77.0.1 NodeHostname=controller Port=[7001-7002] CPUs=4 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES
AuthInfo=socket=$1/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool-%n
TmpFS=$1/tmp-%n
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd-%n.pid
SlurmctldLogFile=$1/slurmctld.txt
SlurmdLogFile=$1/slurmd-%n.txt
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
MpiDefault=none
KillWait=5
CONF
}

start_munge() { # FOLDER
    (umask 077 && head -c 128 /dev/urandom >"$1/munge.key")
    munged --foreground --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munged.pid" \
        --log-file="$1/munged.txt" --seed-file="$1/munge.seed" >"$1/munged.out" 2>&1 &
    wait_for 10 munge -n -S "$1/munge.socket"
}

start_slurm() {
    local folder=$TMPDIR/cluster node
    export SLURM_CONF=$folder/slurm.conf
    mkdir -p "$folder/state"
    start_network
    start_munge "$folder" || fail "munged did not start: $(tail -n 3 "$folder/munged.out")"
    configure_slurm "$folder" >"$SLURM_CONF"
    echo 'CgroupPlugin=cgroup/v1' >"$folder/cgroup.conf" # does without where there are none; v2 does not
    slurmctld -D >"$folder/slurmctld.out" 2>&1 &
    for node in node1 node2; do
        mkdir "$folder/spool-$node" "$folder/tmp-$node"
        unshare --uts sh -c "hostname $node && exec slurmd -D -N $node" >"$folder/slurmd-$node.out" 2>&1 &
    done
    wait_for 20 nodes_are_idle || fail "Slurm did not start: $(tail -n 3 "$folder"/slurm*.txt)"
}

job_field() { # JOB FIELD
    scontrol show job -o "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"
}
job_is() { # JOB STATE
    [ "$(job_field "$1" JobState)" = "$2" ]
}

# Slurm holds a job that it has put back for two minutes, at times anew.
shorten_hold() { # JOB
    local begin
    job_is "$1" PENDING && begin=$(date +%s -d "$(job_field "$1" EligibleTime)") || return 0
    [ $((begin - $(date +%s))) -le 5 ] || scontrol update JobId="$1" StartTime=now+2
}
is_back() { # JOB
    shorten_hold "$1"
    job_is "$1" RUNNING || job_is "$1" COMPLETED
}
is_done() { # JOB
    shorten_hold "$1"
    job_is "$1" COMPLETED
}
