# What the library shows and what it needs: cmake -DLIBRARY=... -DNM=... -P check_symbols.cmake
function(symbols out)
  execute_process(COMMAND "${NM}" -D ${ARGN} "${LIBRARY}"
    OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[A-Za-z] [A-Za-z0-9_@.]+" found "${text}")
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

symbols(shown --defined-only)
list(SORT shown)
if(NOT shown STREQUAL "T getCreators;T setLoggerFinder")
  message(FATAL_ERROR "exports: ${shown}")
endif()

symbols(needed --undefined-only)
foreach(symbol IN LISTS needed)
  # Of the C and C++ runtimes (versioned), of libduplexkv, or weak.
  if(NOT symbol MATCHES "@(GLIBC|GLIBCXX|CXXABI|GCC)_|^U dkv_|^w ")
    message(FATAL_ERROR "needs ${symbol}")
  endif()
endforeach()
list(LENGTH needed count)
message(STATUS "2 symbols shown, ${count} needed, none of TensorRT or CUDA")
