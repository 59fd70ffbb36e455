# The plugin for GPUs, kinora-cuda.so: built where the CUDA toolkit and NCCL are found, opened at run time. What it uses
# of other rooms it finds in the program that opens it (kn_lends_to_plugins). Its twin kinora-cuda-emulated.so has the same sources and
# is linked to libraries of the same names that need no GPU (tests/emulated), for tests.
function(kn_lends_to_plugins program)
  set_target_properties(${program} PROPERTIES ENABLE_EXPORTS ON)
  target_link_libraries(${program} -Wl,--whole-archive kn_base kn_graph kn_ops kn_dist -Wl,--no-whole-archive)
endfunction()

# What plugin and program have in common is in these headers; each holds their hash, and one of another version is refused.
file(GLOB interface_headers CONFIGURE_DEPENDS core/graph/*.h core/ops/*.h)
list(APPEND interface_headers ${CMAKE_SOURCE_DIR}/core/base/error.h ${CMAKE_SOURCE_DIR}/dist/comm.h)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${interface_headers})
foreach(header ${interface_headers})
  file(SHA256 ${header} header_hash)
  string(APPEND interface_hashes ${header_hash})
endforeach()
string(SHA256 interface_hash "${interface_hashes}")
set_source_files_properties(core/graph/devices.c PROPERTIES COMPILE_DEFINITIONS KINORA_INTERFACE="${interface_hash}")

find_path(CUDA_INCLUDE cuda_runtime_api.h HINTS $ENV{CUDA_HOME}/include /usr/local/cuda/include)
find_path(NCCL_INCLUDE nccl.h HINTS ${CUDA_INCLUDE})
find_library(CUDART_LIBRARY cudart HINTS ${CUDA_INCLUDE}/../lib64 ${CUDA_INCLUDE}/../lib)
find_library(CUBLASLT_LIBRARY cublasLt HINTS ${CUDA_INCLUDE}/../lib64 ${CUDA_INCLUDE}/../lib)
find_library(NCCL_LIBRARY nccl HINTS ${CUDA_INCLUDE}/../lib64 ${CUDA_INCLUDE}/../lib)
if(NOT CUDA_INCLUDE OR NOT NCCL_INCLUDE OR NOT CUDART_LIBRARY OR NOT CUBLASLT_LIBRARY OR
   NOT NCCL_LIBRARY)
  message(STATUS "CUDA, cuBLASLt or NCCL not found: built without the plugin for GPUs")
  return()
endif()

# cuDNN is opened at run time: its headers say whether the door to it (core/cuda/cudnn) is built.
find_path(CUDNN_INCLUDE cudnn_graph.h HINTS ${CUDA_INCLUDE})
if(CUDNN_INCLUDE)
  file(GLOB cudnn_sources CONFIGURE_DEPENDS core/cuda/cudnn/*.c)
  list(FILTER cudnn_sources EXCLUDE REGEX "absent\\.c$")
else()
  message(STATUS "cuDNN's headers not found: built without attention by cuDNN")
  set(cudnn_sources core/cuda/cudnn/absent.c)
endif()
add_library(kn_cudnn OBJECT ${cudnn_sources})
set_target_properties(kn_cudnn PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(kn_cudnn SYSTEM PRIVATE ${CUDA_INCLUDE} $<$<BOOL:${CUDNN_INCLUDE}>:${CUDNN_INCLUDE}>)

# Kernels (core/cuda/*.cu) are compiled twice: by nvcc for GPUs, and as C++ for the emulated device (core/cuda/emulator).
file(GLOB cuda_sources CONFIGURE_DEPENDS core/cuda/*.c dist/comm_nccl/*.c)
file(GLOB kernel_sources CONFIGURE_DEPENDS core/cuda/*.cu)
function(kn_cuda_plugin name)
  add_library(${name} MODULE ${cuda_sources})
  set_target_properties(${name} PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  target_include_directories(${name} SYSTEM PRIVATE ${CUDA_INCLUDE} ${NCCL_INCLUDE})
  target_compile_definitions(${name} PRIVATE KINORA_INTERFACE="${interface_hash}")
  target_link_libraries(${name} ${ARGN})
endfunction()

# What ptxas says of each kernel and the PTX of its first architecture stay in kernels/, for a test
# (tests/cuda/test_kernels_code.sh). A kernel that spills, has local memory or computes in double precision does not
# build. Under the sanitizers there is nobody to run it.
find_program(NVCC nvcc HINTS ${CUDA_INCLUDE}/../bin)
if(NVCC AND NOT KINORA_SANITIZE)
  set(nvcc_flags -std=c++17 -O3 -lineinfo -I${CMAKE_SOURCE_DIR} -Xcompiler=-fPIC,-fno-strict-aliasing -Werror=all-warnings
      -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90
      -gencode=arch=compute_100,code=[sm_100,compute_100]
      -Xptxas=-v,--warn-on-spills,--warn-on-local-memory-usage,--warn-on-double-precision-use,--warning-as-error)
  set(compile ${CMAKE_SOURCE_DIR}/core/cuda/compile.sh)
  string(REPLACE ";" "\n" nvcc_lines "${NVCC};${nvcc_flags}")
  file(WRITE ${CMAKE_BINARY_DIR}/kernels/command "${nvcc_lines}\n")
  foreach(source ${kernel_sources})
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/kernels/${name}.o)
    add_custom_command(OUTPUT ${object} DEPFILE ${object}.d DEPENDS ${source} ${compile}
                       COMMENT "Compiling ${name}.cu for GPUs"
                       COMMAND sh ${compile} ${CMAKE_BINARY_DIR}/kernels/${name} ${NVCC} ${nvcc_flags}
                       -MD -MF ${object}.d -c ${source} -o ${object} VERBATIM)
    list(APPEND kernel_objects ${object})
  endforeach()
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/kernels)
  kn_cuda_plugin(kinora-cuda ${CUDART_LIBRARY} ${CUBLASLT_LIBRARY} ${NCCL_LIBRARY})
  target_sources(kinora-cuda PRIVATE ${kernel_objects})
  target_link_libraries(kinora-cuda kn_cudnn)
elseif(NOT NVCC)
  message(STATUS "nvcc not found: built without the plugin for GPUs")
endif()

if(CMOCKA_FOUND)
  file(GLOB emulated_sources CONFIGURE_DEPENDS tests/emulated/*.c)
  add_library(kinora-emulated SHARED ${emulated_sources})
  target_include_directories(kinora-emulated SYSTEM PUBLIC ${CUDA_INCLUDE} ${NCCL_INCLUDE})
  target_compile_options(kinora-emulated PRIVATE -Wno-missing-prototypes)
  set_target_properties(kinora-emulated PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(kinora-emulated ${CUBLASLT_LIBRARY} Threads::Threads m)

  file(GLOB emulator_sources CONFIGURE_DEPENDS core/cuda/emulator/*.cc)
  add_library(kn_kernels_emulated OBJECT ${kernel_sources} ${emulator_sources})
  set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS -Wno-unknown-pragmas)
  set_target_properties(kn_kernels_emulated PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(kn_kernels_emulated kinora-emulated)
  set(cudnn_emulated ${CMAKE_SOURCE_DIR}/tests/emulated/cudnn.cu)
  set_source_files_properties(${cudnn_emulated} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS -Wno-unknown-pragmas)
  kn_cuda_plugin(kinora-cuda-emulated kn_kernels_emulated kinora-emulated)
  target_sources(kinora-cuda-emulated PRIVATE ${cudnn_emulated})
endif()
