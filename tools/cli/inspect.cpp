// forethought inspect: a GGUF file's metadata and tensors, and whether it would run.

#include <boost/json.hpp>
#include <map>
#include <set>

#include "core/base/bytes.h"
#include "core/model/config.h"
#include "core/model/pack.h"
#include "core/model/packed.h"
#include "tools/cli/command.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/open.h"
#include "tools/cli/output.h"
#include "tools/cli/progress.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Shows the metadata and tensors of a GGUF file, totals per type, the size of an expert, and whether the file would run.\n"
    "A file that is sound but would not run says why and ends with exit code 0; a malformed one with 4.\n"
    "With --verify every slab of a packed model is read and compared with its checksum; a damaged one ends with 4.\n\n"
    "  forethought inspect model.gguf\n"
    "  forethought inspect model.gguf --json --full\n"
    "  forethought inspect model.packed.gguf --verify\n";

struct InspectFlags : CommonFlags {
  std::string model;
  std::vector<std::string> overrides;
  bool full = false, verify = false;
};

void describe(InspectFlags& f, po::options_description& options) {
  options.add_options()                                                                                     //
      ("model,m", po::value(&f.model)->value_name("FILE"), "the model, a GGUF file (default: as for run)")  //
      ("full", po::bool_switch(&f.full), "show long arrays and texts whole")                                //
      ("verify", po::bool_switch(&f.verify), "check every expert of a packed model against its checksum")   //
      ("override", po::value(&f.overrides)->value_name("KEY=VALUE"), "replace a value of the model file, as for run");
  add_common(f, options, "print one JSON object");
}

constexpr std::string_view kTypeNames[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
std::string_view type_name(MetaType type) {
  const auto i = static_cast<size_t>(type);
  return i < std::size(kTypeNames) ? kTypeNames[i] : "unknown";
}
bool is_float(MetaType type) { return type == MetaType::f32 || type == MetaType::f64; }

template <class... F>
struct Overload : F... {
  using F::operator()...;
};
template <class... F>
Overload(F...) -> Overload<F...>;  // clang 14 does not deduce it for an aggregate

boost::json::value element_json(const MetaArray& array, uint64_t i) {
  if (array.type == MetaType::string) return boost::json::value_from(utf8_lossy(array.strings[i]));
  if (is_float(array.type)) {
    const auto number = array.number(i);
    return number ? boost::json::value(*number) : boost::json::value();
  }
  const auto integer = array.integer(i);
  return integer ? boost::json::value(*integer) : boost::json::value();  // null: past 63 bits
}

boost::json::value value_json(const MetaValue& meta, uint64_t most) {
  return std::visit(
      Overload{[](uint64_t v) { return boost::json::value(v); }, [](int64_t v) { return boost::json::value(v); },
               [](double v) { return boost::json::value(v); }, [](bool v) { return boost::json::value(v); },
               [](std::string_view v) { return boost::json::value_from(utf8_lossy(v)); },
               [most](const MetaArray& array) {
                 boost::json::array items;
                 for (uint64_t i = 0; i < std::min(array.count, most); ++i) items.push_back(element_json(array, i));
                 return boost::json::value{{"type", type_name(array.type)}, {"count", array.count}, {"items", std::move(items)}};
               }},
      meta.value);
}

std::string value_text(const MetaValue& meta, bool full) {
  const size_t longest = full ? SIZE_MAX : 72;
  return std::visit(
      Overload{[](uint64_t v) { return std::to_string(v); }, [](int64_t v) { return std::to_string(v); },
               [](double v) { return text("%g", v); }, [](bool v) { return std::string(v ? "true" : "false"); },
               [longest](std::string_view v) { return printable(v, longest); },
               [full](const MetaArray& array) {
                 const uint64_t shown = full ? array.count : std::min<uint64_t>(array.count, 8);
                 std::string out = "[";
                 for (uint64_t i = 0; i < shown; ++i) {
                   if (i > 0) out += ", ";
                   if (array.type == MetaType::string) {
                     out += '"' + printable(array.strings[i], full ? SIZE_MAX : 24) + '"';
                   } else if (is_float(array.type)) {
                     const auto number = array.number(i);
                     out += number ? text("%g", *number) : "?";
                   } else {
                     const auto integer = array.integer(i);
                     out += integer ? std::to_string(*integer) : "?";
                   }
                 }
                 return out + (shown < array.count ? text(", ... %llu in all]", static_cast<unsigned long long>(array.count)) : "]");
               }},
      meta.value);
}

std::string shape(const TensorInfo& t) {
  std::string out;
  for (uint32_t i = 0; i < t.rank; ++i) out += (i > 0 ? " x " : "") + std::to_string(t.dims[i]);
  return out;
}

struct Total {
  uint64_t tensors = 0, bytes = 0;
};
std::map<DType, Total> totals(const Gguf& file) {
  std::map<DType, Total> out;
  for (const TensorInfo& t : file.tensors()) {
    ++out[t.dtype].tensors;
    out[t.dtype].bytes += t.bytes;
  }
  return out;
}

struct ExpertSizes {
  uint64_t count = 0, smallest = UINT64_MAX, largest = 0, all = 0;  // of one expert: its gate, up and down
};
ExpertSizes expert_sizes(const Model& model) {
  ExpertSizes out;
  for (const Layer& layer : model.layers) {
    if (!layer.router) continue;
    const uint64_t one = layer.gate.expert_bytes() + layer.up.expert_bytes() + layer.down.expert_bytes();
    const auto n = static_cast<uint64_t>(layer.gate.experts);
    out.count += n;
    out.smallest = std::min(out.smallest, one);
    out.largest = std::max(out.largest, one);
    out.all += one * n;
  }
  return out;
}

struct Slabs {
  std::set<DownLayout> down;
  std::set<bool> interleaved;  // gates
  uint64_t largest = 0, bytes = 0;
};
Slabs slabs(const Model& model) {
  Slabs out;
  for (const Layer& layer : model.layers) {
    out.down.insert(layer.down_layout);
    out.interleaved.insert(layer.gate.interleaved_in_file);
    out.largest = std::max(out.largest, layer.gate.stride);
    out.bytes += layer.gate.stride * layer.xxh3.size();
  }
  return out;
}

// "packed: 32 layers of 32 slabs of 2.11 MiB, 0.1 % padding, down neuron_major, gate interleaved, version 2"
std::string packed_text(const Model& model) {
  const Slabs s = slabs(model);
  const double used = static_cast<double>(expert_sizes(model).all) / static_cast<double>(s.bytes);
  std::string downs, gates;
  for (const bool interleaved : s.interleaved) gates += (gates.empty() ? "" : " and ") + std::string(kGateOrderNames[interleaved ? 1 : 0]);
  for (const DownLayout d : s.down) downs += (downs.empty() ? "" : " and ") + std::string(kDownLayoutNames[static_cast<size_t>(d)]);
  return text("packed: %lld layers of %lld slabs of ", static_cast<long long>(model.config.n_layer),
              static_cast<long long>(model.config.n_expert)) +
         format_bytes(s.largest) + text(", %.1f %% padding, down ", 100 * (1 - used)) + downs + ", gate " + gates +
         text(", version %d", model.config.packed);
}

std::string model_text(const Model& model) {
  const Config& c = model.config;
  std::string out =
      "runs: " + printable(c.architecture) +
      text(", %lld layers, width %lld, %lld heads (%lld of KV) of %lld, vocabulary %lld, context %lld\n", static_cast<long long>(c.n_layer),
           static_cast<long long>(c.n_embd), static_cast<long long>(c.n_head), static_cast<long long>(c.n_head_kv),
           static_cast<long long>(c.head_dim), static_cast<long long>(c.n_vocab), static_cast<long long>(c.n_ctx));
  if (c.is_sparse()) {
    const ExpertSizes e = expert_sizes(model);
    out += text("experts: %lld of %lld in each layer, %llu in all, ", static_cast<long long>(c.top_k), static_cast<long long>(c.n_expert),
                static_cast<unsigned long long>(e.count)) +
           format_bytes(e.smallest) + (e.largest > e.smallest ? " to " + format_bytes(e.largest) : "") + " each, " + format_bytes(e.all) +
           " together\n";
  }
  if (c.packed) out += packed_text(model) + '\n';
  out += format_bytes(model.weight_bytes()) + " of weights, " + format_bytes(model.bytes_per_token()) + " of them read for one token\n";
  for (const std::string& note : model.notes) out += "note: " + printable(note) + '\n';
  return out;
}

std::string inspect_text(const Gguf& file, const Result<Model>& model, bool full) {
  std::string out;
  for (const auto& part : file.parts()) out += printable(part.string()) + '\n';
  out += text("GGUF version %u, %zu keys, %zu tensors, ", file.version(), file.metadata().size(), file.tensors().size()) +
         format_bytes(file.file_bytes()) + text(", alignment %llu\n\n", static_cast<unsigned long long>(file.alignment()));
  Table keys("lll");
  for (const MetaValue& meta : file.metadata())
    keys.row({printable(meta.key, full ? SIZE_MAX : 60), std::string(type_name(meta.type)), value_text(meta, full)});
  out += keys.plain() + '\n';
  Table tensors("llrr", {"tensor", "type", "shape", "bytes"});
  for (const TensorInfo& t : file.tensors())
    tensors.row({printable(t.name, full ? SIZE_MAX : 60), std::string(name(t.dtype)), shape(t), std::to_string(t.bytes)});
  out += tensors.plain() + '\n';
  Table sums("lrr", {"type", "tensors", "size"});
  for (const auto& [dtype, total] : totals(file))
    sums.row({std::string(name(dtype)), std::to_string(total.tensors), format_bytes(total.bytes)});
  out += sums.plain() + '\n';
  return out + (model ? model_text(*model) : "would not run: " + printable(model.error().message) + '\n');
}

boost::json::object inspect_json(const Gguf& file, const Result<Model>& model, bool full) {
  boost::json::array parts, tensors;
  boost::json::object metadata, types;
  for (const auto& part : file.parts()) parts.push_back(boost::json::string(utf8_lossy(part.string())));
  for (const MetaValue& meta : file.metadata()) metadata[utf8_lossy(meta.key)] = value_json(meta, full ? UINT64_MAX : 8);
  for (const TensorInfo& t : file.tensors()) {
    boost::json::array dims;
    for (uint32_t i = 0; i < t.rank; ++i) dims.push_back(t.dims[i]);
    tensors.push_back({{"name", utf8_lossy(t.name)},
                       {"type", name(t.dtype)},
                       {"shape", std::move(dims)},
                       {"bytes", t.bytes},
                       {"file", t.file},
                       {"offset", t.offset}});
  }
  for (const auto& [dtype, total] : totals(file)) types[name(dtype)] = {{"tensors", total.tensors}, {"bytes", total.bytes}};
  boost::json::object out{{"files", std::move(parts)},       {"version", file.version()},       {"alignment", file.alignment()},
                          {"file_bytes", file.file_bytes()}, {"metadata", std::move(metadata)}, {"tensors", std::move(tensors)},
                          {"types", std::move(types)},       {"runs", model.has_value()}};
  if (!model) {
    out["refusal"] = {{"code", code_name(model.error().code)}, {"message", utf8_lossy(model.error().message)}};
    return out;
  }
  boost::json::array notes;
  for (const std::string& note : model->notes) notes.push_back(boost::json::string(utf8_lossy(note)));
  out["notes"] = std::move(notes);
  out["weight_bytes"] = model->weight_bytes();
  out["bytes_per_token"] = model->bytes_per_token();
  if (model->config.is_sparse()) {
    const ExpertSizes e = expert_sizes(*model);
    if (model->config.packed) {
      const Slabs s = slabs(*model);
      boost::json::array down, gate;
      for (const Layer& layer : model->layers) {
        down.push_back(boost::json::string(kDownLayoutNames[static_cast<size_t>(layer.down_layout)]));
        gate.push_back(boost::json::string(kGateOrderNames[layer.gate.interleaved_in_file ? 1 : 0]));
      }
      out["packed"] = {
          {"version", model->config.packed}, {"slab_bytes", s.largest}, {"slabs", expert_sizes(*model).count}, {"bytes", s.bytes},
          {"down", std::move(down)},         {"gate", std::move(gate)}};
    }
    out["experts"] = {{"per_layer", model->config.n_expert}, {"top_k", model->config.top_k}, {"count", e.count},
                      {"smallest_bytes", e.smallest},        {"largest_bytes", e.largest},   {"bytes", e.all}};
  }
  return out;
}

// Instead of the description: every damaged slab a line, exit code 4 if there is one.
Result<int> verify(const Model& model, const InspectFlags& f) {
  watch_interrupts(SecondPress::ends_the_program);
  Progress progress("verifying", Progress::Unit::bytes, !f.quiet);
  const auto damaged = verify_packed(
      model, [&](uint64_t done, uint64_t total) { progress.update(done, total); }, interrupted);
  progress.clear();
  if (!damaged) return tl::unexpected<Error>(damaged.error());
  const uint64_t count = expert_sizes(model).count;
  if (f.json) {
    boost::json::array list;
    for (const DamagedSlab& d : *damaged) list.push_back({{"layer", d.layer}, {"expert", d.expert}});
    FTH_RETURN_IF_ERROR(put(json_text({{"slabs", count}, {"bytes", slabs(model).bytes}, {"damaged", std::move(list)}})));
  } else if (damaged->empty()) {
    FTH_RETURN_IF_ERROR(put(text("%llu slabs checked, ", static_cast<unsigned long long>(count)) + format_bytes(slabs(model).bytes) +
                            ": all are as they were packed\n"));
  } else {
    std::string out;
    for (const DamagedSlab& d : *damaged)
      out += text("damaged: layer %lld, expert %lld: xxh3 is %016llx, packed was %016llx\n", static_cast<long long>(d.layer),
                  static_cast<long long>(d.expert), static_cast<unsigned long long>(d.found), static_cast<unsigned long long>(d.stated));
    FTH_RETURN_IF_ERROR(put(out));
  }
  if (damaged->empty()) return 0;
  return fail(Code::data_loss, printable(model.file.name()) +
                                   text(": %zu of %llu slabs are damaged, the first is layer %lld, expert %lld; pack the model again",
                                        damaged->size(), static_cast<unsigned long long>(count),
                                        static_cast<long long>(damaged->front().layer), static_cast<long long>(damaged->front().expert)));
}

Result<int> run(InspectFlags& f) {
  FTH_RETURN_IF_ERROR(take_positional_model(f, f));
  FTH_ASSIGN_OR_RETURN(const auto overrides, parse_overrides(f.overrides));
  FTH_ASSIGN_OR_RETURN(const auto path, find_model(f.model));
  FTH_ASSIGN_OR_RETURN(const Gguf file, Gguf::open(path));
  const Result<Model> model = load_model(path, overrides);
  if (!model && model.error().code == Code::invalid_argument) return tl::unexpected<Error>(model.error());  // an override, not the file
  if (f.verify) {
    if (!model) return tl::unexpected<Error>(model.error());
    if (!model->config.packed)
      return fail(Code::invalid_argument,
                  printable(path.string()) + ": --verify: is not packed and has no checksums; `forethought pack` makes a packed model");
    return verify(*model, f);
  }
  FTH_RETURN_IF_ERROR(put(f.json ? json_text(inspect_json(file, model, f.full)) : inspect_text(file, model, f.full)));
  return 0;
}

}  // namespace

const Command kInspect = make_command<InspectFlags, describe, run>("inspect", "show a model file's metadata and tensors", kHelp, "MODEL");

}  // namespace fth::cli
