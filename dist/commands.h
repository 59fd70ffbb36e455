/* The commands of this room, for the front door's table: each takes the arguments after `kinora`, its own name first,
 * and returns 0 or a negative KN_E* code with a sentence. */
#ifndef KN_DIST_COMMANDS_H
#define KN_DIST_COMMANDS_H

int kn_command_checkpoint(int argc, char **argv);

#endif
