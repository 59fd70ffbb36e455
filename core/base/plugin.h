/* Libraries that the program opens when it runs, so that it starts where what they are linked to is missing. */
#ifndef KN_BASE_PLUGIN_H
#define KN_BASE_PLUGIN_H

/* Finds a function of the plugin: at `path`, or where that is NULL the file `name` beside the program. The plugin stays
 * open, since libraries below it may have threads. KN_EPEER with a sentence where it is missing or does not fit. */
int kn_plugin_find(const char *path, const char *name, const char *function, void *address);

/* Whether there is a library of this name ("libcuda.so.1") where the linker looks; it then stays open. */
int kn_library_is_there(const char *name);

#endif
