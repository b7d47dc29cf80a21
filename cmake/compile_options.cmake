# Flags that every target of the project has. -ffp-contract=off: sums are what the source says, under every compiler and instruction set.
add_library(fth_options INTERFACE)
target_include_directories(fth_options INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
target_compile_features(fth_options INTERFACE cxx_std_20)
target_compile_options(fth_options INTERFACE $<BUILD_INTERFACE:-Wall;-Wextra;-Wconversion;-Wshadow;-Wnon-virtual-dtor;-ffp-contract=off>)
if(FTH_WERROR)
  target_compile_options(fth_options INTERFACE $<BUILD_INTERFACE:-Werror>)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(fth_options INTERFACE $<BUILD_INTERFACE:-Wthread-safety>)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1" CACHE STRING "" FORCE)  # asserts stay on
if(FTH_SANITIZE)
  add_compile_options(-fsanitize=${FTH_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${FTH_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-Wno-maybe-uninitialized)  # instrumented code makes this warning of g++ 12 wrong; plain builds keep it
  endif()
endif()

# fth_library(NAME sources...): a static library of the project, part of the installed package.
function(fth_library target)
  add_library(${target} STATIC ${ARGN})
  target_link_libraries(${target} PUBLIC fth_options)
  set_property(GLOBAL APPEND PROPERTY FTH_LIBRARIES ${target})
endfunction()
