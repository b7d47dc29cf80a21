// The shared options: their texts are what --help and docs/command-line.md show.

#include "tools/cli/flags.h"

#include <fcntl.h>
#include <unistd.h>

#include <boost/program_options.hpp>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <random>

#include "core/base/bytes.h"
#include "tools/cli/output.h"

namespace fth::cli {

namespace {
template <class T>
po::typed_value<T>* value(T* target, const char* what) {
  return po::value<T>(target)->value_name(what);
}
}  // namespace

void add_common(CommonFlags& flags, po::options_description& options, const char* json_help) {
  auto add = options.add_options();
  if (json_help != nullptr) add("json", po::bool_switch(&flags.json), json_help);
  add("verbose,v", po::bool_switch(&flags.verbose), "say more: what was refused and why, notes, the log of the devices");
  add("quiet,q", po::bool_switch(&flags.quiet), "say nothing but errors on standard error");
  add("help,h", "this text");
}

void add_devices(DeviceFlags& flags, po::options_description& options) {
  options.add_options()                                                                                                           //
      ("threads,t", value(&flags.threads, "N"), "CPU threads (default: one for each physical core this process may use)")         //
      ("cpus", value(&flags.cpus, "LIST"), "keep the threads on these CPUs, such as 0-3,8 (default: the scheduler places them)")  //
      ("cpu-only", po::bool_switch(&flags.cpu_only), "use the CPU alone; no plugin is opened")                                    //
      ("cpu-isa", value(&flags.cpu_isa, "NAME"), "force the CPU kernels of one instruction set; `devices -v` lists them")         //
      ("plugin", value(&flags.plugins, "PATH"), "a plugin file, or a folder of them, to look at first (may be repeated)")         //
      ("device-option", value(&flags.device_options, "OPTION"),
       "BACKEND:KEY=VALUE or BACKEND:INDEX:KEY=VALUE, an option of a device that its backend's page lists (may be repeated)");
}

void add_engine(EngineFlags& flags, po::options_description& options) {
  options.add_options()                                                                                                       //
      ("model,m", value(&flags.model, "FILE"), "the model, a GGUF file (default: $FORETHOUGHT_MODEL, then the bundled one)")  //
      ("ctx,c", value(&flags.ctx, "N"), "context length in tokens (default: the model's own, at most 4096)")                  //
      ("ubatch", value(&flags.ubatch, "N"), "-ub N: tokens per prefill step, 1 to 512 (default: what is fastest)")            //
      ("ram", value(&flags.ram, "SIZE"), "most memory this process may use, such as 1GiB or 800MB (default: what is free)")   //
      ("vram", value(&flags.vram, "SIZE"), "most memory to use on each device that has its own")                              //
      ("device", value(&flags.device, "NAME"), "use this device, and the CPU only for what it refuses")                       //
      ("start-on-cpu", value(&flags.start_on_cpu, "WHEN"),
       (std::string(
            "let the CPU begin while a device compiles, which takes over when it is ready: auto (an NPU, or a device that is known to need "
            "more than a second), on (also without a word) or off (default: ") +
        flags.start_on_cpu + ")")
           .c_str())  //
      ("overlap", value(&flags.overlap, "WHEN"),
       "on: a device's attention of one part of a prompt runs beside the CPU's experts of another; off: in turn, to compare (default: "
       "on)")                                                                                                               //
      ("place", value(&flags.places, "RULE"), "pin segments, such as 'layer.*.attention=vulkan:0' (may be repeated)")       //
      ("override", value(&flags.overrides, "KEY=VALUE"), "replace a value of the model file, such as context_length=8192")  //
      ("lm-head", value(&flags.lm_head, "HOW"),
       "exact, or screened: a plane of 2 bits a weight says which logits can matter to the sampler (default: exact)")  //
      ("repack", value(&flags.repack, "WHERE"),
       "experts of a plain file by neuron, which decodes faster: auto (in memory if all are resident, else file where the disk has room), "
       "memory, file (packed once into the cache folder) or off (default: auto)")  //
      ("gather-below", value(&flags.gather, "PERCENT"),
       "read the up rows of live neurons alone where fewer are alive, 0 to 101 (default: auto, measured)")     //
      ("kv-type", value(&flags.kv_type, "TYPE"), "KV cache: f16, q8_0 (half as large) or f32 (default: f16)")  //
      ("kv", value(&flags.kv_place, "WHERE"),
       "KV cache of layers without a window: auto, memory or storage (default: auto, storage if --ram is too small)")  //
      ("kv-dir", value(&flags.kv_directory, "DIR"), "where that part of the KV cache is kept (default: /var/tmp)")     //
      ("experts", value(&flags.experts, "WHERE"),
       "auto, resident (all in memory) or streamed from storage (default: auto, resident if they fit)")                    //
      ("expert-slots", value(&flags.slots, "N"), "streamed experts kept in memory (default: what --ram leaves room for)")  //
      ("expert-reader", value(&flags.reader, "NAME"), "auto, uring or pread")                                              //
      ("expert-policy", value(&flags.policy, "NAME"), "which expert makes room: auto, lru, lfu or reuse")                  //
      ("expert-queue", value(&flags.queue_depth, "N"), "reads in flight at most (default: measured for the disk)")         //
      ("expert-buffered", po::bool_switch(&flags.buffered), "read through the page cache instead of past it")              //
      ("expert-guess", value(&flags.guess, "WHEN"),
       "read ahead what the next layer's router says early: auto, on or off (default: auto)")  //
      ("expert-prefetch", value(&flags.prefetch, "WHEN"),
       "on: read a layer's experts while its attention computes; off: ask for them after it, to compare (default: on)")  //
      ("expert-early-gates", value(&flags.early_gates, "WHEN"),
       "on: compute the gate of an expert while the rest of it is being read; off, to compare (default: on)")  //
      ("expert-tier", value(&flags.tier, "DEVICE"),
       "keep more experts in spare memory of a device, or off (default: auto, a device in use with memory of its own)")  //
      ("verify-experts", po::bool_switch(&flags.verify_experts), "check each streamed expert's checksum (packed models)");
  add_devices(flags, options);
}

void add_warm(WarmFlags& flags, po::options_description& options) {
  const bool kept = flags.set == "auto";
  options.add_options()  //
      ("warm-set", value(&flags.set, "WHICH"),
       kept ? "begin with the streamed experts that earlier runs used most, and remember this one's: auto (kept by model in the cache "
              "folder), off, or a file "
              "(default: auto)"
            : "begin with the streamed experts that earlier runs used most, and remember this one's: auto (kept by model in the cache "
              "folder), off, or a file "
              "(default: off, so that figures do not depend on what ran before)")                                  //
      ("task", value(&flags.task, "TAG"), "a kind of work, such as mail or code, that has a warm set of its own")  //
      ("pin-experts", value(&flags.pin, "N"), "the N most used experts of the warm set stay in memory while the program runs (default: 0)");
}

void add_sampling(SamplingFlags& flags, po::options_description& options) {
  options.add_options()                                                                                               //
      ("temp", value(&flags.temperature, "T"), "temperature; 0 takes the likeliest token every time (default: 0)")    //
      ("top-k", value(&flags.top_k, "K"), "choose among the K likeliest (default: 0, all)")                           //
      ("top-p", value(&flags.top_p, "P"), "choose among the likeliest that sum to P (default: 1, all)")               //
      ("min-p", value(&flags.min_p, "P"), "drop what is less likely than P times the likeliest (default: 0)")         //
      ("repeat-penalty", value(&flags.repeat_penalty, "X"), "make the last 64 tokens less likely (default: 1, off)")  //
      ("seed", value(&flags.seed, "N"), "start of the random draws; the same seed gives the same text (default: drawn)");
}

void add_prompt(PromptFlags& flags, po::options_description& options) {
  options.add_options()("prompt,p", value(&flags.prompt, "TEXT"), "the prompt")  //
      ("file,f", value(&flags.file, "FILE"), "read the prompt from a file, or from standard input with -");
}

Result<SamplerOptions> sampler_options(const SamplingFlags& flags, const CommonFlags& common) {
  SamplerOptions out;
  out.temperature = flags.temperature;
  out.top_k = flags.top_k;
  out.top_p = flags.top_p;
  out.min_p = flags.min_p;
  out.repeat_penalty = flags.repeat_penalty;
  if (flags.seed < -1) return fail(Code::invalid_argument, text("--seed %lld: must be 0 or more", static_cast<long long>(flags.seed)));
  const bool draws = flags.top_k != 0 || flags.top_p != 1 || flags.min_p != 0 || flags.seed != -1;
  if (flags.temperature == 0 && draws && !common.quiet)
    say("forethought: --top-k, --top-p, --min-p and --seed have no effect at temperature 0; add --temp 0.8");
  if (flags.seed >= 0) {
    out.seed = static_cast<uint64_t>(flags.seed);
  } else if (flags.temperature != 0) {
    out.seed = std::random_device{}();
    if (common.verbose) say(text("seed %llu", static_cast<unsigned long long>(out.seed)));
  }
  return out;
}

namespace {

Result<std::string> read_all(int fd, const std::string& name) {
  constexpr size_t kMost = size_t{1} << 30;  // a prompt larger than any context; a device file must not fill the memory
  std::string out;
  std::vector<char> block(size_t{1} << 16);
  while (true) {
    const ssize_t n = ::read(fd, block.data(), block.size());
    if (n == 0) return out;
    if (n < 0 && errno == EINTR) return fail(Code::cancelled, "interrupted");
    if (n < 0) return fail(Code::failed_precondition, name + ": " + std::strerror(errno));
    out.append(block.data(), static_cast<size_t>(n));
    if (out.size() > kMost) return fail(Code::failed_precondition, name + ": more than 1 GiB of text");
  }
}

}  // namespace

Result<std::string> read_text(const std::filesystem::path& path) {
  if (path == "-") return read_all(STDIN_FILENO, "standard input");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(Code::failed_precondition, path.string() + ": " + std::strerror(errno));
  auto out = read_all(fd, path.string());
  ::close(fd);
  return out;
}

Result<std::optional<std::string>> prompt_text(const PromptFlags& flags, const std::vector<std::string>& positional) {
  const int ways = (flags.prompt.empty() ? 0 : 1) + (flags.file.empty() ? 0 : 1) + (positional.empty() ? 0 : 1);
  if (ways > 1)
    return fail(Code::invalid_argument, "the prompt is given more than once: use one of -p, -f and the words after the options");
  if (!flags.prompt.empty()) return std::optional(flags.prompt);
  if (!positional.empty()) {
    std::string joined;
    for (const auto& word : positional) joined += (joined.empty() ? "" : " ") + word;
    return std::optional(std::move(joined));
  }
  if (flags.file.empty() && is_terminal(STDIN_FILENO)) return std::optional<std::string>();
  FTH_ASSIGN_OR_RETURN(auto read, read_text(flags.file.empty() ? "-" : flags.file));
  // The newline that ends a text file or an echo is not part of what was asked.
  if (!read.empty() && read.back() == '\n') read.pop_back();
  if (read.empty() && flags.file.empty()) return std::optional<std::string>();
  return std::optional(std::move(read));
}

Result<std::vector<int32_t>> read_tokens(const std::filesystem::path& path) {
  FTH_ASSIGN_OR_RETURN(const std::string content, read_text(path));
  std::vector<int32_t> ids;
  for (size_t i = 0; i < content.size();) {
    if (content[i] < '0' || content[i] > '9') {
      ++i;
      continue;
    }
    int32_t id = 0;
    const auto [end, error] = std::from_chars(content.data() + i, content.data() + content.size(), id);
    if (error != std::errc{})
      return fail(Code::invalid_argument, path.string() + ": number " + std::to_string(ids.size() + 1) + " does not fit 32 bits");
    ids.push_back(id);
    i = static_cast<size_t>(end - content.data());
  }
  if (ids.empty()) return fail(Code::invalid_argument, path.string() + ": holds no token ids (runs of digits)");
  return ids;
}

Result<std::vector<int64_t>> parse_counts(std::string_view option, std::string_view list) {
  std::vector<int64_t> out;
  const char *p = list.data(), *const last = p + list.size();
  while (p <= last) {
    int64_t n = 0;
    const auto [end, error] = std::from_chars(p, last, n);
    if (error != std::errc{} || n < 0 || (end != last && *end != ','))
      return fail(Code::invalid_argument, text("%.*s %.*s: write numbers with commas, such as 128,512", static_cast<int>(option.size()),
                                               option.data(), static_cast<int>(list.size()), list.data()));
    if (n > 0) out.push_back(n);
    p = end + 1;
  }
  return out;
}

Result<uint64_t> parse_size(std::string_view option, std::string_view size) {
  const auto bytes = parse_bytes(size);
  if (!bytes || *bytes == 0)
    return fail(Code::invalid_argument, std::string(option) + " " + std::string(size) + ": write a size such as 1GiB, 800MB or 2147483648");
  return *bytes;
}

}  // namespace fth::cli
