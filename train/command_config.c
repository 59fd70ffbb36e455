/* `kinora config`: every key with its type, default and meaning, or what a file resolves to.
 *
 * The table of keys (core/base/config.h) does the work. JSON is made from the resolved YAML: a plain scalar that reads
 * as a number or a truth value becomes one, everything else a string. */
#include "train/commands.h"

#include "core/base/args.h"
#include "core/base/config.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/yaml.h"

#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct ConfigOptions {
    KnArgList overrides;
    int json;
} ConfigOptions;

static const KnArg rows[] = {
    {.name = "set",
     .kind = KN_ARG_STRINGS,
     .offset = offsetof(ConfigOptions, overrides),
     .metavariable = "KEY=VALUE",
     .meaning = "value that replaces the file's, such as train.steps=100"},
    {.name = "json",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(ConfigOptions, json),
     .meaning = "print one JSON object instead of YAML"},
};

static const KnArgSpec spec = {
    .command = "config",
    .usage = "CONFIG.yaml [--set KEY=VALUE ...] [--json]\n--help",
    .description = "Prints what a configuration resolves to: every key, with `base:` files, overrides and defaults\n"
                   "applied and everything checked. The keys are listed below.",
    .examples = "kinora config configs/demo.yaml\nkinora config configs/demo.yaml --set train.steps=100 --json",
    .args = rows,
    .arg_count = sizeof rows / sizeof *rows,
    .most_positionals = 1,
};

static json_t *scalar_to_json(const KnYamlNode *node)
{
    static const struct {
        const char *text;
        int value;
    } truths[] = {{"true", 1}, {"false", 0}};
    for (size_t i = 0; !node->quoted && i < sizeof truths / sizeof *truths; i++)
        if (!strcmp(node->text, truths[i].text))
            return json_boolean(truths[i].value);
    char *end = NULL;
    long long integer = strtoll(node->text, &end, 10);
    if (!node->quoted && node->text[0] && !*end)
        return json_integer(integer);
    double real = strtod(node->text, &end);
    json_t *number = !node->quoted && node->text[0] && !*end ? json_real(real) : NULL; /* NULL for nan and inf */
    return number ? number : json_string(node->text);
}

static json_t *to_json(const KnYamlNode *node)
{
    if (node->kind == KN_YAML_SCALAR)
        return scalar_to_json(node);
    json_t *json = node->kind == KN_YAML_MAPPING ? json_object() : json_array();
    for (int i = 0; i < node->count; i++) {
        if (node->kind == KN_YAML_MAPPING)
            json_object_set_new(json, node->keys[i]->text, to_json(node->values[i]));
        else
            json_array_append_new(json, to_json(node->values[i]));
    }
    return json;
}

static int print_json(const char *yaml)
{
    KnYamlNode *root;
    KnArena *arena = kn_arena_create();
    int code = kn_yaml_parse(arena, yaml, strlen(yaml), "the resolved configuration", &root);
    if (code == KN_OK) {
        json_t *json = to_json(root);
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
        putchar('\n');
        json_decref(json);
    }
    kn_arena_destroy(arena);
    return code;
}

static void print_keys(void)
{
    char *keys = kn_config_help();
    printf("%s", keys);
    free(keys);
}

static int print_resolved(const char *path, const ConfigOptions *options)
{
    KnConfig config;
    kn_config_init(&config);
    int code = kn_config_load(&config, path, options->overrides.items, options->overrides.count);
    if (code == KN_OK) {
        char *yaml = kn_config_to_yaml(&config);
        if (options->json)
            code = print_json(yaml);
        else
            fputs(yaml, stdout);
        free(yaml);
    }
    kn_config_clear(&config);
    return code;
}

int kn_command_config(int argc, char **argv)
{
    ConfigOptions options = {0};
    KnArgList paths = {0};
    int code = kn_args_parse(&spec, argc, argv, &options, &paths);
    if (code == KN_END) {
        printf("\nKeys:\n");
        print_keys();
    }
    KN_TRY(code);
    if (paths.count)
        code = print_resolved(paths.items[0], &options);
    else if (options.overrides.count)
        code = kn_fail(KN_EINPUT, "config: --set needs a CONFIG.yaml to change");
    else
        print_keys();
    kn_args_clear(&spec, &options, &paths);
    return code;
}
