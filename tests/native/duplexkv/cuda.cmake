# The CUDA backend against a driver that is a part of the test.
add_library(duplexkv_cuda_fake STATIC cuda_fake.cpp)
target_include_directories(duplexkv_cuda_fake PUBLIC . "${PROJECT_SOURCE_DIR}/plugins/duplexkv/src")
target_link_libraries(duplexkv_cuda_fake PUBLIC duplexkv_core superinfer_options)
foreach(part driver engine gpu host_memory pieces rotate route)
  duplexkv_test(duplexkv_cuda_${part} cuda_test_${part}.cpp)
  target_link_libraries(duplexkv_cuda_${part} PRIVATE duplexkv_cuda_fake)
endforeach()
