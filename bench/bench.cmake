# Benchmarks, built on request only: cmake --build build --target bench_NAME.
find_library(ONEDNN_LIBRARY dnnl)
find_path(ONEDNN_INCLUDE oneapi/dnnl/dnnl.hpp)
add_executable(bench_matmul EXCLUDE_FROM_ALL bench/bench_matmul.c)
target_link_libraries(bench_matmul kn_cpu)
if(ONEDNN_LIBRARY AND ONEDNN_INCLUDE)
  target_sources(bench_matmul PRIVATE bench/onednn_matmul.cc)
  target_compile_definitions(bench_matmul PRIVATE KN_HAVE_onednn=1)
  target_link_libraries(bench_matmul ${ONEDNN_LIBRARY})
endif()

add_executable(bench_team EXCLUDE_FROM_ALL bench/bench_team.c)
target_link_libraries(bench_team kn_cpu OpenMP::OpenMP_C)

add_executable(bench_attention EXCLUDE_FROM_ALL bench/bench_attention.c)
target_link_libraries(bench_attention kn_cpu)

add_executable(bench_copy EXCLUDE_FROM_ALL bench/bench_copy.c)
target_link_libraries(bench_copy kn_train)
