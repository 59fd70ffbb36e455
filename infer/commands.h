/* The commands of this room: main functions of `kinora NAME`, which return a KN_* code. */
#ifndef KN_INFER_COMMANDS_H
#define KN_INFER_COMMANDS_H

int kn_command_forward(int argc, char **argv);

#endif
