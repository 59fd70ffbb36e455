/* The choice of an instruction set. What the CPU has and what the operating system saves comes from the compiler's
 * runtime, but for AMX, which has to be asked of the kernel once per process and is then checked on a small product. */
#include "core/cpu/isa.h"

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/cpu/matmul_kernel.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(KN_HAVE_amx)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const char *const names[KN_ISA_COUNT] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};

/* 1 + level, 0 while undecided. Threads that decide at the same time decide the same. */
static atomic_int machine_level, limit_level;

const char *kn_cpu_isa_name(KnIsa isa)
{
    KN_ASSERT(isa < KN_ISA_COUNT);
    return names[isa];
}

#if defined(KN_HAVE_amx)
static int amx_usable(void)
{
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, OSXSAVE = 1 << 27, TILE_STATE = 3 << 17 };
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned eax, ebx, ecx, edx, xcr0, xcr0_high;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & OSXSAVE))
        return 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (AMX_BF16 | AMX_TILE)) != (AMX_BF16 | AMX_TILE))
        return 0;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
    if ((xcr0 & TILE_STATE) != TILE_STATE)
        return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

static KnIsa detect(void)
{
#if defined(KN_HAVE_avx2) && defined(KN_HAVE_avx512)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return KN_ISA_GENERIC;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return KN_ISA_AVX2;
    if (!__builtin_cpu_supports("avx512bf16"))
        return KN_ISA_AVX512;
#if defined(KN_HAVE_amx)
    if (amx_usable()) {
        if (kn_matmul_self_test(kn_matmul_kernel(KN_BF16, KN_ISA_AMX)))
            return KN_ISA_AMX;
        kn_warn("this machine's AMX unit gives wrong results in a self-test: using avx512bf16 instead");
    }
#endif
    return KN_ISA_AVX512BF16;
#else
    return KN_ISA_GENERIC;
#endif
}

/* The cap that KINORA_ISA sets. */
static KnIsa environment_limit(void)
{
    const char *text = getenv("KINORA_ISA");
    if (!text || !*text)
        return KN_ISA_COUNT;
    for (int i = 0; i < KN_ISA_COUNT; i++)
        if (strcmp(text, names[i]) == 0)
            return (KnIsa)i;
    kn_warn("KINORA_ISA=%s is none of generic, avx2, avx512, avx512bf16, amx: ignored", text);
    return KN_ISA_COUNT;
}

static KnIsa machine(void)
{
    int level = atomic_load_explicit(&machine_level, memory_order_relaxed);
    if (level == 0) {
        KnIsa found = detect(), limit = environment_limit();
        level = 1 + (int)(found < limit ? found : limit);
        atomic_store_explicit(&machine_level, level, memory_order_relaxed);
    }
    return (KnIsa)(level - 1);
}

KnIsa kn_cpu_isa(void)
{
    int limit = atomic_load_explicit(&limit_level, memory_order_relaxed);
    KnIsa found = machine();
    return limit == 0 || found < (KnIsa)(limit - 1) ? found : (KnIsa)(limit - 1);
}

KnIsa kn_cpu_isa_limit(KnIsa highest)
{
    atomic_store(&limit_level, highest == KN_ISA_COUNT ? 0 : 1 + (int)highest);
    return kn_cpu_isa();
}
