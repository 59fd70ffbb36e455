#!/usr/bin/env bash
# Sourced first by tests that need a machine of their own: enter_machine runs the test again in new namespaces. Its
# network is empty, so that addresses and ports are free; its processes end with the test; its mounts are nobody
# else's. It needs root.

cannot() {
    echo "skipped: $*"
    exit 77
}

enter_machine() { # the test's own arguments
    [ -z "${KINORA_TEST_MACHINE:-}" ] || return 0
    local unshare=(unshare --mount --uts --net --pid --fork --kill-child --mount-proc) folder code=0
    [ "$(id -u)" = 0 ] || cannot "namespaces need root"
    "${unshare[@]}" true 2>/dev/null || cannot "namespaces are not allowed here"
    folder=$(mktemp -d)
    chmod 711 "$folder" # munged refuses a socket that others could not reach
    KINORA_TEST_MACHINE=1 TMPDIR=$folder "${unshare[@]}" bash "$0" "$@" || code=$?
    rm -rf "$folder"
    exit $code
}

# Only in the machine.
name_hosts() { # LINE...: its /etc/hosts
    printf '%s\n' '127.0.0.1 localhost' "$@" >"$TMPDIR/hosts"
    mount --bind "$TMPDIR/hosts" /etc/hosts
}
