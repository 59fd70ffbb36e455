#!/usr/bin/env bash
# The front door as a user meets it: help, version, exit statuses, the nearest command, one sentence for one mistake.
set -euo pipefail
kinora=${1:?the build folder}/kinora
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0

# NAME STATUS PART-OF-OUTPUT-OR-ERROR ARGUMENTS...
expect() {
    local name=$1 status=$2 part=$3 got=0
    shift 3
    "$kinora" "$@" >"$folder/out" 2>"$folder/err" </dev/null || got=$?
    if [ "$got" != "$status" ] || ! grep -qF -- "$part" "$folder/out" "$folder/err"; then
        printf 'FAILED %s: kinora %s\n  status %s, expected %s with "%s"; said:\n' "$name" "$*" "$got" "$status" "$part"
        cat "$folder/out" "$folder/err"
        failed=1
    fi
}

one_error_line() {
    if [ "$(grep -c '^kinora: error: ' "$folder/err")" != 1 ] || [ "$(wc -l <"$folder/err")" != 1 ]; then
        printf 'FAILED: not exactly one line of error:\n'
        cat "$folder/err"
        failed=1
    fi
}

expect help_lists_commands 0 'Commands:' --help
expect help_lists_commands 0 '  config ' --help
expect help_is_a_command_too 0 'Commands:' help
expect version_names_backend_and_instructions 0 'instruction sets up to ' --version
expect no_command_is_a_usage_error 2 'kinora: error: no command given'
expect unknown_command_names_the_nearest 2 'unknown command "confg"; did you mean config?' confg
one_error_line
expect foreign_command_points_to_help 2 'kinora --help' xyzzyqwert
expect every_command_has_help 0 'Examples:' config --help
expect config_help_lists_keys 0 'train.steps' config --help
expect config_alone_lists_keys 0 'train.steps' config
expect unknown_option_names_the_nearest 2 'unknown option --sett; did you mean --set?' config x.yaml --sett a=b
one_error_line
expect a_missing_file_is_a_failure 1 "$folder/none.yaml" config "$folder/none.yaml"
one_error_line
expect set_alone_is_refused 2 'needs a CONFIG.yaml' config --set train.steps=3

printf 'run: {dir: "%s/run"}\ntrain: {steps: 7}\n' "$folder" >"$folder/some.yaml"
expect config_prints_the_resolved_file 0 'lr:' config "$folder/some.yaml"
expect overrides_count 0 'steps: 11' config "$folder/some.yaml" --set train.steps=11
expect json_is_typed 0 '"steps": 11' config "$folder/some.yaml" --set train.steps=11 --json
printf 'train: {stpes: 7}\n' >"$folder/wrong.yaml"
expect a_misspelt_key_is_placed 2 'wrong.yaml:1:' config "$folder/wrong.yaml"
one_error_line
expect a_misspelt_key_names_the_nearest 2 'steps' config "$folder/wrong.yaml"

# Every command of the table answers --help with examples, and a wrong option with one line.
for command in $("$kinora" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
    expect "help_of_$command" 0 "kinora $command" "$command" --help
    expect "examples_of_$command" 0 'Examples:' "$command" --help
    expect "wrong_option_of_$command" 2 "$command: unknown option --no-such-option" "$command" --no-such-option
    one_error_line
done

if [ -e /dev/full ]; then
    status=0
    "$kinora" --help >/dev/full 2>"$folder/err" || status=$?
    if [ $status != 1 ] || ! grep -q 'cannot write to standard output' "$folder/err"; then
        echo 'FAILED: a full disk behind standard output was not reported'
        failed=1
    fi
fi

if command -v mpirun >/dev/null; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    mpirun --oversubscribe -n 3 "$kinora" confg 2>&1 </dev/null | grep -c 'kinora: error: ' >"$folder/count" || true
    [ "$(cat "$folder/count")" = 1 ] || {
        echo "FAILED: three ranks told the same mistake $(cat "$folder/count") times"
        failed=1
    }
fi
[ $failed = 0 ] && echo 'the front door keeps its promises'
exit $failed
