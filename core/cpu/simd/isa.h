/* For files in core/cpu/simd only: they are compiled once for each instruction set, with KN_ISA naming it (generic,
 * avx2, avx512; for the ops' kernels avx512bf16 too) and KN_ISA_IS_generic, KN_ISA_IS_avx2 ... defined as 1.
 *
 * Every symbol with external linkage must be wrapped, so that the objects do not clash:
 *     void KN_ISA_NAME(kn_gelu_rows)(float *out, const float *in, int64_t count) { ... }
 * defines kn_gelu_rows_avx512 and its two sisters; declare them with KN_ISA_DECLARE of core/cpu/isa.h. */
#ifndef KN_CPU_SIMD_ISA_H
#define KN_CPU_SIMD_ISA_H

#include "core/cpu/isa.h"

#ifndef KN_ISA
#error "core/cpu/simd is compiled once for each instruction set: KN_ISA must name it (see cpu.cmake)"
#endif

#define KN_ISA_JOIN_(name, isa) name##_##isa
#define KN_ISA_JOIN(name, isa) KN_ISA_JOIN_(name, isa)
#define KN_ISA_NAME(name) KN_ISA_JOIN(name, KN_ISA)

#endif
