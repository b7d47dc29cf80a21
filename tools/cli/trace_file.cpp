// One line per event: complete events (X), counters (C) and names (M), as the format's description has them.
#include "tools/cli/trace_file.h"

#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "core/profile/tracks.h"
#include "tools/cli/output.h"

namespace fth::cli {
namespace {

std::string quoted(const std::string& s) { return boost::json::serialize(boost::json::string(utf8_lossy(s))); }

class Writer {
 public:
  explicit Writer(int64_t first_ns) : first_ns_(first_ns) {}

  void name(int pid, int tid, const char* what, const std::string& value) {
    line(text("{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"%s\",\"args\":{\"name\":", pid, tid, what) + quoted(value) + "}}");
  }
  void order(int pid, int tid, const char* what, int at) {
    line(text("{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"%s\",\"args\":{\"sort_index\":%d}}", pid, tid, what, at));
  }
  void span(int pid, int tid, const Event& e) {
    std::string args;
    const auto add = [&](const char* key, long long value) { args += text("%s\"%s\":%lld", args.empty() ? "" : ",", key, value); };
    if (e.layer >= 0) add("layer", e.layer);
    if (e.kind == EventKind::read) add("expert", e.id);
    if (e.kind == EventKind::step) add("position", e.id);
    if (e.rows > 0) add("tokens", e.rows);
    if (e.bucket > 0) add("bucket", e.bucket);
    if (e.bytes > 0) add("bytes", static_cast<long long>(e.bytes));
    if (e.flops > 0) add("flop", static_cast<long long>(e.flops));
    if (e.cpu_ns >= 0) add("cpu_us", e.cpu_ns / 1000);
    line(text("{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"cat\":\"%s\",\"name\":%s,\"ts\":%s,\"dur\":%s,\"args\":{", pid, tid, category(e.kind),
              quoted(label(e)).c_str(), us(e.begin_ns - first_ns_).c_str(), us(e.end_ns - e.begin_ns).c_str()) +
         args + "}}");
  }
  void counter(int pid, const Event& e) {
    line(text("{\"ph\":\"C\",\"pid\":%d,\"tid\":0,\"name\":\"%s\",\"ts\":%s,\"args\":{\"value\":%llu}}", pid, e.name,
              us(e.begin_ns - first_ns_).c_str(), static_cast<unsigned long long>(e.bytes)));
  }
  std::string take() { return "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n" + out_ + "\n]}\n"; }

 private:
  static const char* category(EventKind kind) {
    switch (kind) {
      case EventKind::step: return "step";
      case EventKind::segment: return "segment";
      case EventKind::queue:
      case EventKind::beside: return "device";
      case EventKind::busy: return "busy";
      case EventKind::wait: return "wait";
      case EventKind::copy: return "copy";
      case EventKind::stall:
      case EventKind::request:
      case EventKind::read: return "storage";
      default: return "host";
    }
  }
  // "token 12", "attention 3": what a track shows at a glance.
  static std::string label(const Event& e) {
    if (e.kind == EventKind::step && e.rows == 1) return text("%s %d", e.name, e.id);
    if (e.kind == EventKind::step) return text("%s %d to %d", e.name, e.id, e.id + e.rows - 1);
    if (e.kind == EventKind::read) return text("%s %d.%d", e.name, e.layer, e.id);
    const std::string name = e.kind == EventKind::wait && e.device == 0 ? "wait for threads" : e.name;
    return e.layer >= 0 ? name + ' ' + std::to_string(e.layer) : name;
  }
  static std::string us(int64_t ns) { return text("%lld.%03lld", static_cast<long long>(ns / 1000), static_cast<long long>(ns % 1000)); }
  void line(const std::string& s) { out_ += (out_.empty() ? "" : ",\n") + s; }

  int64_t first_ns_;
  std::string out_;
};

}  // namespace

Result<> write_trace(const std::filesystem::path& path, const std::vector<TracePart>& parts) {
  std::vector<std::vector<Track>> tracks;
  std::vector<std::vector<Event>> counters;
  int64_t first = INT64_MAX;
  for (const TracePart& part : parts) {
    tracks.push_back(make_tracks(*part.recorder));
    counters.push_back(make_counters(*part.recorder));
    for (const Track& t : tracks.back())
      if (!t.events.empty()) first = std::min(first, t.events.front().begin_ns);
    if (!counters.back().empty()) first = std::min(first, counters.back().front().begin_ns);
  }
  Writer out(first);
  for (size_t i = 0; i < parts.size(); ++i) {
    const int pid = static_cast<int>(i) + 1;
    out.name(pid, 0, "process_name", parts[i].name);
    out.order(pid, 0, "process_sort_index", pid);
    for (size_t t = 0; t < tracks[i].size(); ++t) {
      const int tid = static_cast<int>(t) + 1;
      out.name(pid, tid, "thread_name", tracks[i][t].name);
      out.order(pid, tid, "thread_sort_index", tid);
      for (const Event& e : tracks[i][t].events) out.span(pid, tid, e);
    }
    for (const Event& e : counters[i]) out.counter(pid, e);
  }
  return write_whole(path, out.take(), "--trace");
}

Result<> write_whole(const std::filesystem::path& path, const std::string& content, const std::string& option) {
  auto part = path;
  part += text(".part%ld", static_cast<long>(::getpid()));
  const auto problem = [&](int error) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    return fail(Code::failed_precondition, option + " " + path.string() + ": " + std::generic_category().message(error));
  };
  std::FILE* const file = std::fopen(part.c_str(), "wb");
  if (file == nullptr) return problem(errno);
  const bool written = std::fwrite(content.data(), 1, content.size(), file) == content.size();
  const int error = errno;
  if (std::fclose(file) != 0 || !written) return problem(written ? errno : error);
  if (std::rename(part.c_str(), path.c_str()) != 0) return problem(errno);
  return {};
}

}  // namespace fth::cli
