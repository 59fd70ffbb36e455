#!/usr/bin/env bash
# The rules of the house, checked over every source file:
#   - a room includes only from floors below its own, and by paths from the root;
#   - each dependency has one door: only the files named here include its headers;
#   - a file has fewer than 800 lines;
#   - no file names a place on somebody's machine.
# First a planted tree proves that every one of these checks can fail.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
rooms=(core dist data train infer kinora.c)
line_limit=800

find_floor() { # PATH: sets room and floor
    case $1 in
    core/base/*) room=core/base floor=0 ;;
    core/graph/*) room=core/graph floor=1 ;;
    core/ops/*) room=core/ops floor=2 ;;
    core/cpu/*) room=core/cpu floor=3 ;;
    core/cuda/*) room=core/cuda floor=3 ;;
    core/model/*) room=core/model floor=3 ;;
    dist/*) room=dist floor=4 ;;
    data/*) room=data floor=5 ;;
    train/*) room=train floor=6 ;;
    infer/*) room=infer floor=6 ;;
    kinora.c) room=kinora.c floor=7 ;;
    *) room='' floor=-1 ;;
    esac
}

# What stands in the angle brackets (a pattern), and the files that may include it.
doors='
mpi\.h                    dist/comm_*
nccl\.h                   dist/comm_*
lib(av|sw)[a-z]+/         data/video_*
hdf5                      data/shard*
yaml\.h                   core/base/yaml.c
cairo                     core/base/draw*
openssl/                  core/base/hash.c
sentencepiece             core/model/sentencepiece.cc
(cuda|cublas|cudnn|nvml)  core/cuda/*
(dnnl|oneapi)             core/cpu/*
'

# Lines `path:line:"header` and `path:line:<header`.
includes() {
    grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]' "${rooms[@]}" \
        --include='*.c' --include='*.h' --include='*.cc' --include='*.cu' 2>/dev/null |
        sed -E 's/^([^:]*:[0-9]+:)[[:space:]]*#[[:space:]]*include[[:space:]]*(["<][^">]*).*/\1\2/' || true
}

check_floors() {
    local path line header room floor own_room own_floor
    while IFS=: read -r path line header; do
        [ "${header:0:1}" = '"' ] || continue
        header=${header:1}
        find_floor "$path"
        own_room=$room own_floor=$floor
        find_floor "$header"
        if [ "$floor" = -1 ]; then
            echo "$path:$line: \"$header\" is not a path from the root into a room"
        elif [ "$room" != "$own_room" ] && [ "$floor" -ge "$own_floor" ]; then
            echo "$path:$line: $own_room (floor $own_floor) includes $header of $room (floor $floor)"
        fi
    done
}

check_doors() {
    local path line header pattern files
    while IFS=: read -r path line header; do
        [ "${header:0:1}" = '<' ] || continue
        header=${header:1}
        while read -r pattern files; do
            # shellcheck disable=SC2053 # $files is a pattern
            if [ -n "$pattern" ] && [[ $header =~ ^$pattern && $path != $files ]]; then
                echo "$path:$line: <$header> belongs to $files alone"
            fi
        done <<<"$doors"
    done
}

all_files() { # what is tracked; in a copy without history, everything that is not built
    git ls-files 2>/dev/null || find . -path './build*' -prune -o -path ./demo -prune -o -type f -printf '%P\n'
}

check_lengths() {
    local path lines
    while IFS= read -r path; do
        case $path in
        *.c | *.h | *.cc | *.cu | *.sh | run)
            lines=$(wc -l <"$path")
            [ "$lines" -lt $line_limit ] || echo "$path: $lines lines, the limit is $line_limit"
            ;;
        esac
    done
}

# The patterns are put together here, so that this file does not hold them itself.
check_places() {
    local names=(work root home opt/oracle farm) name pattern=''
    for name in "${names[@]}"; do
        pattern+="|/$name/"
    done
    tr '\n' '\0' | xargs -0 grep -nIHE "(^|[^A-Za-z0-9_.])(${pattern:1})" 2>/dev/null |
        sed -E 's/^([^:]*:[0-9]+):.*/\1: names a place on somebody'"'"'s machine/' || true
}

check_tree() { # FOLDER
    cd "$1"
    includes | check_floors
    includes | check_doors
    all_files | check_lengths
    all_files | check_places
}

# ---- the checks can fail ----

plant() { # PATH TEXT
    mkdir -p "$(dirname "$planted/$1")"
    printf '%s\n' "$2" >"$planted/$1"
}

expect() { # PART OF A LINE
    grep -qF -- "$1" <<<"$found" || {
        printf 'a planted violation was not found: %s\nfound:\n%s\n' "$1" "$found"
        exit 1
    }
}

planted=$(mktemp -d)
trap 'rm -rf "$planted"' EXIT
export GIT_CEILING_DIRECTORIES=${planted%/*} # the planted tree is no part of a repository that holds it
plant core/graph/good.c '#include "core/base/error.h"'
plant core/graph/good.h '#include <stdint.h>'
plant data/video_good.c '#include <libavformat/avformat.h>'
plant infer/good.c '#include "data/shard.h"'
found=$(check_tree "$planted")
[ -z "$found" ] || {
    printf 'an honest tree was accused:\n%s\n' "$found"
    exit 1
}
plant core/base/up.c '#include "core/graph/graph.h"'
plant core/model/sideways.c '  #  include "core/cpu/backend.h" /* no */'
plant train/sideways.h '#include "infer/solver.h"'
plant dist/relative.c '#include "comm.h"'
plant data/loader.c '#include <mpi.h>'
plant infer/reader.c '#include <libavcodec/avcodec.h>'
plant train/sheet.c '#include <cairo/cairo.h>'
plant data/long.c "$(seq $line_limit)"
plant docs/page.md "see /""home/somebody/notes"
found=$(check_tree "$planted")
expect 'core/base/up.c:1: core/base (floor 0) includes core/graph/graph.h'
expect 'core/model/sideways.c:1: core/model (floor 3) includes core/cpu/backend.h'
expect 'train/sideways.h:1: train (floor 6) includes infer/solver.h'
expect 'dist/relative.c:1: "comm.h" is not a path from the root'
expect 'data/loader.c:1: <mpi.h> belongs to dist/comm_*'
expect 'infer/reader.c:1: <libavcodec/avcodec.h> belongs to data/video_*'
expect 'train/sheet.c:1: <cairo/cairo.h> belongs to core/base/draw*'
expect "data/long.c: $line_limit lines"
expect 'docs/page.md:1: names a place'
[ "$(wc -l <<<"$found")" = 9 ] || {
    printf 'nine violations were planted; found:\n%s\n' "$found"
    exit 1
}

# ---- and the repository passes them ----

found=$(check_tree "$root")
[ -z "$found" ] || {
    printf '%s\n' "$found"
    exit 1
}
printf 'floors, doors, lengths and places are as they should be\n'
