# The headers of TensorRT (>= 10.3, which brought aliased outputs) and of the CUDA runtime they
# include. No library: the plugins link none.
#
#   TENSORRT_ROOT            where to look first: include/ of a TensorRT package or source tree
#   CUDAToolkit_ROOT         likewise for cuda_runtime_api.h
#
# Gives the target TensorRT::headers and TensorRTHeaders_VERSION.
file(GLOB _cuda_roots /usr/local/cuda /usr/local/cuda-*)
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
  HINTS "${TENSORRT_ROOT}" ENV TENSORRT_ROOT PATH_SUFFIXES include)
find_path(TENSORRT_CUDA_INCLUDE_DIR cuda_runtime_api.h
  HINTS "${CUDAToolkit_ROOT}" ${_cuda_roots} PATH_SUFFIXES include)
mark_as_advanced(TENSORRT_INCLUDE_DIR TENSORRT_CUDA_INCLUDE_DIR)

set(TensorRTHeaders_VERSION "")
if(NOT EXISTS "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h")
  set(TENSORRT_INCLUDE_DIR "TENSORRT_INCLUDE_DIR-NOTFOUND")
else()
  file(STRINGS "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h" _lines REGEX "#define [A-Z_]+_(MAJOR|MINOR|PATCH)")
  foreach(_part MAJOR MINOR PATCH)
    # Newer headers say NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE, and the number one line above.
    string(REGEX MATCH "(NV_TENSORRT_${_part}|TRT_${_part}_ENTERPRISE) ([0-9]+)" _found "${_lines}")
    list(APPEND _version "${CMAKE_MATCH_2}")
  endforeach()
  list(JOIN _version "." TensorRTHeaders_VERSION)
  unset(_version)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRTHeaders
  REQUIRED_VARS TENSORRT_INCLUDE_DIR TENSORRT_CUDA_INCLUDE_DIR
  VERSION_VAR TensorRTHeaders_VERSION)
if(TensorRTHeaders_FOUND AND NOT TARGET TensorRT::headers)
  add_library(TensorRT::headers INTERFACE IMPORTED)
  target_include_directories(TensorRT::headers SYSTEM INTERFACE
    "${TENSORRT_INCLUDE_DIR}" "${TENSORRT_CUDA_INCLUDE_DIR}")
endif()
