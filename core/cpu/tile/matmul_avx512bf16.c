/* The bf16 matrix product with vdpbf16ps: two products and two sums into each of 16 f32 lanes, once a cycle on Zen 4.
 */
#include "core/cpu/simd/matmul_tile.h"

KN_TILE_BLOCK(kn_matmul_block_bf16_avx512bf16, bf16, KN_STEP_DOT)
