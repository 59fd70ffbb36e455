/* The commands of this room: main functions of `kinora NAME`, which return a KN_* code. */
#ifndef KN_INFER_COMMANDS_H
#define KN_INFER_COMMANDS_H

#include "dist/layout.h"

int kn_command_forward(int argc, char **argv);
int kn_command_generate(int argc, char **argv);
int kn_command_eval(int argc, char **argv);
int kn_command_export(int argc, char **argv);
int kn_command_import(int argc, char **argv);
int kn_command_inspect(int argc, char **argv);

/* Draws the prompts of sample.prompts into `folder`, as videos and a contact sheet: what training calls now and then.
 * Collective over the layout's ranks, each with what it holds of the weights; the first one writes. */
int kn_draw_samples(const KnLayout *layout, const KnParameterValues *weights, const KnConfig *config,
                    KnBackend *backend, const char *folder);

#endif
