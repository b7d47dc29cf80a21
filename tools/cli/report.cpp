// Speeds never stand without the bytes they moved: tok/s, GB/s and the share of what the memory can do.

#include "tools/cli/report.h"

#include <algorithm>
#include <boost/json.hpp>
#include <set>

#include "core/base/bytes.h"
#include "tools/cli/machine.h"
#include "tools/cli/output.h"

namespace fth::cli {

double per_second(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

std::vector<double> live_shares(const Engine& engine) {
  std::vector<double> shares;
  for (const Engine::LiveNeurons& n : engine.live_neurons())
    shares.push_back(n.all > 0 ? static_cast<double>(n.live) / static_cast<double>(n.all) : 0);
  return shares;
}

double dead_bytes(const Engine& engine) {
  const Model& model = engine.model();
  const std::vector<double> live = live_shares(engine);
  double sum = 0;
  for (size_t i = 0; i < std::min(live.size(), model.layers.size()); ++i) {
    const Layer& l = model.layers[i];
    double bytes = static_cast<double>(l.up.expert_bytes());
    // Its scales are read all the same.
    if (l.down_layout == DownLayout::neuron_major)
      bytes += static_cast<double>(l.down.expert_bytes()) - 2.0 * static_cast<double>(l.down.rows * l.down.cols) / 32;
    if (l.down_layout == DownLayout::by_neuron) bytes += static_cast<double>(l.down.expert_bytes());
    sum += (1 - live[i]) * bytes * static_cast<double>(model.config.top_k);
  }
  return sum;
}

std::string live_text(std::span<const double> shares) {
  if (shares.empty()) return {};
  double sum = 0;
  std::string by_layer;
  for (const double share : shares) {
    sum += share;
    by_layer += text(" %.0f", 100 * share);
  }
  return text("live neurons %.1f %%; by layer:", 100 * sum / static_cast<double>(shares.size())) + by_layer;
}

std::string segment_table(const Stats& stats) {
  Table table("llrrr", {"device", "segment", "runs", "time", "read"});
  for (const SegmentTime& s : stats.segments)
    table.row({s.device, s.kind, std::to_string(s.count), text("%.1f ms", 1e3 * s.seconds),
               s.bytes > 0 ? format_rate(per_second(static_cast<double>(s.bytes), s.seconds)) : "-"});
  return table.empty() ? "" : table.plain("  ");
}

std::vector<std::string> device_names(const Plan& plan) {
  std::set<size_t> used;
  for (const Placement& p : plan.placements) used.insert(p.device);
  std::vector<std::string> out;
  for (const size_t d : used) out.push_back(plan.devices[d].name);
  return out;
}

std::string devices_used(const Plan& plan) {
  std::string out;
  for (const std::string& name : device_names(plan)) out += (out.empty() ? "" : ", ") + name;
  return out;
}

std::string summary_line(const Opened& opened, const Stats& stats) {
  const double rate = per_second(static_cast<double>(stats.decode_bytes), stats.decode_seconds);
  std::string out = text("prompt %lld tokens %.1f tok/s", static_cast<long long>(stats.prompt_tokens),
                         per_second(static_cast<double>(stats.prompt_tokens), stats.prompt_seconds));
  out += text(" | decode %lld tokens %.1f tok/s", static_cast<long long>(stats.decode_tokens),
              per_second(static_cast<double>(stats.decode_tokens), stats.decode_seconds));
  out += " | " + format_rate(rate);
  if (opened.profile.bytes_per_second > 0) out += text(", %.0f %% of memory bandwidth", 100 * rate / opened.profile.bytes_per_second);
  return out + " | peak RSS " + format_bytes(peak_rss()) + " | " + devices_used(opened.engine->plan());
}

double overlap(const Stats& stats) {
  if (stats.decode_seconds <= 0) return 0;
  const double computing = stats.decode_seconds - stats.decode_io.stall_seconds;
  return std::min(1.0, std::max(computing, stats.decode_io.io_seconds) / stats.decode_seconds);
}

std::string streaming_lines(const Opened& opened, const Stats& stats) {
  const std::string how = opened.engine->streaming();
  if (how.empty() || stats.decode_tokens == 0) return how.empty() ? "" : "experts: " + how;
  const IoStats& io = stats.decode_io;
  const auto tokens = static_cast<double>(stats.decode_tokens);
  const auto share = [&](uint64_t n) { return io.requested > 0 ? 100 * static_cast<double>(n) / static_cast<double>(io.requested) : 0.0; };
  std::string out = "experts: " + how + '\n';
  if (io.tier > 0)
    out += text("of the hits %.1f %% from device memory\n", 100 * static_cast<double>(io.tier) / static_cast<double>(io.hits));
  out += text("per token: hit %.1f %%, late %.1f %%, gate first %.1f %%, wrong guesses %.1f, ", share(io.hits), share(io.late),
              share(io.early), static_cast<double>(io.wrong_guesses) / tokens);
  out += format_bytes(static_cast<uint64_t>(static_cast<double>(io.bytes_read) / tokens)) + " read in " +
         text("%.1f ms at ", 1e3 * io.io_seconds / tokens) + format_rate(per_second(static_cast<double>(io.bytes_read), io.io_seconds));
  out += text(", %.1f ms computing, %.1f ms stalled, of %.1f ms; overlap %.2f", 1e3 * (stats.decode_seconds - io.stall_seconds) / tokens,
              1e3 * io.stall_seconds / tokens, 1e3 * stats.decode_seconds / tokens, overlap(stats));
  return out;
}

std::string kv_line(const Stats& stats) {
  if (stats.kv.bytes_written == 0) return "";
  return "KV cache: " + format_bytes(stats.kv.bytes_written) + " written to storage, " + format_bytes(stats.kv.bytes_read) + " read, " +
         text("%.2f s stalled", stats.kv.stall_seconds);
}

std::string refusal_lines(const Plan& plan) {
  std::string out;
  for (const Refusal& r : plan.refusals) out += "  " + printable(r.subject) + ": " + printable(r.reason) + '\n';
  return out;
}

boost::json::object stats_json(const Opened& opened, const Stats& stats) {
  const double rate = per_second(static_cast<double>(stats.decode_bytes), stats.decode_seconds);
  boost::json::object out{
      {"prompt_tokens", stats.prompt_tokens},
      {"reused_tokens", stats.reused_tokens},
      {"decode_tokens", stats.decode_tokens},
      {"prompt_seconds", stats.prompt_seconds},
      {"decode_seconds", stats.decode_seconds},
      {"prompt_tok_s", per_second(static_cast<double>(stats.prompt_tokens), stats.prompt_seconds)},
      {"decode_tok_s", per_second(static_cast<double>(stats.decode_tokens), stats.decode_seconds)},
      {"decode_bytes", stats.decode_bytes},
      {"copied_bytes", stats.copied_bytes},
      {"gb_s", rate / 1e9},
      {"peak_rss_bytes", peak_rss()},
      {"devices", boost::json::value_from(device_names(opened.engine->plan()))},
  };
  if (opened.profile.bytes_per_second > 0) out["bandwidth_share"] = rate / opened.profile.bytes_per_second;
  const auto io_json = [](const IoStats& io) {
    return boost::json::object{{"requested", io.requested},
                               {"hits", io.hits},
                               {"late", io.late},
                               {"misses", io.misses},
                               {"early", io.early},
                               {"tier", io.tier},
                               {"guesses", io.guesses},
                               {"wrong_guesses", io.wrong_guesses},
                               {"bytes_read", io.bytes_read},
                               {"stall_seconds", io.stall_seconds},
                               {"io_seconds", io.io_seconds}};
  };
  boost::json::array tokens;
  for (const TokenStats& t : stats.tokens) {
    tokens.push_back(io_json(t.io));
    tokens.back().as_object()["seconds"] = t.seconds;
  }
  out["tokens"] = std::move(tokens);
  if (!opened.engine->streaming().empty()) {
    out["experts"] = opened.engine->streaming();
    out["prompt_io"] = io_json(stats.prompt_io);
    out["decode_io"] = io_json(stats.decode_io);
    out["overlap"] = overlap(stats);
  }
  if (stats.kv.bytes_written > 0)
    out["kv_storage"] = {
        {"bytes_read", stats.kv.bytes_read}, {"bytes_written", stats.kv.bytes_written}, {"stall_seconds", stats.kv.stall_seconds}};
  if (const std::string how = opened.engine->screened_head(); !how.empty())
    out["lm_head"] = {{"how", how},
                      {"screened", stats.head.screened},
                      {"exact", stats.head.exact},
                      {"checked", stats.head.checked},
                      {"checked_in_all", opened.engine->head_errors().checked},
                      {"same_in_all", opened.engine->head_errors().same},
                      {"rows", stats.head.rows},
                      {"all_rows", stats.head.all_rows}};
  const PageFaults faults = page_faults();
  out["minor_faults"] = faults.minor;
  out["major_faults"] = faults.major;
  boost::json::array segments;
  for (const SegmentTime& s : stats.segments)
    segments.push_back({{"device", s.device}, {"kind", s.kind}, {"count", s.count}, {"seconds", s.seconds}, {"bytes", s.bytes}});
  out["segments"] = std::move(segments);
  return out;
}

}  // namespace fth::cli
