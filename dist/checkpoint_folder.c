/* The folder of a run's checkpoints. */
#include "dist/checkpoint_folder.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *kn_checkpoint_step_path(const char *folder, int64_t step)
{
    char *name = kn_format("step-%08lld", (long long)step), *path = kn_path_join(folder, name);
    free(name);
    return path;
}

/* Only names as this program writes them: "step-5.old" is the user's. */
int64_t kn_checkpoint_step_of_name(const char *name)
{
    long long step = strncmp(name, "step-", 5) == 0 ? strtoll(name + 5, NULL, 10) : -1;
    char *expected = kn_format("step-%08lld", step);
    int is = step >= 0 && strcmp(name, expected) == 0;
    free(expected);
    return is ? step : -1;
}

static int newer_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : -(x > y);
}

int kn_checkpoint_steps(const char *folder, int64_t **steps, int *count)
{
    KnStringList names = {0};
    *steps = NULL;
    *count = 0;
    if (!kn_is_directory(folder))
        return KN_OK;
    KN_TRY(kn_list_directory(folder, &names));
    *steps = kn_alloc((size_t)names.count * sizeof **steps);
    for (int i = 0; i < names.count; i++) {
        int64_t step = kn_checkpoint_step_of_name(names.items[i]);
        if (step >= 0)
            (*steps)[(*count)++] = step;
    }
    kn_string_list_clear(&names);
    qsort(*steps, (size_t)*count, sizeof **steps, newer_first);
    return KN_OK;
}

int kn_checkpoint_publish(const char *temporary, const char *path)
{
    if (!kn_file_exists(path))
        return kn_directory_publish(temporary, path);
    KN_TRY(kn_sync_directory(temporary));
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) != 0) {
        /* Not every file system can exchange: the old one steps aside first. */
        char *aside = kn_temporary_path(path);
        int refused = rename(path, aside);
        if (refused)
            kn_fail(KN_EIO, "cannot replace %s: %s", path, strerror(errno));
        int code = refused ? KN_EIO : kn_directory_publish(temporary, path);
        if (code == KN_OK)
            code = kn_remove_tree(aside);
        free(aside);
        return code;
    }
    char *folder = kn_path_folder(path);
    int code = kn_sync_directory(folder);
    free(folder);
    return code == KN_OK ? kn_remove_tree(temporary) : code;
}

int kn_checkpoint_remove(const char *path)
{
    char *aside = kn_temporary_path(path);
    int code = rename(path, aside) != 0 ? kn_fail(KN_EIO, "cannot remove %s: %s", path, strerror(errno))
                                        : kn_remove_tree(aside);
    free(aside);
    return code;
}

int kn_checkpoint_prune(const char *folder, int64_t step, int64_t keep_last, int64_t keep_every)
{
    int64_t *steps, kept = 0;
    int count, code = kn_checkpoint_steps(folder, &steps, &count);
    for (int i = 0; i < count && code == KN_OK; i++) {
        if (steps[i] > step || kept++ < keep_last || (keep_every > 0 && steps[i] % keep_every == 0))
            continue;
        char *path = kn_checkpoint_step_path(folder, steps[i]);
        code = kn_checkpoint_remove(path);
        free(path);
    }
    free(steps);
    return code;
}
