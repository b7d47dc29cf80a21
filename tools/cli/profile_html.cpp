// The page: a template with the data in it. Everything that is drawn is drawn by the page's own script (profile_page.html).
#include <algorithm>
#include <boost/json.hpp>
#include <iterator>
#include <vector>

#include "core/profile/tracks.h"
#include "tools/cli/output.h"
#include "tools/cli/profile_report.h"

namespace fth::cli {
namespace {

constexpr unsigned char kPage[] = {
#include "embedded/profile_page.inc"
};

constexpr std::string_view kDataMark = "{\"data\": \"here\"}";

// The decoded token of median time: what happened from its begin to its end, track by track.
boost::json::value token_json(const Column& column) {
  std::vector<const Event*> steps;
  for (const Event& e : column.recorder->engine().events())
    if (e.kind == EventKind::step && e.rows == 1 && e.cpu_ns < 0) steps.push_back(&e);
  if (steps.empty()) return nullptr;
  const auto middle = steps.begin() + static_cast<std::ptrdiff_t>(steps.size() / 2);
  std::nth_element(steps.begin(), middle, steps.end(),
                   [](const Event* a, const Event* b) { return a->end_ns - a->begin_ns < b->end_ns - b->begin_ns; });
  const Event& step = **middle;
  boost::json::array tracks;
  for (const Track& track : make_tracks(*column.recorder)) {
    boost::json::array spans;
    for (const Event& e : track.events) {
      if (e.end_ns < step.begin_ns || e.begin_ns > step.end_ns || e.kind == EventKind::step) continue;
      spans.push_back({e.name, static_cast<int64_t>(e.kind), e.begin_ns - step.begin_ns, e.end_ns - step.begin_ns, e.layer, e.id, e.bytes});
    }
    if (track.kind == TrackKind::storage && spans.empty()) continue;  // rows for more reads than this token had
    tracks.push_back({{"name", utf8_lossy(track.name)}, {"spans", std::move(spans)}});
  }
  return {{"position", step.id}, {"ns", step.end_ns - step.begin_ns}, {"tracks", std::move(tracks)}};
}

}  // namespace

std::string profile_html(const Profile& profile) {
  boost::json::object data = profile_json(profile);
  boost::json::array tokens;
  for (const Column& c : profile.columns) tokens.push_back(token_json(c));
  data["median_tokens"] = std::move(tokens);
  std::string json = boost::json::serialize(data);
  // In a script element only "<" could end it; as an escape it means the same to JSON.
  for (size_t at = json.find('<'); at != std::string::npos; at = json.find('<', at)) json.replace(at, 1, "\\u003c");
  std::string page(std::begin(kPage), std::end(kPage));
  page.replace(page.find(kDataMark), kDataMark.size(), json);
  return page;
}

}  // namespace fth::cli
