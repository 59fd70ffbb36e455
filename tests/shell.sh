# Sourced by the scripts of tests/, whose first argument is the build folder: where things are, ranks, and ways to say
# what is expected. Leaves the shell in a temporary folder, which goes at the end, with the last words of its logs where
# the test has failed.
set -euo pipefail
build=$(cd "$1" && pwd)
kinora=$build/kinora
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sanitized=$(grep -c '^KINORA_SANITIZE:BOOL=ON$' "$build/CMakeCache.txt" || true) # 1: everything is some ten times slower
work=$(mktemp -d "${TMPDIR:-/tmp}/kinora-test-XXXXXX")
disks=()
clean_up() { :; } # a test's own, which comes first
finish() {
    local code=$? disk
    set +e
    clean_up
    for disk in "${disks[@]}"; do umount "$disk"; done
    [ $code = 0 ] || { tail -n 5 "$work"/*.log 2>/dev/null; } >&2
    rm -rf "$work"
    exit $code
}
trap finish EXIT
cd "$work"

# Before the number of ranks and a program. Leaks are looked for in runs without MPI, which leaves some of its own; and
# ranks that wait make room for others.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
on_ranks=(env ASAN_OPTIONS=detect_leaks=0 mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n)

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
expect() { # COUNT PATTERN FILE: so many of its lines
    [ "$(grep -c -- "$2" "$3" || true)" = "$1" ] || fail "not $1 lines of $3 say $2: $(cat "$3")"
}
expect_exit() { # STATUS COMMAND...; its words are in exit.log
    local expected=$1 status=0
    shift
    "$@" >exit.log 2>&1 || status=$?
    [ $status = "$expected" ] || fail "$* ended with $status, not $expected"
}
# Refuses in one sentence with this part, by status 1 or 2, which is left in `status`; its words are in out.txt and err.txt.
refuse() { # PART COMMAND...
    local part=$1
    shift
    status=0
    "$@" >out.txt 2>err.txt || status=$?
    [ $status -ne 0 ] || fail "accepted: $*"
    [ $status -le 2 ] || fail "crashed with $status: $* $(cat err.txt)"
    grep -qF -- "$part" err.txt || fail "\"$part\" is not said by: $* but: $(cat err.txt)"
    [ "$(grep -c "error: " err.txt)" = 1 ] || fail "not one sentence: $(cat err.txt)"
}
wait_for() { # SECONDS COMMAND...: until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}

mount_disk() { # SIZE FOLDER: a file system of its own, where that is allowed
    [ "$(id -u)" = 0 ] && mkdir "$2" && mount -t tmpfs -o size="$1" tmpfs "$2" 2>/dev/null && disks+=("$work/$2")
}

make_shards() { # COUNT [option of synth ...]: videos/ and shards/
    "$kinora" synth moving-shapes --out videos --count "$@" >synth.log 2>&1
    "$kinora" prep --out shards --patch 2,8,8 --captions videos/captions.csv videos >prep.log 2>&1
}
