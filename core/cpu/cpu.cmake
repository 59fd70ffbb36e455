# The CPU backend. Files in core/cpu are compiled once; files in core/cpu/simd once for each instruction set, with
# KN_ISA naming it, so that every public symbol there goes through KN_ISA_NAME (core/cpu/simd/isa.h).
file(GLOB cpu_sources CONFIGURE_DEPENDS core/cpu/*.c)
file(GLOB simd_sources CONFIGURE_DEPENDS core/cpu/simd/*.c)
add_library(kn_cpu STATIC ${cpu_sources})
target_link_libraries(kn_cpu PUBLIC kn_ops OpenMP::OpenMP_C)

function(kn_isa name)
  if(NOT simd_sources)
    return()
  endif()
  add_library(kn_cpu_${name} OBJECT ${simd_sources})
  target_compile_definitions(kn_cpu_${name} PRIVATE KN_ISA=${name} KN_ISA_IS_${name}=1)
  target_compile_options(kn_cpu_${name} PRIVATE ${ARGN})
  target_link_libraries(kn_cpu_${name} PRIVATE kn_ops OpenMP::OpenMP_C)
  target_sources(kn_cpu PRIVATE $<TARGET_OBJECTS:kn_cpu_${name}>)
  target_compile_definitions(kn_cpu PRIVATE KN_HAVE_${name}=1)
endfunction()

kn_isa(generic)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  kn_isa(avx2 -mavx2 -mfma -mf16c)
  kn_isa(avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
endif()
