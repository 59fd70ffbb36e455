/* Looking after the checkpoints of a run, outside of training: everything that `kinora checkpoint` does. One process.
 */
#ifndef KN_DIST_CHECKPOINT_TOOLS_H
#define KN_DIST_CHECKPOINT_TOOLS_H

#include "core/base/text.h"

#include <stdint.h>

/* The folder of checkpoints that `path`, a run or that folder itself, names; free(*folder). KN_EINPUT where it is
 * neither. */
int kn_checkpoints_folder(const char *path, char **folder);

/* Of a checkpoint, or of a folder of them: the newest one whose hashes all hold; free(*newest). KN_EINPUT, KN_EFORMAT.
 */
int kn_checkpoint_find_valid(const char *path, char **newest);

/* Writes the checkpoint `from` into the new folder `out` as one rank alone would have written it. */
int kn_checkpoint_consolidate(const char *from, const char *out);

typedef struct KnPruneRule {
    int64_t keep_last;  /* newest whole ones that stay; 0: only the newest valid one */
    int64_t keep_every; /* and those of multiples of so many steps; 0: none */
    int dry_run;        /* only says what would go */
} KnPruneRule;

/* Removes what the rule does not keep: never the newest valid one, nor any newer one. Paths of what went and of what
 * stayed are added to the lists. */
int kn_checkpoint_prune_by(const char *folder, const KnPruneRule *rule, KnStringList *removed, KnStringList *kept);

#endif
