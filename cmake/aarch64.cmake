# Cross-compiling for aarch64 (Grace, the CPU of the superchip) with GCC; the tests run under qemu-user.
# Debian and Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

# Where the target's loader and libraries are, for the emulator: <root>/lib/libc.so.6.
execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libc.so.6
  OUTPUT_VARIABLE target_libc OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT IS_ABSOLUTE "${target_libc}")
  message(FATAL_ERROR "${CMAKE_CXX_COMPILER} has no C library for aarch64")
endif()
get_filename_component(target_root "${target_libc}" REALPATH)
get_filename_component(target_root "${target_root}" DIRECTORY)
get_filename_component(target_root "${target_root}" DIRECTORY)

# `max`: every instruction the emulator knows, so that the bf16 kernels run as well.
find_program(QEMU_AARCH64 NAMES qemu-aarch64 qemu-aarch64-static REQUIRED DOC "qemu-user for aarch64")
set(CMAKE_CROSSCOMPILING_EMULATOR "${QEMU_AARCH64};-cpu;max;-L;${target_root}")

# Programs are this machine's; headers and libraries are the target's.
set(CMAKE_FIND_ROOT_PATH "${target_root}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
