# The CUDA backend. Its C++ needs no CUDA, neither to build nor to load: the driver is found at run
# time. Only the copy kernels need nvcc; a build without it copies by the copy engines alone.
set(SUPERINFER_CUDA AUTO CACHE STRING "Copy kernels: ON (an error without nvcc), OFF, or AUTO (if there is one)")
set_property(CACHE SUPERINFER_CUDA PROPERTY STRINGS AUTO ON OFF)
find_program(SUPERINFER_NVCC nvcc HINTS ENV CUDA_HOME PATH_SUFFIXES bin DOC "nvcc >= 13.0 for the copy kernels")

target_sources(duplexkv_core PRIVATE
  src/cuda_batch.cpp
  src/cuda_c_api.cpp
  src/cuda_device.cpp
  src/cuda_driver.cpp
  src/cuda_gpu.cpp
  src/cuda_image.cpp
  src/cuda_launch.cpp
  src/cuda_parts.cpp
  src/cuda_rotate.cpp
  src/cuda_trial.cpp
  src/host_memory.cpp
  src/route.cpp)
target_link_libraries(duplexkv_core PRIVATE ${CMAKE_DL_LIBS})

set(kernels_wanted ${SUPERINFER_CUDA})
if(kernels_wanted STREQUAL "AUTO")
  set(kernels_wanted OFF)
  if(SUPERINFER_NVCC AND NOT CMAKE_CROSSCOMPILING)
    execute_process(COMMAND "${SUPERINFER_NVCC}" --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
    if(nvcc_version MATCHES "release ([0-9]+)\\." AND CMAKE_MATCH_1 GREATER_EQUAL 13)
      set(kernels_wanted ON)
    endif()
  endif()
endif()
if(kernels_wanted AND NOT SUPERINFER_NVCC)
  message(FATAL_ERROR "SUPERINFER_CUDA=ON: no nvcc; set SUPERINFER_NVCC to one of CUDA >= 13.0")
endif()
if(NOT kernels_wanted)
  message(STATUS "DuplexKV: no nvcc >= 13.0, the copy kernels are left out; copy engines are used")
  return()
endif()
message(STATUS "DuplexKV: copy kernels by ${SUPERINFER_NVCC}")

# Machine code for sm_80 serves 8.x, sm_90 serves Hopper, sm_100 serves 10.x, sm_120 serves 12.x; the
# intermediate code serves what comes after.
set(nvcc_flags -std=c++20 -O3 --threads 2 -allow-unsupported-compiler -ccbin ${CMAKE_CXX_COMPILER}
  -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90
  -gencode=arch=compute_100,code=sm_100 -gencode=arch=compute_120,code=[sm_120,compute_120])
if(SUPERINFER_WERROR)
  list(APPEND nvcc_flags -Werror all-warnings -Xptxas -warn-spills)
endif()
if(SUPERINFER_CUDA STREQUAL "ON")
  list(APPEND nvcc_flags -Xptxas -v) # registers and spills of each kernel
endif()
set(kernels_image "${CMAKE_CURRENT_BINARY_DIR}/cuda_kernels.fatbin")
add_custom_command(OUTPUT "${kernels_image}"
  COMMAND "${SUPERINFER_NVCC}" ${nvcc_flags} -fatbin -o "${kernels_image}"
    "${CMAKE_CURRENT_SOURCE_DIR}/src/cuda_kernels.cu"
  DEPENDS src/cuda_kernels.cu src/cuda_pieces.hpp src/cuda_rotation.hpp
  COMMENT "Compiling the copy kernels for sm_80, sm_90, sm_100, sm_120" VERBATIM)

# Whether the types and numbers we give the driver are those of NVIDIA's header.
set(abi_stamp "${CMAKE_CURRENT_BINARY_DIR}/cuda_abi_check.o")
add_custom_command(OUTPUT "${abi_stamp}"
  COMMAND "${SUPERINFER_NVCC}" -std=c++20 -x c++ -c -allow-unsupported-compiler
    -ccbin ${CMAKE_CXX_COMPILER} -I "${CMAKE_CURRENT_SOURCE_DIR}/include" -o "${abi_stamp}"
    "${CMAKE_CURRENT_SOURCE_DIR}/src/cuda_abi_check.cpp"
  DEPENDS src/cuda_abi_check.cpp src/cuda_driver.hpp
  COMMENT "Comparing the driver's table with cuda.h" VERBATIM)

add_custom_target(duplexkv_kernels DEPENDS "${kernels_image}" "${abi_stamp}")
add_dependencies(duplexkv_core duplexkv_kernels)
set_source_files_properties(src/cuda_image.cpp PROPERTIES
  COMPILE_DEFINITIONS "DUPLEXKV_KERNELS=\"${kernels_image}\"" OBJECT_DEPENDS "${kernels_image}")
