// forethought pack: a model file in which an expert is one read.

#include <boost/json.hpp>
#include <chrono>
#include <set>

#include "core/base/bytes.h"
#include "core/model/pack.h"
#include "core/model/packed.h"
#include "tools/cli/command.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/open.h"
#include "tools/cli/output.h"
#include "tools/cli/progress.h"
#include "tools/cli/report.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Writes a packed model: still a GGUF file, in which the three matrices of an expert lie together, at multiples of 4096 bytes,\n"
    "with a checksum, so that an expert that is not in memory is one read. Weights keep every bit. What is interrupted continues\n"
    "with the same command; `forethought inspect --verify` checks the result. A packed input is written again in the newest format.\n\n"
    "  forethought pack model.gguf model.packed.gguf\n"
    "  forethought pack model.gguf model.packed.gguf --down row_major --force\n";

struct PackFlags : CommonFlags {
  std::string down = "auto", gate = "auto";
  bool force = false;
  std::vector<std::string> overrides;
};

void describe(PackFlags& f, po::options_description& options) {
  options.add_options()  //
      ("down", po::value(&f.down)->value_name("LAYOUT"),
       "down matrices: auto (default: by neuron where it is lossless), row_major or neuron_major")  //
      ("gate", po::value(&f.gate)->value_name("ORDER"),
       "gates: auto (default: interleaved where their type has it), row_major or interleaved")  //
      ("force", po::bool_switch(&f.force), "replace the output when it exists")                 //
      ("override", po::value(&f.overrides)->value_name("KEY=VALUE"),
       "replace a value while reading, as for run; it is not written into the output (may be repeated)");
  add_common(f, options, "print one JSON object");
}

std::string layouts(const PackReport& report) {
  const std::set<DownLayout> used(report.down.begin(), report.down.end());
  std::string out;
  for (const DownLayout layout : used) out += (out.empty() ? "" : " and ") + std::string(kDownLayoutNames[static_cast<size_t>(layout)]);
  return out;
}

std::string orders(const PackReport& report) {
  const std::set<bool> used(report.gate_interleaved.begin(), report.gate_interleaved.end());
  std::string out;
  for (const bool interleaved : used) out += (out.empty() ? "" : " and ") + std::string(kGateOrderNames[interleaved ? 1 : 0]);
  return out;
}

Result<int> run(PackFlags& f) {
  if (f.positional.size() != 2)
    return fail(
        Code::invalid_argument,
        text("name two files, the model and the output: `forethought pack model.gguf model.packed.gguf` (%zu named)", f.positional.size()));
  PackOptions o;
  o.in = f.positional[0];
  o.out = f.positional[1];
  o.replace = f.force;
  if (f.down == "auto") {
    o.down = PackDown::automatic;
  } else if (f.down == "row_major") {
    o.down = PackDown::row_major;
  } else if (f.down == "neuron_major") {
    o.down = PackDown::neuron_major;
  } else {
    return fail(Code::invalid_argument, "--down " + printable(f.down, 40) + ": it must be auto, row_major or neuron_major");
  }
  if (f.gate == "auto") {
    o.gate = PackGate::automatic;
  } else if (f.gate == "row_major") {
    o.gate = PackGate::row_major;
  } else if (f.gate == "interleaved") {
    o.gate = PackGate::interleaved;
  } else {
    return fail(Code::invalid_argument, "--gate " + printable(f.gate, 40) + ": it must be auto, row_major or interleaved");
  }
  FTH_ASSIGN_OR_RETURN(o.overrides, parse_overrides(f.overrides));
  watch_interrupts(SecondPress::ends_the_program);
  o.stopped = interrupted;
  Progress progress("packing", Progress::Unit::bytes, !f.quiet);
  o.on_progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  o.on_note = [&](const std::string& note) {
    progress.clear();
    if (!f.quiet) say(o.out.string() + ": " + note);
  };
  const auto start = std::chrono::steady_clock::now();
  const auto packed = pack_model(o);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  progress.clear();
  if (!packed) return tl::unexpected<Error>(packed.error());

  const PackReport& r = *packed;
  const double rate = per_second(static_cast<double>(r.written_bytes), seconds);
  if (f.json) {
    boost::json::array down, gate;
    for (const bool interleaved : r.gate_interleaved) gate.push_back(boost::json::string(kGateOrderNames[interleaved ? 1 : 0]));
    for (const DownLayout layout : r.down) down.push_back(boost::json::string(kDownLayoutNames[static_cast<size_t>(layout)]));
    FTH_RETURN_IF_ERROR(put(json_text({{"model", utf8_lossy(o.in.string())},
                                       {"output", utf8_lossy(o.out.string())},
                                       {"bytes_in", r.in_bytes},
                                       {"bytes_out", r.out_bytes},
                                       {"layers", r.n_layer},
                                       {"layers_kept", r.layers_kept},
                                       {"experts_per_layer", r.n_expert},
                                       {"slab_bytes", r.slab_bytes},
                                       {"padding_bytes", r.pad_bytes},
                                       {"down", std::move(down)},
                                       {"gate", std::move(gate)},
                                       {"bytes_written", r.written_bytes},
                                       {"seconds", seconds},
                                       {"gb_s", rate / 1e9}})));
    return 0;
  }
  std::string out = printable(o.out.string()) + ": " + format_bytes(r.out_bytes) + " from " + format_bytes(r.in_bytes) +
                    text(", %lld layers of %lld slabs of ", static_cast<long long>(r.n_layer), static_cast<long long>(r.n_expert)) +
                    format_bytes(r.slab_bytes) + ", down " + layouts(r) + ", gate " + orders(r);
  if (r.layers_kept > 0) out += text(", %lld layers done earlier", static_cast<long long>(r.layers_kept));
  FTH_RETURN_IF_ERROR(put(out + text(", %.1f s, ", seconds) + format_rate(rate) + '\n'));
  return 0;
}

}  // namespace

const Command kPack =
    make_command<PackFlags, describe, run>("pack", "write a model whose experts are one read each", kHelp, "MODEL OUTPUT");

}  // namespace fth::cli
