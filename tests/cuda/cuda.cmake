# What tests of kernels need beside their own files. Outside the sanitizer build, plugin, kernels, emulated device and
# runtime are compiled a second time with ThreadSanitizer, for the planted bugs, attention and the op table; in it,
# AddressSanitizer and UndefinedBehaviorSanitizer are everywhere.
set_source_files_properties(cuda/planted.cu ${kernel_sources} ${cudnn_emulated} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS -Wno-unknown-pragmas)
function(kn_planted name)
  add_executable(${name} cuda/planted.cu)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(${name} ${ARGN})
endfunction()
kn_planted(planted kn_kernels_emulated)

# A driver to which cuDNN's plans can be given without a GPU.
add_library(cuda-driver SHARED driver/driver.c)
set_target_properties(cuda-driver PROPERTIES OUTPUT_NAME cuda SOVERSION 1
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/driver)

if(NOT KINORA_SANITIZE)
  add_library(kn_kernels_tsan OBJECT ${kernel_sources} ${emulator_sources} ${emulated_sources})
  set_target_properties(kn_kernels_tsan PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_include_directories(kn_kernels_tsan SYSTEM PUBLIC ${CUDA_INCLUDE} ${NCCL_INCLUDE})
  target_compile_options(kn_kernels_tsan PUBLIC -fsanitize=thread -g
                         PRIVATE $<$<COMPILE_LANGUAGE:C>:-Wno-missing-prototypes>)
  target_link_options(kn_kernels_tsan PUBLIC -fsanitize=thread)
  target_link_libraries(kn_kernels_tsan ${CUBLASLT_LIBRARY} Threads::Threads m)
  kn_planted(planted_tsan kn_kernels_tsan)

  # Plugin and program lie as in the build folder, where the test looks for the one beside the other.
  kn_cuda_plugin(kinora-cuda-tsan kn_kernels_tsan)
  target_sources(kinora-cuda-tsan PRIVATE ${cudnn_emulated})
  set_target_properties(kinora-cuda-tsan PROPERTIES OUTPUT_NAME kinora-cuda-emulated
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tsan)
  kn_test_program(test_ops_tsan cuda/test_ops_emulated.c)
  target_link_libraries(test_ops_tsan PkgConfig::CMOCKA)
  target_link_options(test_ops_tsan PRIVATE -fsanitize=thread)
  set_target_properties(test_ops_tsan PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tsan/tests)
  add_test(NAME cuda.test_ops_tsan COMMAND test_ops_tsan --small)
  kn_test_properties(cuda.test_ops_tsan cuda/test_ops_emulated.c cuda 600)
  set_property(TEST cuda.test_ops_tsan APPEND PROPERTY ENVIRONMENT KINORA_CUBLASLT=0) # products are kernels, too

  kn_test_program(test_attention_tsan cuda/test_attention_kernels.c)
  target_link_libraries(test_attention_tsan PkgConfig::CMOCKA kn_kernels_tsan)
  add_test(NAME cuda.test_attention_tsan COMMAND test_attention_tsan)
  kn_test_properties(cuda.test_attention_tsan cuda/test_attention_kernels.c cuda 600)
endif()
