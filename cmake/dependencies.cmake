# What the system provides; `./setup` installs it, docs/dependencies.md says why each one.
find_path(FTH_EXPECTED_INCLUDE tl/expected.hpp REQUIRED)  # libexpected-dev
add_library(fth_expected INTERFACE)
target_include_directories(fth_expected SYSTEM INTERFACE ${FTH_EXPECTED_INCLUDE})
target_link_libraries(fth_options INTERFACE fth_expected)
if(NOT FTH_KERNELS_ONLY)
  find_package(Boost 1.81 REQUIRED COMPONENTS program_options json)
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
  pkg_check_modules(HWLOC REQUIRED IMPORTED_TARGET hwloc)
  pkg_check_modules(URING REQUIRED IMPORTED_TARGET liburing)
  find_path(FTH_XXHASH_INCLUDE xxhash.h REQUIRED)  # libxxhash-dev; used as a header
  pkg_check_modules(EDIT REQUIRED IMPORTED_TARGET libedit)
endif()
