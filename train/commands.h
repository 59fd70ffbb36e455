/* The commands of this room. */
#ifndef KN_TRAIN_COMMANDS_H
#define KN_TRAIN_COMMANDS_H

#include "train/trainer.h"

/* KN_EINTERRUPTED after a signal and a saved checkpoint. `draw_samples` may be NULL. */
int kn_command_train(int argc, char **argv, KnSampleHook draw_samples);
int kn_command_config(int argc, char **argv);
int kn_command_plan(int argc, char **argv);
int kn_command_bench(int argc, char **argv);

#endif
