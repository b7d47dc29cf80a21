#pragma once
// FTH_CHECK: an invariant of ours is broken. Never for input, files, devices or memory: those return an Error.

#include <cstdio>
#include <cstdlib>

#define FTH_CHECK(condition, message)                                                                                    \
  do {                                                                                                                   \
    if (!(condition)) [[unlikely]] {                                                                                     \
      std::fprintf(stderr, "forethought: broken invariant at %s:%d: %s: %s\n", __FILE__, __LINE__, #condition, message); \
      std::abort();                                                                                                      \
    }                                                                                                                    \
  } while (0)
