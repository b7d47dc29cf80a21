#pragma once
// What the kernel tests share: random blocks, a reference in double written from the formats' definitions, memory that ends at a forbidden page,
// and a GoogleTest fixture with one instance for each table. A table that this machine lacks is skipped with the reason of its refusal.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu/kernels/kernels.h"
#include "core/base/dtype.h"
#include "core/base/half.h"

namespace fth::cpu {

class KernelTest : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    const KernelChoice* choices = nullptr;
    ASSERT_LT(GetParam(), kernel_choices(&choices));
    if (choices[GetParam()].refusal) GTEST_SKIP() << choices[GetParam()].table->name << ": " << choices[GetParam()].refusal;
    table_ = choices[GetParam()].table;
  }
  const KernelTable& table() const { return *table_; }

 private:
  const KernelTable* table_ = nullptr;
};

inline size_t n_tables() {
  const KernelChoice* choices = nullptr;
  return kernel_choices(&choices);
}
inline std::string table_name(const testing::TestParamInfo<size_t>& info) {
  const KernelChoice* choices = nullptr;
  kernel_choices(&choices);
  return choices[info.param].table->name;
}

// Bytes whose last one is the last before a page that may not be touched; `before` bytes in front of the first hold a pattern.
class Guarded {
 public:
  static constexpr size_t kFront = 64;
  explicit Guarded(size_t bytes) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes + kFront + page - 1) / page * page + page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) throw std::bad_alloc();
    data_ = base_ + mapped_ - page - bytes;
    std::memset(data_ - kFront, 0xa5, kFront);
  }
  Guarded(Guarded&& other) noexcept
      : bytes_(other.bytes_), mapped_(other.mapped_), base_(std::exchange(other.base_, nullptr)), data_(other.data_) {}
  Guarded& operator=(Guarded&&) = delete;
  ~Guarded() {
    if (base_) munmap(base_, mapped_);
  }
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  float* floats() { return reinterpret_cast<float*>(data_); }
  size_t size() const { return bytes_; }
  bool front_intact() const {
    for (size_t i = 1; i <= kFront; ++i)
      if (data_[-static_cast<ptrdiff_t>(i)] != 0xa5) return false;
    return true;
  }

 private:
  size_t bytes_, mapped_ = 0;
  uint8_t *base_ = nullptr, *data_ = nullptr;
};

class Rng {
 public:
  explicit Rng(uint64_t seed) : engine_(seed) {}
  uint64_t bits() { return engine_(); }
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(engine_() >> 11) * 0x1p-53; }
  float normal() {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += uniform(-0.5, 0.5);
    return static_cast<float>(sum);
  }
  std::vector<float> normals(int64_t n, float scale = 1.0f) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = normal() * scale;
    return v;
  }

 private:
  std::mt19937_64 engine_;
};

template <class T>
T read_as(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
void write_as(uint8_t* p, T v) {
  std::memcpy(p, &v, sizeof v);
}
inline double half_value(const uint8_t* p) { return static_cast<double>(f16_to_f32(read_as<uint16_t>(p))); }

// Any codes and small integers, f16 fields of this magnitude and either sign.
inline void random_row(DType type, int64_t k, float magnitude, Rng& rng, uint8_t* row) {
  const DTypeTraits& t = traits(type);
  for (uint64_t i = 0; i < row_bytes(type, k); ++i) row[i] = static_cast<uint8_t>(rng.bits() >> 32);
  for (int64_t b = 0; b < k / t.block; ++b) {
    uint8_t* p = row + static_cast<uint64_t>(b) * t.block_bytes;
    const auto scale = [&] {
      return f32_to_f16(magnitude * static_cast<float>(rng.uniform(0.2, 1.0)) * (rng.below(4) == 0 ? -1.0f : 1.0f));
    };
    switch (type) {
      case DType::f32: write_as(p, rng.normal() * magnitude); break;
      case DType::f16: write_as(p, f32_to_f16(rng.normal() * magnitude)); break;
      case DType::bf16: write_as(p, f32_to_bf16(rng.normal() * magnitude)); break;
      case DType::q8_0:
        write_as(p, scale());
        p[2 + rng.below(32)] = 0x80;  // -128: its absolute value does not fit int8
        break;
      case DType::q4_0: write_as(p, scale()); break;
      case DType::q4_1:
      case DType::q4_k:
        write_as(p, scale());
        write_as(p + 2, scale());
        break;
      case DType::q6_k: write_as(p + 208, scale()); break;
      case DType::i32: break;
    }
  }
}

// Value i of a row, from the format's definition.
inline double value_at(DType type, const uint8_t* row, int64_t i) {
  const DTypeTraits& t = traits(type);
  const uint8_t* p = row + static_cast<uint64_t>(i) / t.block * t.block_bytes;
  const int j = static_cast<int>(i % t.block);
  const auto nibble = [](const uint8_t* q, int n) { return n < 16 ? q[n] & 15 : q[n - 16] >> 4; };
  switch (type) {
    case DType::f32: return static_cast<double>(read_as<float>(p));
    case DType::f16: return half_value(p);
    case DType::bf16: return static_cast<double>(bf16_to_f32(read_as<uint16_t>(p)));
    case DType::q8_0: return half_value(p) * static_cast<int8_t>(p[2 + j]);
    case DType::q4_0: return half_value(p) * (nibble(p + 2, j) - 8);
    case DType::q4_1: return half_value(p) * nibble(p + 4, j) + half_value(p + 2);
    case DType::q4_k: {
      const uint8_t* s = p + 4;
      const int g = j / 32;
      const int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
      const int minimum = g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) | (s[g] >> 6) << 4;
      const uint8_t byte = p[16 + g / 2 * 32 + j % 32];
      return half_value(p) * scale * (g % 2 ? byte >> 4 : byte & 15) - half_value(p + 2) * minimum;
    }
    case DType::q6_k: {
      const int h = j / 128, g = j % 128 / 32, l = j % 32;
      const uint8_t low = p[64 * h + 32 * (g % 2) + l];
      const int code = (g < 2 ? low & 15 : low >> 4) | (p[128 + 32 * h + l] >> (2 * g) & 3) << 4;
      return half_value(p + 208) * static_cast<int8_t>(p[192 + j / 16]) * (code - 32);
    }
    case DType::i32: break;
  }
  return 0;
}

inline uint32_t bits_of(float f) { return std::bit_cast<uint32_t>(f); }

// sum of squared differences / sum of squares of the reference
struct Nmse {
  double difference = 0, reference = 0;
  void add(double got, double want) {
    difference += (got - want) * (got - want);
    reference += want * want;
  }
  double value() const { return difference == 0 ? 0 : difference / (reference > 0 ? reference : 1e-300); }
};

constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1, DType::q6_k, DType::q4_k};
inline bool is_quantised(DType t) { return t >= DType::q8_0; }
inline const char* type_name(DType t) { return name(t).data(); }

}  // namespace fth::cpu
