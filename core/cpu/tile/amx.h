/* Intel AMX in the five operations that the matrix product uses, on eight tile registers of 16 rows x 64 bytes.
 *
 * With KN_AMX_EMULATED the same names are plain C on memory, in the order of operations and with the rounding that
 * Intel's manual gives (except that it flushes subnormals): the kernel source is tested where no AMX is. Register
 * numbers must be literals, hence macros. One thread's tiles are its own; between kn_amx_config and kn_amx_release
 * nothing else may use them. */
#ifndef KN_CPU_TILE_AMX_H
#define KN_CPU_TILE_AMX_H

#include <stdint.h>
#include <string.h>

typedef struct KnAmxConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} KnAmxConfig;

#ifndef KN_AMX_EMULATED

/* Written as assembly and not with the compiler's intrinsics, since some of those do not say that they read memory. */
#define kn_amx_config(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(config)) : "memory")
#define kn_amx_release() __asm__ volatile("tilerelease" ::: "memory")
#define kn_amx_zero(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define kn_amx_load(tile, from, stride)                                                                                \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"((const void *)(from)), "r"((int64_t)(stride))            \
                     : "memor"                                                                                         \
                       "y")
#define kn_amx_store(tile, to, stride)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"((void *)(to)), "r"((int64_t)(stride)) : "memory")
#define kn_amx_dpbf16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

#else

#include "core/base/bf16.h"
#include "core/base/error.h"

static _Thread_local struct {
    KnAmxConfig config;
    unsigned char data[8][16][64];
} kn_amx_tiles;

static inline void kn_amx_config(const KnAmxConfig *config)
{
    memset(&kn_amx_tiles, 0, sizeof kn_amx_tiles);
    kn_amx_tiles.config = *config;
    KN_ASSERT(config->palette == 1);
    for (int i = 0; i < 8; i++)
        KN_ASSERT(config->rows[i] <= 16 && config->row_bytes[i] <= 64);
}

static inline void kn_amx_release(void)
{
    memset(&kn_amx_tiles, 0, sizeof kn_amx_tiles);
}

static inline void kn_amx_zero(int tile)
{
    KN_ASSERT(kn_amx_tiles.config.rows[tile] > 0);
    memset(kn_amx_tiles.data[tile], 0, sizeof kn_amx_tiles.data[tile]);
}

static inline void kn_amx_load(int tile, const void *from, int64_t stride)
{
    kn_amx_zero(tile);
    for (int r = 0; r < kn_amx_tiles.config.rows[tile]; r++)
        memcpy(kn_amx_tiles.data[tile][r], (const char *)from + r * stride, kn_amx_tiles.config.row_bytes[tile]);
}

static inline void kn_amx_store(int tile, void *to, int64_t stride)
{
    KN_ASSERT(kn_amx_tiles.config.rows[tile] > 0);
    for (int r = 0; r < kn_amx_tiles.config.rows[tile]; r++)
        memcpy((char *)to + r * stride, kn_amx_tiles.data[tile][r], kn_amx_tiles.config.row_bytes[tile]);
}

/* Even and odd elements of every row of a tile, as floats. */
static inline void kn_amx_widen(int tile, float values[2][16][16])
{
    for (int r = 0; r < 16; r++)
        for (int i = 0; i < 32; i++) {
            uint16_t value;
            memcpy(&value, &kn_amx_tiles.data[tile][r][2 * i], sizeof value);
            values[i % 2][r][i / 2] = kn_bf16_to_float(value);
        }
}

static inline void kn_amx_dpbf16(int c, int a, int b)
{
    const KnAmxConfig *config = &kn_amx_tiles.config;
    float av[2][16][16], bv[2][16][16];
    KN_ASSERT(config->rows[c] == config->rows[a] && config->row_bytes[c] == config->row_bytes[b]);
    KN_ASSERT(config->row_bytes[a] == 4 * config->rows[b]);
    kn_amx_widen(a, av);
    kn_amx_widen(b, bv);
    for (int m = 0; m < config->rows[c]; m++) {
        float even[16] = {0}, odd[16] = {0}, sums[16];
        for (int k = 0; k < config->rows[b]; k++)
            for (int n = 0; n < 16; n++) {
                even[n] += av[0][m][k] * bv[0][k][n];
                odd[n] += av[1][m][k] * bv[1][k][n];
            }
        memcpy(sums, kn_amx_tiles.data[c][m], sizeof sums);
        for (int n = 0; n < 16; n++)
            sums[n] += even[n] + odd[n];
        memcpy(kn_amx_tiles.data[c][m], sums, sizeof sums);
    }
}

#endif
#endif
