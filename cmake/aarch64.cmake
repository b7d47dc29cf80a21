# Toolchain for 64-bit Arm with Debian's cross compiler (g++-aarch64-linux-gnu); programs run under qemu-user-static.
#   cmake -S . -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake -DFTH_KERNELS_ONLY=ON
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static;-L;/usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

# tl/expected.hpp is a header alone and the same for every processor, but /usr/include as a whole is the host's: a folder with that one link.
if(EXISTS /usr/include/tl/expected.hpp)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/host_headers)
  file(CREATE_LINK /usr/include/tl ${CMAKE_BINARY_DIR}/host_headers/tl SYMBOLIC)
  set(FTH_EXPECTED_INCLUDE ${CMAKE_BINARY_DIR}/host_headers CACHE PATH "Where tl/expected.hpp is")
endif()
