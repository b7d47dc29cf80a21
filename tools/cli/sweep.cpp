// Budgets one by one through the planner, and the plot.

#include "tools/cli/sweep.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "core/base/bytes.h"
#include "tools/cli/output.h"

namespace fth::cli {

Result<SweepRange> parse_sweep(std::string_view range) {
  const auto bad = [&] {
    return fail(Code::invalid_argument,
                "--sweep " + std::string(range) + ": write LOW:HIGH or LOW:HIGH:STEPS, such as 1GiB:8GiB:8, with 2 to 64 steps");
  };
  const size_t a = range.find(':');
  if (a == std::string_view::npos) return bad();
  const size_t b = std::min(range.find(':', a + 1), range.size());
  const auto low = parse_bytes(range.substr(0, a)), high = parse_bytes(range.substr(a + 1, b - a - 1));
  if (!low || !high || *low == 0 || *high <= *low) return bad();
  SweepRange out{*low, *high};
  if (b < range.size()) {
    const std::string steps(range.substr(b + 1));
    if (steps.empty() || steps.size() > 2 || steps.find_first_not_of("0123456789") != std::string::npos) return bad();
    out.steps = std::stoi(steps);
  }
  if (out.steps < 2 || out.steps > 64) return bad();
  return out;
}

Result<Sweep> sweep(Engine& engine, const SweepRange& range, const ExpertUses& uses, const StorageSpeed& storage) {
  Sweep out;
  constexpr uint64_t kNoLimit = uint64_t{1} << 60;
  FTH_ASSIGN_OR_RETURN(const Plan whole, engine.plan_within(kNoLimit));
  FTH_ASSIGN_OR_RETURN(out.resident, predict(engine, whole, &uses, storage));
  if (whole.expert_slots == 0) out.resident_bytes = whole.ram_bytes;
  for (int64_t i = 0; i < range.steps; ++i) {
    SweepRow row;
    row.budget = range.low + (range.high - range.low) / static_cast<uint64_t>(range.steps - 1) * static_cast<uint64_t>(i);
    if (i == range.steps - 1) row.budget = range.high;
    auto plan = engine.plan_within(row.budget);
    if (!plan && plan.error().code != Code::resource_exhausted) return tl::unexpected<Error>(std::move(plan).error());
    if (plan) {
      FTH_ASSIGN_OR_RETURN(row.predicted, predict(engine, *plan, &uses, storage));
      // Smaller prefill steps may fit all experts into less than what the best plan takes.
      if (plan->expert_slots == 0) out.resident_bytes = std::min(out.resident_bytes, plan->ram_bytes);
      row.plan = std::move(*plan);
    } else {
      row.reason = plan.error().message;
    }
    out.rows.push_back(std::move(row));
  }
  return out;
}

namespace {

// "does not fit: 469.17 MiB of RAM needed (...)": up to the list.
std::string short_reason(const std::string& reason) { return printable(reason.substr(0, reason.find(" ("))); }

}  // namespace

std::string sweep_table(const Sweep& s, const Config& c) {
  Table table("rrrrrlrrl", {"budget", "slots", "hit %", "MiB/token", "tok/s", "bound by", "prefill tok/s", "ubatch", ""});
  for (const SweepRow& row : s.rows) {
    if (!row.plan) {
      table.row({format_bytes(row.budget), "-", "-", "-", "-", "-", "-", "-", short_reason(row.reason)});
      continue;
    }
    const StreamPrediction& d = row.predicted.decode;
    const int64_t slots = row.plan->expert_slots;
    const bool few = slots > 0 && slots < 2 * c.n_layer * c.top_k;
    table.row({format_bytes(row.budget), slots == 0 ? "all" : std::to_string(slots), text("%.1f", 100 * d.hit_rate),
               text("%.1f", d.bytes / static_cast<double>(kMiB)), text("%.1f", d.tokens_per_second()), std::string(name(d.bound)),
               text("%.0f", row.predicted.prompt_tok_s), std::to_string(row.plan->ubatch),
               few ? "fewer slots than two tokens' experts" : ""});
  }
  return table.plain();
}

boost::json::object sweep_json(const Sweep& s) {
  boost::json::array rows;
  for (const SweepRow& row : s.rows) {
    boost::json::object o{{"budget", row.budget}, {"fits", row.plan.has_value()}};
    if (row.plan) {
      o["ram_bytes"] = row.plan->ram_bytes;
      o["expert_slots"] = row.plan->expert_slots;
      o["resident"] = row.plan->expert_slots == 0;
      o["ubatch"] = row.plan->ubatch;
      for (auto& [key, value] : prediction_json(row.predicted)) o[key] = value;
    } else {
      o["reason"] = utf8_lossy(row.reason);
    }
    rows.push_back(std::move(o));
  }
  return {{"rows", std::move(rows)}, {"resident_bytes", s.resident_bytes}, {"resident", prediction_json(s.resident)}};
}

namespace {

std::string escaped(std::string_view raw) {
  std::string out;
  for (const char c : printable(raw)) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else {
      out += c;
    }
  }
  return out;
}

// A step of 1, 2 or 5 times a power of ten, about `count` of them up to `most`.
double tick_step(double most, double count) {
  const double raw = most / count, power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (raw <= factor * power * 1.0001) return factor * power;
  return 10 * power;
}

}  // namespace

std::string sweep_svg(const Sweep& s, std::string_view title, const std::vector<std::string>& subtitles) {
  constexpr double kWidth = 720, kHeight = 440, kLeft = 62, kRight = 658, kTop = 84, kBottom = 380;
  const double low = static_cast<double>(s.rows.front().budget), high = static_cast<double>(s.rows.back().budget);
  double fastest = s.resident.decode.tokens_per_second();
  for (const SweepRow& row : s.rows) fastest = std::max(fastest, row.plan ? row.predicted.decode.tokens_per_second() : 0);
  const double step = tick_step(std::max(fastest, 0.01) * 1.1, 6), top = step * std::ceil(std::max(fastest, 0.01) * 1.05 / step);
  const auto x = [&](double budget) { return kLeft + (budget - low) / (high - low) * (kRight - kLeft); };
  const auto y = [&](double share) { return kBottom - share * (kBottom - kTop); };
  const auto label = [&](double at_x, double at_y, const char* anchor, const char* fill, const std::string& words) {
    return text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">", at_x, at_y, anchor, fill) + words + "</text>\n";
  };
  constexpr const char *kInk = "#222", *kSpeed = "#0b5cad", *kHits = "#b3541e", *kGrid = "#ddd";
  std::string out = text(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n",
      kWidth, kHeight, kWidth, kHeight);
  out += "<title>" + escaped(title) + "</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  out += text("<text x=\"%.0f\" y=\"24\" font-size=\"15\" fill=\"%s\">", kLeft, kInk) + escaped(title) + "</text>\n";
  double line = 42;
  for (const std::string& words : subtitles) {
    out += text("<text x=\"%.0f\" y=\"%.0f\" font-size=\"11\" fill=\"#666\">", kLeft, line) + escaped(words) + "</text>\n";
    line += 15;
  }
  for (double v = 0; v <= top * 1.0001; v += step) {
    out += text("<line x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", kLeft, kRight, y(v / top), y(v / top), kGrid);
    out += label(kLeft - 6, y(v / top) + 4, "end", kSpeed, text("%.6g", v));
  }
  for (int percent = 0; percent <= 100; percent += 25)
    out += label(kRight + 6, y(percent / 100.0) + 4, "start", kHits, text("%d %%", percent));
  const size_t every = (s.rows.size() + 7) / 8;
  for (size_t i = 0; i < s.rows.size(); i += every) {
    const double at = x(static_cast<double>(s.rows[i].budget));
    out += text("<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.0f\" y2=\"%.0f\" stroke=\"%s\"/>\n", at, at, kBottom, kBottom + 5, kInk);
    out += label(at, kBottom + 19, "middle", kInk, format_bytes(s.rows[i].budget));
  }
  std::string speeds, hits, dots;
  for (const SweepRow& row : s.rows) {
    const double at = x(static_cast<double>(row.budget));
    if (!row.plan) {
      dots += text("<text class=\"unfit\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" fill=\"#a00\">\u00d7</text>\n", at, kBottom - 4);
      continue;
    }
    const double speed = row.predicted.decode.tokens_per_second(), hit = row.predicted.decode.hit_rate;
    speeds += text("%.1f,%.1f ", at, y(speed / top));
    hits += text("%.1f,%.1f ", at, y(hit));
    dots += text("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>", at, y(speed / top), kSpeed) +
            escaped(format_bytes(row.budget) + text(": %.1f tok/s, hit %.1f %%", speed, 100 * hit)) + "</title></circle>\n";
  }
  out += "<polyline class=\"hits\" fill=\"none\" stroke=\"" + std::string(kHits) +
         "\" stroke-width=\"1.5\" stroke-dasharray=\"5 3\" points=\"" + hits + "\"/>\n";
  out += "<polyline class=\"speed\" fill=\"none\" stroke=\"" + std::string(kSpeed) + "\" stroke-width=\"2\" points=\"" + speeds + "\"/>\n" +
         dots;
  if (s.resident_bytes > 0) {
    const double at = std::clamp(x(static_cast<double>(s.resident_bytes)), kLeft, kRight);
    const bool inside = static_cast<double>(s.resident_bytes) >= low && static_cast<double>(s.resident_bytes) <= high;
    if (inside)
      out += text("<line class=\"resident\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.0f\" y2=\"%.0f\" stroke=\"%s\" stroke-dasharray=\"2 3\"/>\n", at,
                  at, kTop, kBottom, kInk);
    out += label(
        std::min(at, kRight - 4), kTop - 6, "end", kInk,
        "all in memory from " + escaped(format_bytes(s.resident_bytes)) + text(" on: %.1f tok/s", s.resident.decode.tokens_per_second()));
  }
  out += text("<path d=\"M%.0f %.0f V%.0f H%.0f V%.0f\" fill=\"none\" stroke=\"%s\"/>\n", kLeft, kTop, kBottom, kRight, kTop, kInk);
  out += label((kLeft + kRight) / 2, kHeight - 16, "middle", kInk, "memory budget (--ram)");
  out += text("<text transform=\"translate(18 %.0f) rotate(-90)\" text-anchor=\"middle\" fill=\"%s\">tok/s, decoding</text>\n",
              (kTop + kBottom) / 2, kSpeed);
  out += text("<text transform=\"translate(%.0f %.0f) rotate(90)\" text-anchor=\"middle\" fill=\"%s\">experts found in memory</text>\n",
              kWidth - 12, (kTop + kBottom) / 2, kHits);
  return out + "</svg>\n";
}

}  // namespace fth::cli
