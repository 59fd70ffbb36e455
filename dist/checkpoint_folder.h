/* The folder RUN/checkpoints: what is in it, giving a written checkpoint its name, and removing old ones. Of one
 * process: nothing here is collective. */
#ifndef KN_DIST_CHECKPOINT_FOLDER_H
#define KN_DIST_CHECKPOINT_FOLDER_H

#include <stdint.h>

#define KN_CHECKPOINTS_FOLDER "checkpoints"

/* The folder and a step to the name of its checkpoint; free() it. */
char *kn_checkpoint_step_path(const char *folder, int64_t step);

/* What kn_checkpoint_step_path made of a name ("step-00000012"), or -1. */
int64_t kn_checkpoint_step_of_name(const char *name);

/* The steps that a folder has checkpoints of, newest first; free() them. A folder that is not there has none. */
int kn_checkpoint_steps(const char *folder, int64_t **steps, int *count);

/* Gives the written folder `temporary` its final name, in the place of an older one of that name. */
int kn_checkpoint_publish(const char *temporary, const char *path);

/* Under another name first: half removed under its own it would look damaged. */
int kn_checkpoint_remove(const char *path);

/* Removes checkpoints older than the `keep_last` that end with `step`, but for multiples of `keep_every` (0: none).
 * Those of later steps, left from a run that was taken up again further back, are neither counted nor touched. */
int kn_checkpoint_prune(const char *folder, int64_t step, int64_t keep_last, int64_t keep_every);

#endif
