// Made-up tensors of every element type, and runs on them.
#include "core/device/scratch_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/base/bytes.h"
#include "core/base/dtype.h"
#include "core/base/half.h"

namespace fth {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kMostCopies = 16;

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  float between(float low, float high) { return low + (high - low) * static_cast<float>(bits() >> 40) * 0x1p-24f; }

 private:
  uint64_t state_;
};

void put_half(std::byte* at, float value) {
  const uint16_t h = f32_to_f16(value);
  std::memcpy(at, &h, sizeof h);
}

// Random codes under scales that keep values within about +-most.
void fill_blocks(DType type, float most, Random& random, std::vector<std::byte>& out) {
  for (size_t i = 0; i + 8 <= out.size(); i += 8) {
    const uint64_t bits = random.bits();
    std::memcpy(out.data() + i, &bits, 8);
  }
  const size_t block = traits(type).block_bytes;
  for (std::byte* b = out.data(); b + block <= out.data() + out.size(); b += block) {
    const float scale = most * random.between(0.5f, 1.0f);
    switch (type) {
      case DType::q8_0: put_half(b, scale / 127); break;
      case DType::q4_0: put_half(b, scale / 8); break;
      case DType::q4_1: put_half(b, scale / 7.5f), put_half(b + 2, -scale); break;
      case DType::q4_k: put_half(b, scale / (63 * 7.5f)), put_half(b + 2, scale / 63); break;
      case DType::q6_k:
        for (size_t i = 192; i < 208; ++i) b[i] &= std::byte{31};
        put_half(b + 208, scale / (31 * 32));
        break;
      default: break;
    }
  }
}

uint64_t tensor_bytes(const fth_tensor& t) {
  uint64_t rows = 1;
  for (uint32_t d = 0; d + 1 < t.rank; ++d) rows *= static_cast<uint64_t>(t.dims[d]);
  return rows * row_bytes(static_cast<DType>(t.dtype), t.rank == 0 ? 1 : t.dims[t.rank - 1]);
}

std::vector<std::byte> made_up(const fth_tensor& t, Random& random) {
  std::vector<std::byte> out(tensor_bytes(t));
  const auto type = static_cast<DType>(t.dtype);
  const bool weight = t.role == FTH_ROLE_WEIGHT, norm = weight && t.rank == 1;
  // A product of K such values has about the size of one of its inputs.
  const float most = weight && !norm ? std::sqrt(3.0f / static_cast<float>(std::max<int64_t>(t.dims[t.rank - 1], 1))) : 1.0f;
  const auto value = [&] { return norm ? random.between(0.5f, 1.5f) : random.between(-most, most); };
  if (type == DType::f32) {
    for (size_t i = 0; i < out.size(); i += 4) {
      const float v = value();
      std::memcpy(out.data() + i, &v, 4);
    }
  } else if (type == DType::f16 || type == DType::bf16) {
    for (size_t i = 0; i < out.size(); i += 2) {
      const float v = value();
      const uint16_t h = type == DType::f16 ? f32_to_f16(v) : f32_to_bf16(v);
      std::memcpy(out.data() + i, &h, 2);
    }
  } else if (type != DType::i32) {  // ids stay 0: a row that every table has
    fill_blocks(type, most, random, out);
  }
  return out;
}

}  // namespace

Result<ScratchRun> ScratchRun::make(const Device& device, const fth_segment& segment, uint64_t seed, uint64_t spread_bytes) {
  FTH_ASSIGN_OR_RETURN(const fth_estimate estimate, device.estimate(segment));
  ScratchRun out;
  uint64_t weight_bytes = 0;
  for (uint32_t i = 0; i < segment.n_tensors; ++i) {
    const fth_tensor& t = segment.tensors[i];
    if (t.role == FTH_ROLE_SLOTS)
      return fail(Code::unimplemented, std::string(segment.name) + ": experts and pages are bound at submit, none are made up");
    if (t.role == FTH_ROLE_WEIGHT) weight_bytes += tensor_bytes(t);
    if (t.role == FTH_ROLE_WEIGHT || t.role == FTH_ROLE_TEMP) continue;
    Random random(seed ^ (uint64_t{i} << 32));
    const std::vector<std::byte> values = made_up(t, random);
    FTH_ASSIGN_OR_RETURN(Buffer buffer, device.alloc(values.size()));
    FTH_RETURN_IF_ERROR(buffer.write(0, values.data(), values.size()));
    if (t.role == FTH_ROLE_OUTPUT) out.outputs_.push_back({out.bindings_.size(), t.dims[t.rank - 1]});
    out.bindings_.push_back(buffer.whole());
    out.bound_.push_back(std::move(buffer));
  }
  if (estimate.workspace_bytes > 0) {
    FTH_ASSIGN_OR_RETURN(Buffer workspace, device.alloc(estimate.workspace_bytes));
    out.bindings_.push_back(workspace.whole());
    out.bound_.push_back(std::move(workspace));
  }
  // Copies hold the same values: they are there to be elsewhere in memory, and making values up takes longer than running on them.
  const size_t copies = weight_bytes == 0 ? 1 : std::clamp<size_t>((spread_bytes + weight_bytes - 1) / weight_bytes, 1, kMostCopies);
  std::vector<std::vector<fth_binding>> weights(copies);
  for (uint32_t i = 0; i < segment.n_tensors; ++i) {
    if (segment.tensors[i].role != FTH_ROLE_WEIGHT) continue;
    Random random(seed ^ (uint64_t{i} << 32));
    const std::vector<std::byte> values = made_up(segment.tensors[i], random);
    for (std::vector<fth_binding>& of_copy : weights) {
      FTH_ASSIGN_OR_RETURN(Buffer buffer, device.alloc(values.size()));
      FTH_RETURN_IF_ERROR(buffer.write(0, values.data(), values.size()));
      of_copy.push_back(buffer.whole());
      out.buffers_.push_back(std::move(buffer));
    }
  }
  for (const std::vector<fth_binding>& of_copy : weights) {
    FTH_ASSIGN_OR_RETURN(Executable executable, device.compile(segment, of_copy));
    out.copies_.push_back(std::move(executable));
  }
  return out;
}

Result<> ScratchRun::run(int64_t n_tokens, int64_t pos) {
  const int64_t scalars[FTH_SCALAR_COUNT] = {n_tokens, pos, 0};
  const Executable& one = copies_[next_];
  next_ = (next_ + 1) % copies_.size();
  return one.run(bindings_, scalars);
}

Result<double> ScratchRun::fastest(int64_t n_tokens, int64_t pos, double seconds) {
  FTH_RETURN_IF_ERROR(run(n_tokens, pos));
  double best = std::numeric_limits<double>::infinity(), spent = 0;
  for (int i = 0; i < 3 || (spent < seconds && i < 1000); ++i) {
    const auto begin = Clock::now();
    FTH_RETURN_IF_ERROR(run(n_tokens, pos));
    const double took = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::min(best, took);
    spent += took;
  }
  return best;
}

Result<std::vector<float>> ScratchRun::outputs(int64_t rows) const {
  std::vector<float> all;
  for (const Output& o : outputs_) {
    const auto n = static_cast<size_t>(rows * o.width);
    all.resize(all.size() + n);
    FTH_RETURN_IF_ERROR(bound_[o.binding].read(0, all.data() + all.size() - n, n * sizeof(float)));
  }
  return all;
}

}  // namespace fth
