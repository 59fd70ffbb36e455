/* Which instruction set the CPU kernels use: found once at run time, lowered by the environment.
 *
 * KINORA_ISA=generic|avx2|avx512|avx512bf16|amx caps the choice (it never raises it above what the machine has). Files
 * in core/cpu/simd are compiled once for each of generic, avx2 and avx512 (core/cpu/simd/isa.h); a caller in core/cpu
 * reaches the variant that fits through KN_ISA_PICK. Above that, the ops' kernels are compiled for avx512bf16 too
 * (backend.c picks them), and the matrix product has kernels of its own. */
#ifndef KN_CPU_ISA_H
#define KN_CPU_ISA_H

/* Each level includes those below it. */
typedef enum KnIsa {
    KN_ISA_GENERIC,    /* plain C */
    KN_ISA_AVX2,       /* AVX2, FMA, F16C */
    KN_ISA_AVX512,     /* AVX-512 F, BW, DQ, VL */
    KN_ISA_AVX512BF16, /* and vdpbf16ps */
    KN_ISA_AMX,        /* and AMX-TILE, AMX-BF16, permitted by the kernel and right in a start-up self-test */
    KN_ISA_COUNT
} KnIsa;

/* The level in use; the same for the whole life of the process unless kn_cpu_isa_limit is called. Thread-safe. */
KnIsa kn_cpu_isa(void);

/* "generic", "avx2", ... of a level, as KINORA_ISA spells it. */
const char *kn_cpu_isa_name(KnIsa isa);

/* Caps the level from now on, for tests that run every variant; KN_ISA_COUNT takes the cap away. Returns the level
 * now in use. Not to be called while kernels run. */
KnIsa kn_cpu_isa_limit(KnIsa highest);

/* Declares the three variants of a function of core/cpu/simd:
 * KN_ISA_DECLARE(void, kn_gelu_rows, (float *out, const float *in, int64_t count)); */
#define KN_ISA_DECLARE(type, name, arguments)                                                                          \
    type name##_generic arguments;                                                                                     \
    type name##_avx2 arguments;                                                                                        \
    type name##_avx512 arguments

/* The variant for this machine, for use in core/cpu: KN_ISA_PICK(kn_gelu_rows)(out, in, count). */
#if defined(KN_HAVE_avx2) && defined(KN_HAVE_avx512)
#define KN_ISA_PICK(name)                                                                                              \
    (kn_cpu_isa() >= KN_ISA_AVX512 ? name##_avx512 : kn_cpu_isa() >= KN_ISA_AVX2 ? name##_avx2 : name##_generic)
#else
#define KN_ISA_PICK(name) (name##_generic)
#endif

#endif
