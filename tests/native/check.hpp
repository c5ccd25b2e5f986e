// A test is a function that calls CHECK; a program runs its list and exits 1 if a check failed.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (false)

#define RUN(test)                        \
  do {                                   \
    std::fprintf(stderr, "%s\n", #test); \
    test();                              \
  } while (false)
