/* Files and folders, with every system call of a write made to fail in turn.
 *
 * This program defines write, fsync, close and rename itself; the linker prefers them to the C library's, so that the
 * real code under test runs on a disk that fills up, or fails, at the call that a test chooses. */
#include "base/support.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef enum { NONE, WRITE, FSYNC, CLOSE, RENAME } Call;
static struct {
    Call call;
    int countdown, reason; /* fails when the countdown reaches 0 */
    int short_writes;      /* at most 3 bytes each, every other one interrupted */
} inject;

static int fails(Call call)
{
    if (inject.call != call || --inject.countdown != 0)
        return 0;
    errno = inject.reason;
    return 1;
}

ssize_t write(int descriptor, const void *bytes, size_t size)
{
    if (fails(WRITE))
        return -1;
    if (inject.short_writes) {
        if (inject.short_writes++ % 2) {
            errno = EINTR;
            return -1;
        }
        size = size < 3 ? size : 3;
    }
    return syscall(SYS_write, descriptor, bytes, size);
}

int fsync(int descriptor)
{
    return fails(FSYNC) ? -1 : (int)syscall(SYS_fsync, descriptor);
}

int close(int descriptor)
{
    int code = (int)syscall(SYS_close, descriptor);
    return fails(CLOSE) ? -1 : code;
}

int rename(const char *from, const char *to)
{
    return fails(RENAME) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

static void inject_failure(Call call, int at, int reason)
{
    memset(&inject, 0, sizeof inject);
    inject.call = call;
    inject.countdown = at;
    inject.reason = reason;
}

/* Only `name` (or nothing, when NULL) is in `folder`. */
static void assert_only_entry(const char *folder, const char *name)
{
    KnStringList names = {0};
    assert_ok(kn_list_directory(folder, &names));
    assert_int_equal(names.count, name ? 1 : 0);
    if (name)
        assert_string_equal(names.items[0], name);
    kn_string_list_clear(&names);
}

static void assert_content(const char *path, const char *expected)
{
    char *bytes;
    size_t size;
    assert_ok(kn_file_read(path, &bytes, &size));
    assert_int_equal(size, strlen(expected));
    assert_string_equal(bytes, expected);
    free(bytes);
}

static void paths(void **state)
{
    (void)state;
    static const struct {
        const char *folder, *name, *joined;
    } joins[] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"a", "/b", "/b"}, {"", "b", "b"}, {"/", "b", "/b"}};
    for (size_t i = 0; i < sizeof joins / sizeof *joins; i++) {
        char *joined = kn_path_join(joins[i].folder, joins[i].name);
        assert_string_equal(joined, joins[i].joined);
        free(joined);
    }
    static const char *const folders[][2] = {{"a/b/c", "a/b"}, {"c", "."},     {"/c", "/"}, {"a/b/", "a"},
                                             {"a//b", "a"},    {"/a/b", "/a"}, {"/", "/"},  {"", "."}};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char *folder = kn_path_folder(folders[i][0]);
        assert_string_equal(folder, folders[i][1]);
        free(folder);
    }
    static const char *const absolute[][2] = {{"/a/b", "/a/b"},       {"//a/./b/", "/a/b"}, {"/a/x/../b", "/a/b"},
                                              {"/..", "/"},           {"/a/..", "/"},       {"/", "/"},
                                              {"/a/..b/.", "/a/..b"}, {"/../a", "/a"}};
    for (size_t i = 0; i < sizeof absolute / sizeof *absolute; i++) {
        char *path = kn_path_absolute(absolute[i][0]);
        assert_string_equal(path, absolute[i][1]);
        free(path);
    }
    char *relative = kn_path_absolute("./a"), here[4096];
    assert_non_null(getcwd(here, sizeof here));
    assert_true(kn_starts_with(relative, here));
    assert_string_equal(relative + strlen(here), "/a");
    free(relative);
    assert_string_equal(kn_path_name("a/b.c"), "b.c");
    assert_string_equal(kn_path_name("b.c"), "b.c");
}

static void reading(void **state)
{
    (void)state;
    put_file(test_path("r"), "a\0b\n", 4);
    put_file(test_path("empty"), "", 0);
    char *bytes;
    size_t size;
    assert_ok(kn_file_read(test_path("r"), &bytes, &size));
    assert_int_equal(size, 4);
    assert_memory_equal(bytes, "a\0b\n", 5);
    free(bytes);
    assert_content(test_path("empty"), "");
    assert_ok(kn_file_read("/proc/self/status", &bytes, &size)); /* says size 0 and has more */
    assert_true(size > 100 && bytes[size] == 0);
    free(bytes);
    assert_fails(kn_file_read(test_path("absent"), &bytes, &size), KN_EIO, "/absent: No such file");
    assert_null(bytes);
    assert_fails(kn_file_read(test_folder, &bytes, &size), KN_EIO, "Is a directory");

    int64_t length;
    assert_ok(kn_file_size(test_path("r"), &length));
    assert_int_equal(length, 4);
    assert_fails(kn_file_size(test_folder, &length), KN_EIO, "not a regular file");
    assert_fails(kn_file_size(test_path("absent"), &length), KN_EIO, "No such file");
    assert_true(kn_file_exists(test_path("r")) && kn_file_exists(test_folder) && !kn_file_exists(test_path("absent")));
    assert_true(kn_is_directory(test_folder) && !kn_is_directory(test_path("r")));
}

static void mapping(void **state)
{
    (void)state;
    KnFileMap map;
    put_text(test_path("m"), "mapped");
    assert_ok(kn_file_map(&map, test_path("m")));
    assert_int_equal(map.size, 6);
    assert_memory_equal(map.bytes, "mapped", 6);
    kn_file_unmap(&map);
    assert_null(map.bytes);
    kn_file_unmap(&map);
    put_text(test_path("m0"), "");
    assert_ok(kn_file_map(&map, test_path("m0")));
    assert_true(map.size == 0 && map.bytes);
    kn_file_unmap(&map);
    assert_fails(kn_file_map(&map, test_path("absent")), KN_EIO, "/absent: No such file");
    assert_fails(kn_file_map(&map, test_folder), KN_EIO, "not a regular file");
}

static void a_write_replaces_the_whole(void **state)
{
    (void)state;
    const char *folder = test_path("w");
    assert_ok(kn_make_directories(folder));
    assert_ok(kn_file_write(test_path("w/f"), "first version", 13));
    assert_ok(kn_file_write(test_path("w/f"), "second", 6));
    assert_content(test_path("w/f"), "second");
    assert_only_entry(folder, "f");
    struct stat status;
    mode_t mask = umask(0);
    umask(mask);
    assert_int_equal(stat(test_path("w/f"), &status), 0);
    assert_int_equal(status.st_mode & 0777, 0666 & ~mask);
}

static void interrupted_and_short_writes_are_finished(void **state)
{
    (void)state;
    inject_failure(NONE, 0, 0);
    inject.short_writes = 1;
    assert_ok(kn_file_write(test_path("short"), "a text of some length", 21));
    inject.short_writes = 0;
    assert_content(test_path("short"), "a text of some length");
}

/* A stream of small and large pieces whose write, fsync, close or rename fails at each call in turn: the old content
 * stays, no temporary is left, the sentence names path and reason. */
static int write_pieces(const char *path)
{
    static char large[300000];
    memset(large, 'x', sizeof large);
    KnFileWriter *writer;
    KN_TRY(kn_file_writer_open(&writer, path));
    int code = KN_OK;
    for (int i = 0; i < 3 && code == KN_OK; i++) {
        code = kn_file_writer_write(writer, "small", 5);
        if (code == KN_OK)
            code = kn_file_writer_write(writer, large, sizeof large);
    }
    if (code == KN_OK)
        return kn_file_writer_commit(writer);
    assert_fails(kn_file_writer_write(writer, "x", 1), KN_EIO, "an earlier write failed");
    kn_file_writer_abort(writer);
    return kn_fail(code, "cannot write %s: %s", path, strerror(inject.reason));
}

static void every_failing_call_leaves_the_old_file(void **state)
{
    (void)state;
    const char *folder = test_path("inject");
    assert_ok(kn_make_directories(folder));
    char path[512];
    snprintf(path, sizeof path, "%s/kept", folder);
    put_text(path, "old");
    static const struct {
        Call call;
        int calls, reason;
    } rows[] = {{WRITE, 6, ENOSPC}, {FSYNC, 1, ENOSPC}, {CLOSE, 1, EDQUOT}, {RENAME, 1, EACCES}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int at = 1; at <= rows[i].calls; at++) {
            inject_failure(rows[i].call, at, rows[i].reason);
            int code = write_pieces(path);
            inject_failure(NONE, 0, 0);
            if (code != KN_EIO || !strstr(kn_error_message(), path) ||
                !strstr(kn_error_message(), strerror(rows[i].reason)))
                fail_msg("call %d at %d: %d %s", rows[i].call, at, code, kn_error_message());
            assert_content(path, "old");
            assert_only_entry(folder, "kept");
        }
    inject_failure(FSYNC, 2, EIO); /* of the folder, after the rename: reported, and the new file is whole */
    assert_fails(kn_file_write(path, "new", 3), KN_EIO, "Input/output error");
    inject_failure(NONE, 0, 0);
    assert_content(path, "new");
    inject_failure(FSYNC, 2, EINVAL); /* a file system that cannot sync folders */
    assert_ok(kn_file_write(path, "newer", 5));
    inject_failure(NONE, 0, 0);
}

/* A pipe stands for /dev/null and its like, which no test should put at risk. */
static void what_is_no_plain_file_is_not_replaced(void **state)
{
    (void)state;
    const char *pipe_path = test_path("pipe");
    struct stat status;
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    assert_fails(kn_file_write(pipe_path, "x", 1), KN_EIO, "/pipe: it is not a regular file");
    put_text(test_path("whole"), "x");
    assert_fails(kn_file_publish(test_path("whole"), pipe_path), KN_EIO, "/pipe: it is not a regular file");
    assert_int_equal(stat(pipe_path, &status), 0);
    assert_true(S_ISFIFO(status.st_mode));
    assert_false(kn_file_exists(test_path("whole")));
}

static void targets_that_cannot_be_written(void **state)
{
    (void)state;
    KnFileWriter *writer;
    assert_fails(kn_file_writer_open(&writer, test_path("no/such/folder/f")), KN_EIO, "folder/f: No such file");
    assert_null(writer);
    assert_fails(kn_file_write(test_folder, "x", 1), KN_EIO, "it is a folder");
    put_text(test_path("plain"), "x");
    assert_fails(kn_file_write(test_path("plain/f"), "x", 1), KN_EIO, "plain/f: Not a directory");
    kn_file_writer_abort(NULL);
}

static void an_abandoned_writer_leaves_nothing(void **state)
{
    (void)state;
    const char *folder = test_path("abandoned");
    KnFileWriter *writer;
    assert_ok(kn_make_directories(folder));
    assert_ok(kn_file_writer_open(&writer, test_path("abandoned/f")));
    assert_ok(kn_file_writer_write(writer, "half", 4));
    kn_file_writer_abort(writer);
    assert_only_entry(folder, NULL);
}

static void temporaries_have_their_own_names(void **state)
{
    (void)state;
    char *a = kn_temporary_path("x/y.h5"), *b = kn_temporary_path("x/y.h5"), *c = kn_temporary_path("y/");
    assert_true(kn_starts_with(a, "x/.tmp-y.h5-"));
    assert_true(kn_starts_with(c, "./.tmp-y-"));
    assert_string_not_equal(a, b);
    assert_true(kn_is_temporary_name(kn_path_name(a)));
    assert_false(kn_is_temporary_name("y.h5"));
    assert_true(kn_is_temporary_of(kn_path_name(a), "x/y.h5"));
    assert_true(kn_is_temporary_of(kn_path_name(c), "elsewhere/y/"));
    assert_false(kn_is_temporary_of(kn_path_name(a), "x/y"));
    assert_false(kn_is_temporary_of(".tmp-y.h5-0123456789abc", "x/y.h5"));
    assert_false(kn_is_temporary_of("y.h5", "x/y.h5"));
    free(a);
    free(b);
    free(c);
    char name[256] = {0};
    memset(name, 'n', 255);
    a = kn_temporary_path(name);
    assert_true(strlen(kn_path_name(a)) <= 255);
    free(a);

    const char *folder = test_path("stale");
    assert_ok(kn_make_directories(test_path("stale/.tmp-step-5-0/inner")));
    put_text(test_path("stale/.tmp-a"), "x");
    put_text(test_path("stale/kept"), "x");
    assert_ok(kn_remove_temporaries(folder));
    assert_only_entry(folder, "kept");
}

static void publishing_a_file(void **state)
{
    (void)state;
    const char *folder = test_path("published");
    assert_ok(kn_make_directories(folder));
    char *final = kn_path_join(folder, "f"), *temporary = kn_temporary_path(final);
    static const Call calls[] = {NONE, FSYNC, CLOSE, RENAME};
    for (int i = 0; i < 4; i++) {
        put_text(temporary, i ? "new" : "old");
        inject_failure(calls[i], 1, ENOSPC);
        int code = kn_file_publish(temporary, final);
        inject_failure(NONE, 0, 0);
        assert_int_equal(code, i ? KN_EIO : KN_OK);
        assert_content(final, "old");
        assert_only_entry(folder, "f");
    }
    assert_fails(kn_file_publish(temporary, final), KN_EIO, "No such file");
    put_text(temporary, "x");
    assert_fails(kn_file_publish(temporary, folder), KN_EIO, "it is a folder");
    free(final);
    free(temporary);
}

static void publishing_a_folder(void **state)
{
    (void)state;
    const char *folder = test_path("folders");
    assert_ok(kn_make_directories(folder));
    char *final = kn_path_join(folder, "step-1"), *temporary = kn_temporary_path(final);
    static const Call calls[] = {FSYNC, FSYNC, FSYNC, CLOSE, RENAME, NONE};
    static const int at[] = {1, 2, 3, 1, 1, 0};
    for (int i = 0; i < 6; i++) {
        assert_ok(kn_make_directories(temporary));
        char *inner = kn_path_join(temporary, "inner"), *file = kn_path_join(inner, "file");
        assert_ok(kn_make_directories(inner));
        put_text(file, "content");
        inject_failure(calls[i], at[i], ENOSPC);
        int code = kn_directory_publish(temporary, final);
        inject_failure(NONE, 0, 0);
        assert_int_equal(code, calls[i] ? KN_EIO : KN_OK);
        if (calls[i])
            assert_non_null(strstr(kn_error_message(), "No space left"));
        assert_only_entry(folder, calls[i] ? NULL : "step-1");
        free(inner);
        free(file);
    }
    assert_content(test_path("folders/step-1/inner/file"), "content");
    assert_ok(kn_make_directories(temporary)); /* what stands is not replaced */
    assert_fails(kn_directory_publish(temporary, final), KN_EIO, "step-1: ");
    assert_only_entry(folder, "step-1");
    assert_fails(kn_directory_publish(temporary, final), KN_EIO, "No such file");
    free(final);
    free(temporary);
}

static void making_listing_and_removing_folders(void **state)
{
    (void)state;
    assert_ok(kn_make_directories(test_path("a/b//c/")));
    assert_ok(kn_make_directories(test_path("a/b/c")));
    put_text(test_path("a/2"), "");
    put_text(test_path("a/10"), "");
    put_text(test_path("a/.hidden"), "");
    KnStringList names = {0};
    assert_ok(kn_list_directory(test_path("a"), &names));
    assert_int_equal(names.count, 4);
    static const char *const expected[] = {".hidden", "10", "2", "b"};
    for (int i = 0; i < 4; i++)
        assert_string_equal(names.items[i], expected[i]);
    kn_string_list_clear(&names);
    assert_fails(kn_list_directory(test_path("absent"), &names), KN_EIO, "absent: No such file");
    assert_fails(kn_make_directories(test_path("a/2")), KN_EIO, "a file of that name exists");
    assert_fails(kn_make_directories(test_path("a/2/x")), KN_EIO, "a file of that name exists");
    assert_fails(kn_make_directories(""), KN_EIO, "No such file");

    put_text(test_path("outside"), "stays");
    assert_int_equal(symlink(test_folder, test_path("a/link")), 0);
    assert_ok(kn_remove_tree(test_path("a")));
    assert_false(kn_file_exists(test_path("a")));
    assert_content(test_path("outside"), "stays"); /* links are removed, not followed */
    assert_ok(kn_remove_tree(test_path("a")));
    assert_ok(kn_remove_tree(test_path("outside")));
    assert_false(kn_file_exists(test_path("outside")));
    assert_ok(kn_sync_directory(test_folder));
    assert_fails(kn_sync_directory(test_path("absent")), KN_EIO, "absent to disk: No such file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paths),
        cmocka_unit_test(reading),
        cmocka_unit_test(mapping),
        cmocka_unit_test(a_write_replaces_the_whole),
        cmocka_unit_test(interrupted_and_short_writes_are_finished),
        cmocka_unit_test(every_failing_call_leaves_the_old_file),
        cmocka_unit_test(what_is_no_plain_file_is_not_replaced),
        cmocka_unit_test(targets_that_cannot_be_written),
        cmocka_unit_test(an_abandoned_writer_leaves_nothing),
        cmocka_unit_test(temporaries_have_their_own_names),
        cmocka_unit_test(publishing_a_file),
        cmocka_unit_test(publishing_a_folder),
        cmocka_unit_test(making_listing_and_removing_folders),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
