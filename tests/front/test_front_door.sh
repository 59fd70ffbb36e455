#!/usr/bin/env bash
# The front door as a user meets it: help, version, exit statuses, the nearest command, one sentence for one mistake.
source "$(dirname "$0")/../shell.sh"
failed=0

# NAME STATUS PART-OF-OUTPUT-OR-ERROR ARGUMENTS...
answers() {
    local name=$1 status=$2 part=$3 got=0
    shift 3
    "$kinora" "$@" >out 2>err </dev/null || got=$?
    if [ "$got" != "$status" ] || ! grep -qF -- "$part" out err; then
        printf 'FAILED %s: kinora %s\n  status %s, expected %s with "%s"; said:\n' "$name" "$*" "$got" "$status" "$part"
        cat out err
        failed=1
    fi
}

one_error_line() {
    if [ "$(grep -c '^kinora: error: ' err)" != 1 ] || [ "$(wc -l <err)" != 1 ]; then
        printf 'FAILED: not exactly one line of error:\n'
        cat err
        failed=1
    fi
}

answers help_lists_commands 0 'Commands:' --help
answers help_lists_commands 0 '  config ' --help
answers help_is_a_command_too 0 'Commands:' help
answers version_names_backend_and_instructions 0 'instruction sets up to ' --version
answers no_command_is_a_usage_error 2 'kinora: error: no command given'
answers unknown_command_names_the_nearest 2 'unknown command "confg"; did you mean config?' confg
one_error_line
answers foreign_command_points_to_help 2 'kinora --help' xyzzyqwert
answers every_command_has_help 0 'Examples:' config --help
answers config_help_lists_keys 0 'train.steps' config --help
answers config_alone_lists_keys 0 'train.steps' config
answers unknown_option_names_the_nearest 2 'unknown option --sett; did you mean --set?' config x.yaml --sett a=b
one_error_line
answers a_missing_file_is_a_failure 1 none.yaml config none.yaml
one_error_line
answers set_alone_is_refused 2 'needs a CONFIG.yaml' config --set train.steps=3

printf 'run: {dir: "%s/run"}\ntrain: {steps: 7}\n' "$work" >some.yaml
answers config_prints_the_resolved_file 0 'lr:' config some.yaml
answers overrides_count 0 'steps: 11' config some.yaml --set train.steps=11
answers json_is_typed 0 '"steps": 11' config some.yaml --set train.steps=11 --json
printf 'train: {stpes: 7}\n' >wrong.yaml
answers a_misspelt_key_is_placed 2 'wrong.yaml:1:' config wrong.yaml
one_error_line
answers a_misspelt_key_names_the_nearest 2 'steps' config wrong.yaml

# Every command of the table answers --help with examples, and a wrong option with one line.
for command in $("$kinora" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
    answers "help_of_$command" 0 "kinora $command" "$command" --help
    answers "examples_of_$command" 0 'Examples:' "$command" --help
    answers "wrong_option_of_$command" 2 "$command: unknown option --no-such-option" "$command" --no-such-option
    one_error_line
done

if [ -e /dev/full ]; then
    status=0
    "$kinora" --help >/dev/full 2>err || status=$?
    if [ $status != 1 ] || ! grep -q 'cannot write to standard output' err; then
        echo 'FAILED: a full disk behind standard output was not reported'
        failed=1
    fi
fi

if command -v mpirun >/dev/null; then
    "${on_ranks[@]}" 3 "$kinora" confg 2>&1 </dev/null | grep -c 'kinora: error: ' >count || true
    [ "$(cat count)" = 1 ] || {
        echo "FAILED: three ranks told the same mistake $(cat count) times"
        failed=1
    }
fi
[ $failed = 0 ] && echo 'the front door keeps its promises'
exit $failed
