#!/usr/bin/env bash
# Proves the two commands of the README on a machine that has nothing: a new Debian 12 in a folder, with the committed
# state of this checkout in it. What only a developer's machine has is missed here. By hand, as root:
#
#     tests/fresh-machine.sh [COMMAND ...]        (default: demo test, in this order, by ./run)
#
# FRESH_FOLDER: where to make it (default: a new folder in TMPDIR; 6 GB). FRESH_KEEP=1: leave it there afterwards.
# FRESH_MIRROR: Debian mirror; by default the one that this machine's own apt uses.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
suite=bookworm
die() { printf 'fresh-machine: error: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root, for chroot and mount"
command -v debootstrap >/dev/null || die "needs debootstrap: apt-get install debootstrap"
[ $# -gt 0 ] || set -- demo test

find_mirror() {
    # shellcheck disable=SC2016 # apt-get's own format
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 2>/dev/null |
        awk -v suite=$suite '$1 == suite { print $2; exit }'
}
mirror=${FRESH_MIRROR:-$(find_mirror)}
[ -n "$mirror" ] || die "this machine's apt knows no mirror of $suite: name one in FRESH_MIRROR"

if [ -n "${FRESH_FOLDER:-}" ]; then
    machine=$FRESH_FOLDER
    [ ! -e "$machine" ] || die "$machine is there already"
    mkdir -p "$machine"
else
    machine=$(mktemp -d "${TMPDIR:-/tmp}/kinora-fresh-XXXXXX")
fi

mounts=()
# shellcheck disable=SC2317 # the trap calls it
leave() {
    local code=$? i
    for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do
        umount "${mounts[i]}" || umount -l "${mounts[i]}" || true
    done
    if [ -n "${FRESH_KEEP:-}" ]; then
        printf 'fresh-machine: left at %s\n' "$machine"
    elif grep -qF " $machine/" /proc/mounts; then
        printf 'fresh-machine: something is still mounted below %s: left there\n' "$machine" >&2
    else
        rm -rf --one-file-system "$machine"
    fi
    exit "$code"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mount_at() { # PLACE mount-arguments...
    local place=$machine/$1
    shift
    mkdir -p "$place"
    mount "$@" "$place"
    mounts+=("$place")
}

began=$SECONDS
printf '==> A new Debian %s in %s\n' $suite "$machine"
debootstrap --variant=minbase $suite "$machine" "$mirror" >"$machine.log" 2>&1 || {
    tail -n 20 "$machine.log" >&2
    die "debootstrap failed; the log is $machine.log"
}
rm -f "$machine.log"
mount_at . --bind "$machine" # tests that make namespaces want / to be a mount
mount_at proc -t proc proc
mount_at sys -t sysfs -o ro sysfs # what hardware there is
mount_at dev/shm -t tmpfs -o mode=1777 tmpfs # shared memory between ranks
cp /etc/resolv.conf "$machine/etc/resolv.conf"
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(hostname)" >"$machine/etc/hosts" # mpirun asks for its own name
printf '    (%d s)\n' $((SECONDS - began))

[ -z "$(git -C "$root" status --porcelain 2>/dev/null)" ] ||
    printf 'fresh-machine: warning: changes that are not committed are not tested\n' >&2
mkdir "$machine/kinora"
git -C "$root" archive HEAD | tar -x -C "$machine/kinora"

failed=0
for command in "$@"; do
    began=$SECONDS
    printf '==> ./run %s on the new machine\n' "$command"
    if chroot "$machine" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp TERM=dumb \
        bash -c "cd /kinora && ./run $command" </dev/null; then
        printf '==> ./run %s: good, in %d s\n' "$command" $((SECONDS - began))
    else
        printf '==> ./run %s: FAILED after %d s\n' "$command" $((SECONDS - began))
        failed=1
        break
    fi
done
exit $failed
