/* The matrix product's kernels of plain C, AVX2 and AVX-512: f32, and bf16 widened to f32 on the way in. */
#include "core/cpu/simd/matmul_tile.h"
#include "core/cpu/simd/isa.h"

KN_TILE_BLOCK(KN_ISA_NAME(kn_matmul_block_f32), f32, KN_STEP_F32)
KN_TILE_BLOCK(KN_ISA_NAME(kn_matmul_block_bf16), bf16, KN_STEP_WIDEN)
