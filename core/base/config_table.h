/* The rows behind core/base/config.h: one for each key, in the order of the resolved file. Internal to the config_*.c
 * files. To add a key, add a field to its struct and a row to config_table.c. */
#ifndef KN_BASE_CONFIG_TABLE_H
#define KN_BASE_CONFIG_TABLE_H

#include "core/base/config.h"

typedef enum KnConfigType {
    KN_CONFIG_INT,       /* int64_t */
    KN_CONFIG_FLOAT,     /* double, finite */
    KN_CONFIG_BOOL,      /* int */
    KN_CONFIG_CHOICE,    /* an enum that counts the words of `choices` from 0 */
    KN_CONFIG_STRING,    /* char *; with `choices`, one of them; NULL stands for "" */
    KN_CONFIG_TRIPLE,    /* int64_t[3] */
    KN_CONFIG_STRINGS,   /* KnStringList */
    KN_CONFIG_RECOMPUTE, /* int64_t: KN_RECOMPUTE_* or bytes */
} KnConfigType;

typedef struct KnConfigRow {
    const char *key; /* dotted */
    KnConfigType type;
    size_t offset;             /* in KnConfig */
    const char *default_text;  /* as YAML */
    const char *meaning;       /* one line for the help */
    double low, high;          /* the range of numbers; high 0 = no bound above */
    int above_low, below_high; /* the bound itself is not allowed */
    const char *choices;       /* "a|b|c" */
    const char *zero_word;     /* INT: what may be written for 0, and is in the resolved file */
    int no_result;             /* the result of training does not depend on it: left out of the hash */
    int reads_state;           /* another value reads other things in the same saved tensors, and no shape shows it */
} KnConfigRow;

extern const KnConfigRow kn_config_rows[];
extern const int kn_config_row_count;

/* "an integer of at least 1", "one of adamw, muon", ... into `text`, for the help and for errors. */
void kn_config_describe(const KnConfigRow *row, char *text, size_t size);

/* Word `index` of "a|b|c" and its length, or NULL. */
const char *kn_config_choice(const char *choices, int index, int *length);

static inline void *kn_config_field(const KnConfig *config, const KnConfigRow *row)
{
    return (char *)config + row->offset;
}

#endif
