/* YAML as a small tree, the one door to libyaml.
 *
 * The part of YAML that configurations need: mappings with scalar keys, sequences, scalars. Every node knows its line
 * and column. Anchors, aliases, tags, several documents and duplicate keys are refused, each with FILE:LINE:COLUMN.
 * Scalars stay text: what a value means is for the reader that knows its type. */
#ifndef KN_BASE_YAML_H
#define KN_BASE_YAML_H

#include "core/base/memory.h"

typedef enum KnYamlKind { KN_YAML_SCALAR, KN_YAML_SEQUENCE, KN_YAML_MAPPING } KnYamlKind;

typedef struct KnYamlNode {
    KnYamlKind kind;
    int line, column;           /* from 1 */
    const char *text;           /* scalar: its value */
    int quoted;                 /* scalar: written in quotes or as a block, hence surely a string */
    int count;                  /* sequence: items; mapping: pairs */
    struct KnYamlNode **keys;   /* mapping: scalars */
    struct KnYamlNode **values; /* mapping and sequence */
} KnYamlNode;

/* Everything lives in the arena. An empty document gives an empty mapping. KN_EIO, KN_EFORMAT. */
int kn_yaml_read(KnArena *arena, const char *path, KnYamlNode **root);

/* The same from memory; `name` stands for the file in sentences. */
int kn_yaml_parse(KnArena *arena, const char *text, size_t length, const char *name, KnYamlNode **root);

/* The value of a mapping's key, or NULL. */
const KnYamlNode *kn_yaml_get(const KnYamlNode *mapping, const char *key);

#endif
