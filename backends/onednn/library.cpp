// oneDNN behind Products: its ukernels where this build of it has them, its matmul primitives otherwise.

#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>

#include "backends/onednn/products.h"
#include "plugins/sdk/text.h"

#ifdef DNNL_EXPERIMENTAL_UKERNEL
#include <oneapi/dnnl/dnnl_ukernel.hpp>
#endif
#if DNNL_CPU_RUNTIME == DNNL_RUNTIME_OMP
#include <omp.h>
#endif

namespace fth::onednn {
namespace {

using Md = dnnl::memory::desc;
using Dt = dnnl::memory::data_type;
constexpr int64_t kGroupsAtOnce = kChunk / kGroup;
constexpr int64_t kDepths[2] = {kChunk, kGroup};
constexpr size_t kMostScratch = 64 << 10;

}  // namespace

Result<> check_implementation(std::string_view impl_info) {
  if (impl_info.substr(0, 3) != "ref") return {};
  return fail(Code::failed_precondition, sdk::text("oneDNN offers \"", impl_info, "\", a reference implementation, which is refused"));
}

struct Library::Made {
  Implementation which = Implementation::f32_matmul;
  std::string info;
  Products products;

  virtual ~Made() = default;
};

namespace {

#ifdef DNNL_EXPERIMENTAL_UKERNEL
// Made once, then only executed. oneDNN's call keeps a list of one entry; nothing else is allocated.
struct Ukernels : Library::Made {
  std::array<std::array<dnnl::ukernel::brgemm, 4>, 2> kernels;  // [depth][panel]; int8: the second depth only

  Result<> make(bool int8) {
    products.self = this;
    products.int8 = int8;
    products.unit = int8 ? 16 : 8;
    info = sdk::text("brgemm ", int8 ? "u8 x s8" : "f32");
    for (size_t d = int8 ? 1 : 0; d < 2; ++d)
      for (size_t i = 0; i < kPanels.size(); ++i) {
        const int64_t p = kPanels[i];
        if (p % products.unit != 0) continue;
        dnnl::ukernel::brgemm& k = kernels[d][i];
        k = int8 ? dnnl::ukernel::brgemm(kTile, p, kGroup, 1, kChunk, p, p, Dt::u8, Dt::s8, Dt::s32)
                 : dnnl::ukernel::brgemm(kTile, p, kDepths[d], 1, kChunk, p, kWide, Dt::f32, Dt::f32, Dt::f32);
        k.set_add_C(!int8);
        k.finalize();
        k.generate();
        if (k.get_scratchpad_size() > kMostScratch)
          return fail(Code::unimplemented, sdk::text("brgemm wants a scratchpad of ", k.get_scratchpad_size(), " bytes"));
        const dnnl::ukernel::pack_type pack = k.get_B_pack_type();
        if (pack != (int8 ? dnnl::ukernel::pack_type::pack32 : dnnl::ukernel::pack_type::no_trans))
          return fail(Code::unimplemented, sdk::text("brgemm wants its panels in order ", static_cast<int>(pack)));
      }
    products.interleaved = int8;
    products.multiply_groups = [](void* self, const uint8_t* codes, const int8_t* panel, int64_t n_groups, int64_t p, int32_t* to) {
      const auto& one = static_cast<const Ukernels*>(self)->kernels[1][panel_index(p)];
      for (int64_t g = 0; g < n_groups; ++g)
        if (!run(one, codes + g * kGroup, panel + g * kGroup * p, to + g * kTile * p)) return false;
      return true;
    };
    products.multiply = [](void* self, const float* values, const float* panel, int64_t depth, int64_t p, float* acc) {
      const auto& all = static_cast<const Ukernels*>(self)->kernels;
      if (depth == kChunk) return run(all[0][panel_index(p)], values, panel, acc);
      for (int64_t k = 0; k < depth; k += kGroup)
        if (!run(all[1][panel_index(p)], values + k, panel + k * p, acc)) return false;
      return true;
    };
    products.leave = [] { dnnl_brgemm_release_hw_context(); };
    return {};
  }

  static bool run(const dnnl::ukernel::brgemm& k, const void* a, const void* b, void* c) {
    alignas(64) std::byte scratch[kMostScratch];
    const dnnl_dim_t offsets[2] = {0, 0};
    return dnnl_brgemm_set_hw_context(k.get()) == dnnl_success && dnnl_brgemm_execute(k.get(), a, b, offsets, c, scratch) == dnnl_success;
  }
};
#endif

struct Primitives : Library::Made {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  struct Shape {
    dnnl::matmul primitive;
    Md a, b, c;
  };
  std::array<std::array<Shape, 4>, 2> shapes;  // [depth: whole chunk or one group][panel]

  Result<> make(bool int8, std::string_view impl_info) {
    products.self = this;
    products.int8 = int8;
    products.groups_at_once = int8 ? kGroupsAtOnce : 1;
    for (size_t d = 0; d < 2; ++d)
      for (size_t i = 0; i < kPanels.size(); ++i) {
        const int64_t p = kPanels[i], groups = kDepths[d] / kGroup;
        Shape& s = shapes[d][i];
        dnnl::primitive_attr attr;
        if (int8) {
          s.a = Md({groups, kTile, kGroup}, Dt::u8, dnnl::memory::dims{kGroup, kChunk, 1});
          s.b = Md({groups, kGroup, p}, Dt::s8, dnnl::memory::dims{kGroup * p, p, 1});
          s.c = Md({groups, kTile, p}, Dt::s32, dnnl::memory::dims{kTile * p, p, 1});
        } else {
          s.a = Md({kTile, kDepths[d]}, Dt::f32, dnnl::memory::dims{kChunk, 1});
          s.b = Md({kDepths[d], p}, Dt::f32, dnnl::memory::dims{p, 1});
          s.c = Md({kTile, p}, Dt::f32, dnnl::memory::dims{kWide, 1});
          dnnl::post_ops add;
          add.append_sum(1.0f);
          attr.set_post_ops(add);
        }
        const auto desc = describe(s, attr);
        info = impl_info.empty() ? desc.impl_info_str() : std::string(impl_info);
        FTH_RETURN_IF_ERROR(check_implementation(info));
        s.primitive = dnnl::matmul(desc);
      }
    products.multiply_groups = [](void* self, const uint8_t* codes, const int8_t* panel, int64_t n_groups, int64_t p, int32_t* to) {
      return static_cast<Primitives*>(self)->run(n_groups == kGroupsAtOnce ? 0 : 1, p, codes, panel, to);
    };
    products.multiply = [](void* self, const float* values, const float* panel, int64_t depth, int64_t p, float* acc) {
      auto* const me = static_cast<Primitives*>(self);
      if (depth == kChunk) return me->run(0, p, values, panel, acc);
      for (int64_t k = 0; k < depth; k += kGroup)
        if (!me->run(1, p, values + k, panel + k * p, acc)) return false;
      return true;
    };
    return {};
  }

 private:
  dnnl::matmul::primitive_desc describe(const Shape& s, const dnnl::primitive_attr& attr) const {
    return dnnl::matmul::primitive_desc(engine, s.a, s.b, s.c, attr);
  }

  bool run(size_t depth, int64_t p, const void* a, const void* b, void* c) noexcept {
    try {
#if DNNL_CPU_RUNTIME == DNNL_RUNTIME_OMP
      omp_set_num_threads(1);  // of this thread: the host's pool has the cores already
#endif
      const Shape& s = shapes[depth][panel_index(p)];
      dnnl::stream stream(engine);
      s.primitive.execute(stream, {{DNNL_ARG_SRC, dnnl::memory(s.a, engine, const_cast<void*>(a))},
                                   {DNNL_ARG_WEIGHTS, dnnl::memory(s.b, engine, const_cast<void*>(b))},
                                   {DNNL_ARG_DST, dnnl::memory(s.c, engine, c)}});
      stream.wait();
      return true;
    } catch (...) {
      return false;
    }
  }
};

// The instruction sets of oneDNN whose 8-bit products are exact: without VNNI pairs of products saturate at 16 bits.
bool has_vnni() {
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  constexpr unsigned kVnni = static_cast<unsigned>(dnnl::cpu_isa::avx2_vnni) & ~static_cast<unsigned>(dnnl::cpu_isa::avx2);
  constexpr unsigned kVnni512 = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_vnni) & ~static_cast<unsigned>(dnnl::cpu_isa::avx512_core);
  return (isa & kVnni) != 0 || (isa & kVnni512) != 0;
}

Result<std::unique_ptr<Library::Made>> make(Implementation which, std::string_view impl_info) {
  const bool int8 = which == Implementation::int8_ukernel || which == Implementation::int8_matmul;
  if (int8 && !has_vnni()) return fail(Code::unimplemented, "no VNNI: sums would saturate");
  try {
    if (which == Implementation::int8_ukernel || which == Implementation::f32_ukernel) {
#ifdef DNNL_EXPERIMENTAL_UKERNEL
      auto made = std::make_unique<Ukernels>();
      FTH_RETURN_IF_ERROR(made->make(int8));
      return std::unique_ptr<Library::Made>(std::move(made));
#else
      return fail(Code::unimplemented, "not in this build of oneDNN");
#endif
    }
    auto made = std::make_unique<Primitives>();
    FTH_RETURN_IF_ERROR(made->make(int8, impl_info));
    return std::unique_ptr<Library::Made>(std::move(made));
  } catch (const dnnl::error& e) {
    return fail(Code::unimplemented, sdk::text("oneDNN: ", e.message));
  }
}

}  // namespace

Library::Library(const TileTable& tiles, std::string_view only, std::string_view impl_info) {
  for (size_t i = 0; i < kImplementations.size(); ++i) {
    const auto which = static_cast<Implementation>(i);
    const bool int8 = i < 2;
    // One on 8 bits needs one on f32 beside it, for other weights.
    const bool named = only.empty() || only == name(which) || (!int8 && only.substr(0, 4) == "int8");
    if ((int8 ? int8_ : f32_) != nullptr || !named) continue;
    auto made = make(which, impl_info);
    Result<> ready = made ? self_check(tiles, &(*made)->products) : Result<>(tl::unexpected<Error>(made.error()));
    if (!ready) {
      lines_.push_back(sdk::text(name(which), " not used, ", ready.error().message));
      continue;
    }
    lines_.push_back(sdk::text(name(which), " used, ", (*made)->info));
    (int8 ? int8_ : f32_) = &(*made)->products;
    made_.push_back(std::move(*made));
  }
}

Library::~Library() = default;

std::string Library::describe() const {
  std::string all;
  for (const std::string& line : lines_) all += (all.empty() ? "" : "; ") + line;
  return all;
}

std::string Library::version() {
  const dnnl_version_t* const v = dnnl_version();
  return sdk::text(v->major, ".", v->minor, ".", v->patch);
}

}  // namespace fth::onednn
