/* The f32 matrix product's kernel of plain C, AVX2 and AVX-512. */
#include "core/cpu/simd/matmul_tile.h"
#include "core/cpu/simd/isa.h"

KN_TILE_BLOCK(KN_ISA_NAME(kn_matmul_block_f32), f32, KN_STEP_F32)
