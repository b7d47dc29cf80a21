// Kept in gather.json: {"gather": [...]}. The child runs EXPERTS with given gate values on two cpu devices, one that always reads all up rows and one that always gathers the live ones, and
// finds where the times meet. Everything else that EXPERTS does is the same on both, and cancels.

#include "tools/cli/gather.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>

#include "core/base/bytes.h"
#include "core/device/registry.h"
#include "core/engine/memory.h"
#include "tools/cli/cache_file.h"
#include "tools/cli/machine.h"
#include "tools/cli/output.h"
#include "tools/cli/own_child.h"

namespace fth::cli {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;
constexpr std::string_view kFile = "gather.json", kKey = "gather";
constexpr size_t kMostEntries = 100;
constexpr double kChildSeconds = 20;

constexpr std::array<int64_t, 3> kShares = {40, 70, 100};  // percent of neurons alive; below the first nothing is gained by knowing
constexpr int kLeastPasses = 2;
constexpr double kEnoughSeconds = 0.02;
// Matrices enough that each is read from memory, as it is while decoding, unless the model has fewer: then they are in a cache there, too.
constexpr uint64_t kLeastSpread = 32 * kMiB, kMostSpread = 64 * kMiB;
constexpr int64_t kMostMatrices = 64;

std::string shape_text(const Weight& up) {
  return std::string(name(up.dtype)) + text(", %lld x %lld", static_cast<long long>(up.rows), static_cast<long long>(up.cols));
}

// What a figure holds for. The program stands for its kernels.
std::string machine_key(uint32_t threads, const std::string& isa) {
  struct stat s {};
  if (::stat("/proc/self/exe", &s) != 0) s = {};
  return utf8_lossy(cpu_model() + text(", %u threads, kernels %s, program of %lld bytes and %lld.%09ld", threads,
                                       isa.empty() ? "auto" : isa.c_str(), static_cast<long long>(s.st_size),
                                       static_cast<long long>(s.st_mtim.tv_sec), s.st_mtim.tv_nsec));
}

struct Kept {
  std::string machine, what;
  int64_t below = -1;
  bool busy = false;
};

std::vector<Kept> kept() {
  std::vector<Kept> out;
  for (const json::value& v : read_entries(cache_file(kFile), kKey)) {
    const json::object* const o = v.if_object();
    const json::value *machine = o ? o->if_contains("machine") : nullptr, *what = o ? o->if_contains("what") : nullptr,
                      *below = o ? o->if_contains("below") : nullptr, *busy = o ? o->if_contains("busy") : nullptr;
    if (machine == nullptr || !machine->is_string() || what == nullptr || !what->is_string() || below == nullptr || !below->is_int64() ||
        below->get_int64() < 0 || below->get_int64() > 101)
      continue;
    out.push_back({std::string(machine->get_string()), std::string(what->get_string()), below->get_int64(),
                   busy != nullptr && busy->is_bool() && busy->get_bool()});
  }
  return out;
}

bool keep(std::vector<Kept> all, Kept one) {
  std::erase_if(all, [&](const Kept& k) { return k.machine == one.machine && k.what == one.what; });
  if (all.size() >= kMostEntries) all.erase(all.begin());
  all.push_back(std::move(one));
  json::array out;
  for (const Kept& k : all) out.push_back({{"machine", k.machine}, {"what", k.what}, {"below", k.below}, {"busy", k.busy}});
  return write_entries(cache_file(kFile), kKey, out);
}

// One token that has `slots` experts, all with the same share of live neurons: y = down (relu(gate) * (up x)), gate given.
class Step {
 public:
  static Result<Step> make(const std::string& cpu_options, uint32_t threads, DType type, int64_t ff, int64_t width, int64_t slots,
                           const HostBlock& weights) {
    Step s;
    RegistryOptions options;
    options.n_threads = threads;
    options.builtin_only = true;
    options.cpu_options = cpu_options;
    FTH_ASSIGN_OR_RETURN(s.registry_, Registry::open(options));
    Device& device = s.registry_->devices()[0].device;
    const auto dtype = [](DType t) { return static_cast<uint16_t>(t); };
    const uint16_t in = FTH_ROLE_INPUT, many = FTH_ROLE_SLOTS;
    const std::array<fth_tensor, 7> tensors = {{{dtype(DType::f32), in, 2, {1, width}, 0},
                                                {dtype(DType::i32), in, 1, {slots + 1}, 0},
                                                {dtype(DType::i32), in, 1, {slots}, 0},
                                                {dtype(DType::f32), in, 2, {slots, ff}, 0},
                                                {dtype(type), many, 3, {slots, ff, width}, 0},
                                                {dtype(DType::q4_0), many, 3, {slots, width, ff}, 0},
                                                {dtype(DType::f32), FTH_ROLE_OUTPUT, 2, {slots, width}, 0}}};
    fth_op op{};
    op.kind = FTH_OP_EXPERTS;
    op.n_in = 6, op.n_out = 1;
    for (uint16_t i = 0; i < 6; ++i) op.in[i] = i;
    op.out[0] = 6;
    op.attr[1] = static_cast<double>(slots);
    const fth_segment segment{sizeof segment, static_cast<uint32_t>(tensors.size()), 1, FTH_SCALAR_COUNT, "gather", tensors.data(), &op};
    FTH_ASSIGN_OR_RETURN(const fth_estimate estimate, device.estimate(segment));
    FTH_ASSIGN_OR_RETURN(s.executable_, device.compile(segment, {}));
    FTH_ASSIGN_OR_RETURN(s.weights_, device.import_host(weights.data(), weights.bytes()));

    std::vector<int32_t> counts(static_cast<size_t>(slots) + 1);
    for (size_t i = 0; i < counts.size(); ++i) counts[i] = static_cast<int32_t>(i);
    std::vector<float> x(static_cast<size_t>(width));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13) - 6;
    FTH_RETURN_IF_ERROR(s.add(device, x.data(), x.size() * sizeof(float)));
    FTH_RETURN_IF_ERROR(s.add(device, counts.data(), counts.size() * sizeof(int32_t)));
    FTH_RETURN_IF_ERROR(s.add(device, counts.data(), static_cast<uint64_t>(slots) * sizeof(int32_t)));
    FTH_RETURN_IF_ERROR(s.add(device, nullptr, static_cast<uint64_t>(slots * ff) * sizeof(float)));
    const uint64_t up = static_cast<uint64_t>(ff) * row_bytes(type, width),
                   down = static_cast<uint64_t>(width) * row_bytes(DType::q4_0, ff);
    for (int64_t i = 0; i < slots; ++i) s.bindings_.push_back(s.weights_.at(static_cast<uint64_t>(i) * up, up));
    for (int64_t i = 0; i < slots; ++i) s.bindings_.push_back(s.weights_.at(0, down));  // one for all: it stays in a cache
    FTH_RETURN_IF_ERROR(s.add(device, nullptr, static_cast<uint64_t>(slots * width) * sizeof(float)));
    if (estimate.workspace_bytes > 0) FTH_RETURN_IF_ERROR(s.add(device, nullptr, estimate.workspace_bytes));
    s.slots_ = slots;
    return s;
  }

  Result<> set_gates(std::span<const float> gates) { return buffers_[3].write(0, gates.data(), gates.size_bytes()); }
  Result<double> run() const {
    const int64_t scalars[FTH_SCALAR_COUNT] = {1, 0, slots_};
    const auto begin = Clock::now();
    FTH_RETURN_IF_ERROR(executable_.run(bindings_, scalars));
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

 private:
  Result<> add(Device& device, const void* values, uint64_t bytes) {
    FTH_ASSIGN_OR_RETURN(Buffer buffer, device.alloc(bytes));
    if (values != nullptr) FTH_RETURN_IF_ERROR(buffer.write(0, values, bytes));
    bindings_.push_back(buffer.whole());
    buffers_.push_back(std::move(buffer));
    return {};
  }

  std::unique_ptr<Registry> registry_;  // outlives what is on its device
  Executable executable_;
  Buffer weights_;
  std::vector<Buffer> buffers_;
  std::vector<fth_binding> bindings_;
  int64_t slots_ = 0;
};

// Exactly `share` percent of each expert's neurons, at random places that are the same every time.
std::vector<float> gates_with(int64_t share, int64_t ff, int64_t slots) {
  std::vector<float> out(static_cast<size_t>(slots * ff), -1.0f);
  uint64_t state = 0x9e3779b97f4a7c15u;
  for (int64_t slot = 0; slot < slots; ++slot) {
    int64_t wanted = ff * share / 100;
    for (int64_t i = 0; i < ff; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      if (static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(ff - i)) >= wanted) continue;
      out[static_cast<size_t>(slot * ff + i)] = 1.0f;
      --wanted;
    }
  }
  return out;
}

struct Times {
  std::array<double, kShares.size()> dense, gathered;
};

Result<Times> measure(DType type, int64_t ff, int64_t width, int64_t matrices, uint32_t threads, const std::string& isa) {
  const uint64_t up = static_cast<uint64_t>(ff) * row_bytes(type, width), down = static_cast<uint64_t>(width) * row_bytes(DType::q4_0, ff);
  const uint64_t spread = std::clamp<uint64_t>(l3_bytes() + l3_bytes() / 2, kLeastSpread, kMostSpread);
  const int64_t slots =
      std::clamp<int64_t>(static_cast<int64_t>(spread / std::max<uint64_t>(up, 1)), 1, std::clamp<int64_t>(matrices, 1, kMostMatrices));
  FTH_ASSIGN_OR_RETURN(const HostBlock weights, HostBlock::allocate(std::max(static_cast<uint64_t>(slots) * up, down), "up matrices"));
  std::memset(weights.data(), 0x21, weights.bytes());  // codes and scales like any others, none of them a denormal or NaN
  const std::string with_isa = isa.empty() ? "" : ",isa=" + isa;
  FTH_ASSIGN_OR_RETURN(Step dense, Step::make("gather_below=0" + with_isa, threads, type, ff, width, slots, weights));
  FTH_ASSIGN_OR_RETURN(Step gathered, Step::make("gather_below=101" + with_isa, threads, type, ff, width, slots, weights));
  std::array<std::vector<float>, kShares.size()> gates;
  for (size_t i = 0; i < kShares.size(); ++i) gates[i] = gates_with(kShares[i], ff, slots);
  FTH_RETURN_IF_ERROR(dense.set_gates(gates[0]));
  FTH_RETURN_IF_ERROR(dense.run());  // threads wake, pages come
  Times out;
  out.dense.fill(std::numeric_limits<double>::infinity());
  out.gathered = out.dense;
  const auto begin = Clock::now();
  // In turn, so that a busy moment meets all; the shortest counts.
  for (int pass = 0; pass < kLeastPasses || std::chrono::duration<double>(Clock::now() - begin).count() < kEnoughSeconds; ++pass)
    for (size_t i = 0; i < kShares.size(); ++i) {
      FTH_RETURN_IF_ERROR(dense.set_gates(gates[i]));
      FTH_RETURN_IF_ERROR(gathered.set_gates(gates[i]));
      FTH_ASSIGN_OR_RETURN(const double a, dense.run());
      FTH_ASSIGN_OR_RETURN(const double b, gathered.run());
      out.dense[i] = std::min(out.dense[i], a);
      out.gathered[i] = std::min(out.gathered[i], b);
    }
  return out;
}

}  // namespace

int64_t gather_crossover_of(std::span<const int64_t> shares, std::span<const double> dense, std::span<const double> gathered) {
  int64_t below = 101;  // gathering never loses
  for (size_t i = shares.size(); i-- > 0;) {
    const double loses = gathered[i] - dense[i];
    if (loses < 0) break;
    below = shares[i];
    if (i == 0) break;
    const double gains = dense[i - 1] - gathered[i - 1];
    if (gains > 0) {
      below = shares[i - 1] + static_cast<int64_t>(static_cast<double>(shares[i] - shares[i - 1]) * gains / (gains + loses));
      break;
    }
  }
  return below;
}

Result<> check_gather(const std::string& asked) {
  if (asked == "auto") return {};
  int64_t percent = -1;
  const auto [end, error] = std::from_chars(asked.data(), asked.data() + asked.size(), percent);
  if (error != std::errc{} || end != asked.data() + asked.size() || percent < 0 || percent > 101)
    return fail(Code::invalid_argument, "--gather-below " + asked + ": must be auto, or a percentage from 0 to 101");
  return {};
}

GatherCrossover gather_crossover(const std::string& asked, const Model& model, uint32_t threads, const std::string& isa) {
  GatherCrossover out;
  if (!model.config.is_sparse() || model.config.activation != Activation::relu) return out;
  const Weight& up = model.layers[0].up;
  out.what = shape_text(up);
  if (asked != "auto") {
    out.below = std::atoi(asked.c_str());
    out.note = "as --gather-below says";
    return out;
  }
  if (threads == 0) threads = usable_cores();
  const std::string machine = machine_key(threads, isa);
  const bool busy = machine_is_busy();
  std::vector<Kept> all = kept();
  for (const Kept& k : all) {
    if (k.machine != machine || k.what != out.what || (k.busy && !busy)) continue;
    out.below = k.below;
    out.note = k.busy ? "measured before, on a busy machine" : "measured before";
    return out;
  }
  const ChildAnswer answer =
      ask_child({"measure-gather", std::to_string(static_cast<int>(up.dtype)), std::to_string(up.rows), std::to_string(up.cols),
                 std::to_string(model.config.n_layer * model.config.n_expert), std::to_string(threads), isa},
                "", kChildSeconds);
  json::error_code error;
  const json::value parsed = json::parse(answer.text, error);
  if (!answer.failure.empty() || error || !parsed.is_int64() || parsed.get_int64() < 0 || parsed.get_int64() > 101) {
    out.note = "not measured: " + (answer.failure.empty() ? std::string("the measuring process found no figure") : answer.failure);
    return out;
  }
  out.below = parsed.get_int64();
  out.note = busy ? "measured now, on a busy machine" : "measured now";
  if (!keep(std::move(all), {machine, out.what, out.below, busy})) out.note += "; it cannot be kept";
  return out;
}

std::string gather_line(const GatherCrossover& g) {
  if (g.what.empty()) return {};
  const std::string of = " (up " + g.what + "; " + g.note + ")";
  if (g.below < 0) return "live up rows are gathered below the backend's own share of live neurons" + of;
  if (g.below == 0) return "all up rows are read, whatever is alive" + of;
  if (g.below > 100) return "live up rows are always gathered" + of;
  return text("live up rows are gathered below %lld %% of live neurons", static_cast<long long>(g.below)) + of;
}

std::vector<std::string> gather_lines(uint32_t threads) {
  std::vector<std::string> out;
  const std::string machine = cpu_model() + text(", %u threads, ", threads == 0 ? usable_cores() : threads);
  for (const Kept& k : kept())
    if (k.machine.starts_with(machine)) out.push_back(gather_line({k.below, k.busy ? "measured on a busy machine" : "measured", k.what}));
  return out;
}

int measure_gather_main(const std::vector<std::string>& args) {
  if (args.size() != 6) return 2;
  ::fcntl(kAnswerFd, F_SETFD, FD_CLOEXEC);
  const auto number = [&](size_t i) { return std::strtoll(args[i].c_str(), nullptr, 10); };
  const int64_t type = number(0), ff = number(1), width = number(2);
  if (type < 0 || type > static_cast<int64_t>(DType::q4_k) || ff < 1 || ff > (1 << 20) || width < 1 || width > (1 << 20)) return 2;
  const auto times =
      measure(static_cast<DType>(type), ff, width, number(3), static_cast<uint32_t>(std::clamp<long long>(number(4), 0, 1024)), args[5]);
  if (!times) return 1;
  const std::string answer = std::to_string(gather_crossover_of(kShares, times->dense, times->gathered));
  return ::write(kAnswerFd, answer.data(), answer.size()) == static_cast<ssize_t>(answer.size()) ? 0 : 1;
}

}  // namespace fth::cli
