#pragma once
// xxh3_64 with seed 0 over several pieces as if they were one.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace fth {

uint64_t xxh3_64(std::initializer_list<std::span<const std::byte>> pieces);

}  // namespace fth
