// The tables of `forethought profile`, and the same figures as JSON.
#include "tools/cli/profile_report.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <filesystem>

#include "core/base/bytes.h"
#include "tools/cli/machine.h"
#include "tools/cli/output.h"
#include "tools/cli/report.h"

namespace fth::cli {
namespace {

std::string time_text(double s) {
  if (s <= 0) return "-";
  return s < 1e-3 ? text("%.1f us", 1e6 * s) : s < 1 ? text("%.2f ms", 1e3 * s) : text("%.2f s", s);
}
std::string rate_text(double per_second) {
  const double g = per_second / 1e9;
  return g <= 0 ? "-" : g < 0.1 ? text("%.4f", g) : text("%.2f", g);
}
std::string share_text(double share) {
  return share <= 0 ? "-" : share < 0.01 ? text("%.2f %%", 100 * share) : text("%.0f %%", 100 * share);
}
std::string bucket_text(int64_t bucket) { return bucket == 1 ? "decode" : text("prefill %lld", static_cast<long long>(bucket)); }

const SegmentRow* find(const Column& c, const std::string& segment, int64_t bucket) {
  for (const SegmentRow& r : c.segments)
    if (r.name == segment && r.bucket == bucket) return &r;
  return nullptr;
}

std::string title(const Column& c) { return printable(c.name) + (c.software ? " (software)" : ""); }

// Median times, a column per placement, and how many times the CPU's each is.
std::string side_by_side(const Profile& p, int64_t bucket) {
  std::string columns = "lr";
  std::vector<std::string> header = {bucket_text(bucket), title(p.columns[0])};
  for (size_t i = 1; i < p.columns.size(); ++i) {
    columns += "rr";
    header.insert(header.end(), {title(p.columns[i]), "x cpu"});
  }
  Table table(columns, header);
  for (const SegmentRow& base : p.columns[0].segments) {
    if (base.bucket != bucket) continue;
    std::vector<std::string> cells = {base.name, time_text(base.time.p50)};
    for (size_t i = 1; i < p.columns.size(); ++i) {
      const Column& c = p.columns[i];
      const SegmentRow* r = find(c, base.name, bucket);
      const bool there = r != nullptr && r->device == c.subject;
      cells.push_back(r == nullptr ? "-" : there ? time_text(r->time.p50) : "(" + time_text(r->time.p50) + ")");
      cells.push_back(there && base.time.p50 > 0 ? text("%.2f", r->time.p50 / base.time.p50) : "");
    }
    table.row(std::move(cells));
  }
  // A column that was shortened has steps of another size, which compare with nothing.
  const auto step = [&](const Column& c) {
    if (bucket == 1) return c.decode.time.p50;
    return c.n_prompt == p.columns[0].n_prompt ? c.prefill.time.p50 : 0.0;
  };
  std::vector<std::string> whole = {"whole step", time_text(step(p.columns[0]))};
  for (size_t i = 1; i < p.columns.size(); ++i) {
    whole.push_back(time_text(step(p.columns[i])));
    whole.push_back(step(p.columns[0]) > 0 && step(p.columns[i]) > 0 ? text("%.2f", step(p.columns[i]) / step(p.columns[0])) : "");
  }
  table.row(std::move(whole));
  return table.plain("  ");
}

std::string details(const Profile& p) {
  Table table("lllrrrrrrrrrrrr", {"device", "segment", "for", "runs", "p50", "p95", "p99", "on device", "total", "bytes", "GB/s", "GFLOP/s",
                                  "FLOP/B", "roofline", "CPU/wall"});
  for (size_t i = 0; i < p.columns.size(); ++i) {
    const Column& c = p.columns[i];
    for (const SegmentRow& r : c.segments) {
      if (i > 0 && r.device != c.subject) continue;  // the CPU's rows stand in its own column
      table.row({printable(c.devices[r.device]), r.name, bucket_text(r.bucket), std::to_string(r.time.count), time_text(r.time.p50),
                 time_text(r.time.p95), time_text(r.time.p99), time_text(r.on_device.p50), time_text(r.time.total),
                 r.bytes > 0 ? format_bytes(r.bytes / r.time.count) : "-", rate_text(r.bytes_per_second()), rate_text(r.flops_per_second()),
                 r.flops > 0 ? text("%.1f", r.intensity()) : "-", share_text(r.roofline_share(c.rooflines[r.device])),
                 r.cpu_share > 0 ? text("%.2f", r.cpu_share) : "-"});
    }
  }
  return table.plain("  ");
}

std::string column_lines(const Column& c) {
  const auto line = [&](const char* what, const StepRow& s) -> std::string {
    if (s.time.count == 0) return "";
    const auto n = static_cast<double>(s.time.count);
    std::string out = text("  %s: %s %.1f tok/s; p50 %s, p95 %s, p99 %s of %llu", title(c).c_str(), what,
                           per_second(static_cast<double>(s.tokens), s.time.total), time_text(s.time.p50).c_str(),
                           time_text(s.time.p95).c_str(), time_text(s.time.p99).c_str(), static_cast<unsigned long long>(s.time.count));
    if (c.shortened) out += ", shortened to fit --seconds";
    if (s.cpu_share > 0) out += text("; CPU/wall %.2f", s.cpu_share);
    if (s.copies > 0)
      out += text("; %.1f copies of ", static_cast<double>(s.copies) / n) + format_bytes(s.copied_bytes / s.copies) + " a step, " +
             time_text(s.copy_seconds / n);
    if (s.reads > 0)
      out += "; " + format_bytes(static_cast<uint64_t>(static_cast<double>(s.read_bytes) / n)) + " read a step in " +
             time_text(s.io_seconds / n) + ", " + time_text(s.stall_seconds / n) + " stalled";
    return out + '\n';
  };
  return line("prefill", c.prefill) + line("decode", c.decode);
}

boost::json::object step_json(const StepRow& s) {
  return {{"steps", s.time.count},
          {"tokens", s.tokens},
          {"tok_s", per_second(static_cast<double>(s.tokens), s.time.total)},
          {"p50_s", s.time.p50},
          {"p95_s", s.time.p95},
          {"p99_s", s.time.p99},
          {"total_s", s.time.total},
          {"bytes", s.bytes},
          {"cpu_per_wall", s.cpu_share},
          {"copies", s.copies},
          {"copied_bytes", s.copied_bytes},
          {"copy_s", s.copy_seconds},
          {"reads", s.reads},
          {"read_bytes", s.read_bytes},
          {"io_s", s.io_seconds},
          {"stall_s", s.stall_seconds},
          {"choosing_s", s.route_seconds},
          {"requesting_s", s.request_seconds}};
}

boost::json::object roofline_json(const Roofline& r) {
  return {{"flops_per_second", r.flops_per_second}, {"bytes_per_second", r.bytes_per_second}};
}

boost::json::object column_json(const Profile& p, const Column& c) {
  boost::json::array segments, arenas, devices;
  for (size_t d = 0; d < c.devices.size(); ++d) {
    boost::json::object o = roofline_json(c.rooflines[d]);
    o["name"] = utf8_lossy(c.devices[d]);
    devices.push_back(std::move(o));
  }
  for (const SegmentRow& r : c.segments) {
    boost::json::object o{{"device", utf8_lossy(c.devices[r.device])},
                          {"segment", r.name},
                          {"bucket", r.bucket},
                          {"runs", r.time.count},
                          {"p50_s", r.time.p50},
                          {"p95_s", r.time.p95},
                          {"p99_s", r.time.p99},
                          {"total_s", r.time.total},
                          {"bytes", r.bytes},
                          {"flop", r.flops},
                          {"gb_s", r.bytes_per_second() / 1e9},
                          {"gflop_s", r.flops_per_second() / 1e9},
                          {"intensity", r.intensity()},
                          {"roofline_share", r.roofline_share(c.rooflines[r.device])},
                          {"cpu_per_wall", r.cpu_share}};
    if (r.on_device.count > 0) o["device_p50_s"] = r.on_device.p50;
    const SegmentRow* base = find(p.columns[0], r.name, r.bucket);
    if (base != nullptr && base->time.p50 > 0) o["times_cpu"] = r.time.p50 / base->time.p50;
    segments.push_back(std::move(o));
  }
  for (const Arena& a : c.arenas) arenas.push_back({{"name", utf8_lossy(a.name)}, {"where", utf8_lossy(a.device)}, {"bytes", a.bytes}});
  return {{"name", utf8_lossy(c.name)},
          {"about", utf8_lossy(c.about)},
          {"software", c.software},
          {"prompt_tokens", c.n_prompt},
          {"decode_tokens", c.n_decode},
          {"repetitions", c.repetitions},
          {"shortened", c.shortened},
          {"devices", std::move(devices)},
          {"segments", std::move(segments)},
          {"decode", step_json(c.decode)},
          {"prefill", step_json(c.prefill)},
          {"sample_p50_s", c.sample.p50},
          {"predicted_s", c.predicted_s},
          {"experts", c.streaming.empty() ? "resident" : c.streaming},
          {"arenas", std::move(arenas)},
          {"live_neurons", boost::json::value_from(c.live)},
          {"resident_bytes", c.resident_bytes},
          {"minor_faults", c.minor_faults},
          {"major_faults", c.major_faults},
          {"dropped_events", c.recorder->dropped()}};
}

}  // namespace

std::string profile_text(const Profile& p) {
  std::string out = text("%s, %s, %u threads, %.1f GB/s, %.0f GFLOP/s (f32 multiply-adds); %s, %s\n", printable(p.cpu).c_str(),
                         p.isa.c_str(), p.threads, p.roofline.bytes_per_second / 1e9, p.roofline.flops_per_second / 1e9,
                         printable(std::filesystem::path(p.model).filename().string(), 60).c_str(), printable(p.tokens, 60).c_str());
  std::vector<int64_t> buckets;
  for (const SegmentRow& r : p.columns[0].segments)
    if (std::find(buckets.begin(), buckets.end(), r.bucket) == buckets.end()) buckets.push_back(r.bucket);
  out += "\nmedian times";
  if (p.columns.size() > 1) out += "; in parentheses: ran on the CPU";
  out += '\n';
  for (const int64_t bucket : buckets) out += side_by_side(p, bucket) + '\n';
  out += "every device and segment (CPU/wall: threads busy, spinning ones too; FLOPs of experts as if no neuron were dead)\n" + details(p) +
         "\nwhole steps\n";
  for (const Column& c : p.columns) out += column_lines(c);
  for (const Column& c : p.columns)
    if (!c.live.empty()) out += "  " + printable(c.name) + ": " + live_text(c.live) + '\n';
  if (p.last_s > 0)
    out += text("\ndrift: a token of the first cell took %s, at the end again %s (%+.0f %%)", time_text(p.first_s).c_str(),
                time_text(p.last_s).c_str(), std::round(100 * p.drift()) + 0.0) +
           (p.drift() > 0.1 || p.drift() < -0.1 ? "; the machine changed meanwhile, compare columns with care\n" : "\n");
  if (!p.unprofiled.empty()) out += "\nnot profiled\n";
  for (const Unprofiled& u : p.unprofiled) out += "  " + printable(u.subject) + ": " + printable(u.reason) + '\n';
  return out;
}

boost::json::object profile_json(const Profile& p) {
  boost::json::array columns, unprofiled, experts;
  for (const Column& c : p.columns) columns.push_back(column_json(p, c));
  for (const Unprofiled& u : p.unprofiled) unprofiled.push_back({{"subject", utf8_lossy(u.subject)}, {"reason", utf8_lossy(u.reason)}});
  const std::vector<uint64_t>& counts = p.columns[0].experts;
  for (int64_t layer = 0; layer < p.n_layer && !counts.empty(); ++layer) {
    boost::json::array row;
    for (int64_t e = 0; e < p.n_expert; ++e) row.push_back(counts[static_cast<size_t>(layer * p.n_expert + e)]);
    experts.push_back(std::move(row));
  }
  boost::json::object out{{"model", utf8_lossy(p.model)},
                          {"tokens", utf8_lossy(p.tokens)},
                          {"cpu", utf8_lossy(p.cpu)},
                          {"isa", p.isa},
                          {"threads", p.threads},
                          {"n_ctx", p.n_ctx},
                          {"ubatch", p.ubatch},
                          {"version", FTH_VERSION},
                          {"roofline", roofline_json(p.roofline)},
                          {"columns", std::move(columns)},
                          {"not_profiled", std::move(unprofiled)},
                          {"expert_counts", std::move(experts)},
                          {"peak_rss_bytes", peak_rss()},
                          {"drift", nullptr}};
  if (p.last_s > 0) out["drift"] = boost::json::object{{"first_s", p.first_s}, {"last_s", p.last_s}, {"share", p.drift()}};
  return out;
}

}  // namespace fth::cli
