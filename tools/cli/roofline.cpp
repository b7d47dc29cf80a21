// Operations come from the shapes, bytes and seconds from what ran.

#include "tools/cli/roofline.h"

#include <algorithm>
#include <boost/json.hpp>

#include "tools/cli/report.h"

namespace fth::cli {

namespace {

double product(const Weight& w) { return w ? 2.0 * static_cast<double>(w.rows) * static_cast<double>(w.cols) : 0.0; }  // of one expert

// Operations of one repetition.
double flops(const Model& model, const Measured& m, std::string_view kind) {
  const Config& c = model.config;
  const auto tokens = static_cast<double>(m.tokens), top_k = static_cast<double>(c.top_k);
  double sum = 0;
  if (kind == name(SegmentKind::head)) return product(model.output) * (m.decode ? tokens : 1);
  for (const Layer& l : model.layers) {
    if (kind == name(SegmentKind::router)) sum += tokens * product(l.router);
    if (kind == name(SegmentKind::experts)) sum += tokens * top_k * (product(l.gate) + product(l.up) + product(l.down));
    if (kind == name(SegmentKind::combine)) sum += tokens * top_k * 2 * static_cast<double>(c.n_embd);
    if (kind != name(SegmentKind::attention)) continue;
    sum += tokens * (product(l.q) + product(l.k) + product(l.v) + product(l.attn_output));
    if (!c.is_sparse()) sum += tokens * (product(l.gate) + product(l.up) + product(l.down));
    double seen = 0;  // keys, summed over the tokens
    for (int64_t pos = m.before; pos < m.before + m.tokens; ++pos)
      seen += static_cast<double>(l.window == 0 ? pos + 1 : std::min(pos + 1, l.window));
    sum += seen * 4 * static_cast<double>(c.n_head * c.head_dim);  // scores, and the weighted sum of values
  }
  return sum;
}

struct Shares {
  double bytes_per_second = 0, ops_per_second = 0, bandwidth = 0, int8 = 0, roof = 0;  // shares: 0 when the peak is not known
  bool memory_bound = false;
};

Shares shares(const RooflineRow& r, const Peaks& peaks) {
  Shares s;
  s.bytes_per_second = per_second(r.bytes, r.seconds);
  s.ops_per_second = per_second(r.flops, r.seconds);
  if (peaks.bytes_per_second > 0) s.bandwidth = s.bytes_per_second / peaks.bytes_per_second;
  if (peaks.int8_ops_per_second > 0) s.int8 = s.ops_per_second / peaks.int8_ops_per_second;
  // The nearer roof is the one whose share is the larger: time at full bandwidth against time at full multiply-adds.
  s.memory_bound = s.bandwidth >= s.int8;
  s.roof = std::max(s.bandwidth, s.int8);
  return s;
}

}  // namespace

void add_segments(std::span<const SegmentTime> from, std::vector<SegmentTime>& to) {
  for (const SegmentTime& s : from) {
    const auto same = std::find_if(to.begin(), to.end(), [&s](const SegmentTime& t) { return t.device == s.device && t.kind == s.kind; });
    if (same == to.end()) {
      to.push_back(s);
    } else {
      same->count += s.count, same->seconds += s.seconds, same->bytes += s.bytes;
    }
  }
}

std::vector<RooflineRow> roofline(const Model& model, const Measured& m) {
  const double tokens = static_cast<double>(std::max<int64_t>(m.tokens * m.repetitions, 1)),
               once = static_cast<double>(std::max<int64_t>(m.tokens, 1));
  std::vector<RooflineRow> out;
  RooflineRow all{m.name, "all", "", 0, 0, m.seconds / tokens};
  double inside = m.stall_seconds / tokens;
  for (const SegmentTime& s : m.segments) {
    RooflineRow r{m.name, s.kind, s.device, static_cast<double>(s.bytes) / tokens, flops(model, m, s.kind) / once, s.seconds / tokens};
    all.bytes += r.bytes, all.flops += r.flops, inside += r.seconds;
    out.push_back(std::move(r));
  }
  if (m.stall_seconds > 0) out.push_back({m.name, "stall", "", 0, 0, m.stall_seconds / tokens});
  out.push_back({m.name, "rest", "", 0, 0, std::max(0.0, all.seconds - inside)});
  out.push_back(std::move(all));
  return out;
}

Table roofline_table(std::span<const RooflineRow> rows, const Peaks& peaks) {
  Table table("lllrrrrrrrrlr", {"test", "segment", "device", "MB/token", "MFLOP/token", "FLOP/byte", "ms/token", "GB/s", "of bandwidth",
                                "GFLOP/s", "of int8 peak", "roof", "of roof"});
  const auto share = [](double peak, double value) { return peak > 0 ? text("%.0f %%", 100 * value) : std::string("-"); };
  for (const RooflineRow& r : rows) {
    const Shares s = shares(r, peaks);
    if (r.bytes == 0 && r.flops == 0) {
      table.row({r.test, r.kind, r.device, "-", "-", "-", text("%.3f", 1e3 * r.seconds), "-", "-", "-", "-", "-", "-"});
      continue;
    }
    const bool known = peaks.bytes_per_second > 0 && peaks.int8_ops_per_second > 0;
    table.row({r.test, r.kind, r.device, text("%.3f", r.bytes / 1e6), text("%.3f", r.flops / 1e6),
               r.bytes > 0 ? text("%.2f", r.flops / r.bytes) : "-", text("%.3f", 1e3 * r.seconds), text("%.2f", s.bytes_per_second / 1e9),
               share(peaks.bytes_per_second, s.bandwidth), text("%.2f", s.ops_per_second / 1e9), share(peaks.int8_ops_per_second, s.int8),
               known ? (s.memory_bound ? "memory" : "int8") : "-", share(known ? 1 : 0, s.roof)});
  }
  return table;
}

std::string roofline_legend(const Peaks& peaks) {
  std::string out = "roofs: ";
  out += peaks.bytes_per_second > 0 ? format_rate(peaks.bytes_per_second) + " of memory" : "memory bandwidth not known";
  out +=
      peaks.int8_ops_per_second > 0 ? text(", %.0f GOP/s of int8 multiply-adds", peaks.int8_ops_per_second / 1e9) : ", int8 peak not known";
  out += " (" + peaks.int8_how + ")";
  if (peaks.bytes_per_second > 0 && peaks.int8_ops_per_second > 0)
    out += text("; below %.0f FLOP/byte memory is the lower one", peaks.int8_ops_per_second / peaks.bytes_per_second);
  return out +
         "\nbytes are weights and KV cache, in decode without dead neurons; operations are counted as if every neuron lived, so what skips "
         "dead ones may pass that roof";
}

boost::json::object roofline_json(std::span<const RooflineRow> rows, const Peaks& peaks) {
  boost::json::array all;
  for (const RooflineRow& r : rows) {
    const Shares s = shares(r, peaks);
    boost::json::object o{{"test", r.test},
                          {"segment", r.kind},
                          {"device", r.device},
                          {"bytes_per_token", r.bytes},
                          {"flops_per_token", r.flops},
                          {"seconds_per_token", r.seconds}};
    if (r.bytes > 0) {
      o["intensity"] = r.flops / r.bytes;
      o["bytes_per_second"] = s.bytes_per_second;
    }
    if (r.flops > 0) o["flops_per_second"] = s.ops_per_second;
    if (r.bytes > 0 && peaks.bytes_per_second > 0) o["bandwidth_share"] = s.bandwidth;
    if (r.flops > 0 && peaks.int8_ops_per_second > 0) o["int8_share"] = s.int8;
    if ((r.bytes > 0 || r.flops > 0) && peaks.bytes_per_second > 0 && peaks.int8_ops_per_second > 0) {
      o["roof"] = s.memory_bound ? "memory" : "int8";
      o["roof_share"] = s.roof;
    }
    all.push_back(std::move(o));
  }
  return {{"bytes_per_second", peaks.bytes_per_second},
          {"int8_ops_per_second", peaks.int8_ops_per_second},
          {"int8_how", peaks.int8_how},
          {"rows", std::move(all)}};
}

}  // namespace fth::cli
