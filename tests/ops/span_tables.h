/* The span tables of attention's tests, by number: one clip; packed clips; cross attention; keys shared by spans;
 * nothing at all to see; long ones; no queries, no keys, no spans; few keys. */
#ifndef KN_TESTS_CPU_SPAN_TABLES_H
#define KN_TESTS_CPU_SPAN_TABLES_H

#include <stdint.h>

static const struct {
    int64_t queries, keys;
    int count;
    int32_t spans[5][4];
} span_tables[] = {
    {13, 13, 1, {{0, 13, 0, 13}}},
    {31, 31, 3, {{0, 7, 0, 7}, {7, 1, 7, 1}, {8, 23, 8, 23}}},
    {17, 29, 3, {{0, 5, 20, 9}, {5, 11, 0, 1}, {16, 1, 1, 19}}},
    {23, 11, 4, {{0, 9, 2, 7}, {9, 3, 2, 7}, {12, 4, 0, 11}, {16, 7, 10, 1}}},
    {19, 12, 5, {{2, 5, 0, 6}, {7, 0, 6, 3}, {7, 4, 6, 0}, {12, 3, 3, 9}, {18, 1, 11, 1}}},
    {5, 4, 1, {{0, 0, 0, 0}}},
    {300, 300, 2, {{0, 171, 0, 171}, {171, 129, 171, 129}}},
    {1, 700, 1, {{0, 1, 0, 700}}},
    {512, 512, 2, {{0, 256, 0, 256}, {256, 256, 256, 256}}},
    {407, 430, 2, {{0, 400, 0, 420}, {400, 7, 420, 10}}},                   /* several chunks of queries and of keys */
    {290, 340, 3, {{0, 97, 3, 300}, {97, 98, 90, 250}, {195, 95, 91, 40}}}, /* keys overlap across chunks */
    {130, 210, 2, {{0, 97, 0, 210}, {97, 33, 0, 210}}},                     /* the same keys for two */
    {0, 9, 2, {{0, 0, 0, 5}, {0, 0, 5, 4}}},
    {9, 0, 2, {{0, 5, 0, 0}, {5, 3, 0, 0}}},
    {7, 5, 0, {{0}}},
    {0, 0, 0, {{0}}},
    {450, 20, 4, {{0, 233, 0, 20}, {233, 7, 3, 9}, {240, 0, 4, 8}, {244, 200, 11, 9}}}, /* many queries of few keys */
};

#endif
