/* What is said reaches the log file: whole, with its level. */
#include "base/support.h"
#include "core/base/log.h"

static void a_long_table_is_logged_to_its_last_line(void **state)
{
    (void)state;
    char table[9000], *text = NULL;
    size_t size = 0;
    memset(table, 'x', sizeof table);
    snprintf(table + sizeof table - 16, 16, "\nthe last line");
    kn_log_set_quiet(1);
    assert_ok(kn_log_set_file(test_path("log.txt")));
    kn_log("time by op\n%s", table);
    assert_ok(kn_log_set_file(NULL));
    kn_log_set_quiet(0);
    assert_ok(kn_file_read(test_path("log.txt"), &text, &size));
    assert_true(size > sizeof table);
    assert_non_null(strstr(text, "time by op\nxxx"));
    assert_non_null(strstr(text, "xxx\nthe last line\n"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_long_table_is_logged_to_its_last_line)};
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
