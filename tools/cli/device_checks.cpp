// Kept in devices.json: {"plugins": [...]}. FORETHOUGHT_SELF_TEST_SECONDS says how long the test of a plugin may take.

#include "tools/cli/device_checks.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>

#include "tools/cli/cache_file.h"
#include "tools/cli/crash_notes.h"
#include "tools/cli/output.h"
#include "tools/cli/own_child.h"

namespace fth::cli {

namespace {

namespace json = boost::json;
constexpr std::string_view kKey = "plugins";
constexpr double kSeconds = 60;

double allowed_seconds() {
  const char* const given = std::getenv("FORETHOUGHT_SELF_TEST_SECONDS");
  const double seconds = given == nullptr ? 0 : std::atof(given);
  return seconds > 0 && seconds <= 3600 ? seconds : kSeconds;
}

// "183512 bytes of 1700000000.123456789": a file that was replaced has another one.
std::string identity(const std::filesystem::path& file) {
  struct stat s {};
  if (::stat(file.c_str(), &s) != 0) return {};
  return text("%lld bytes of %lld.%09ld", static_cast<long long>(s.st_size), static_cast<long long>(s.st_mtim.tv_sec), s.st_mtim.tv_nsec);
}

std::string string_of(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr && v->is_string() ? std::string(v->get_string()) : std::string();
}
double number_of(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  if (v == nullptr || !v->is_number()) return 0;
  const double d = v->to_number<double>();
  return d >= 0 && d < 1e18 ? d : 0;
}
bool flag_of(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr && v->is_bool() && v->get_bool();
}

constexpr std::pair<const char*, double DeviceTimes::*> kTimes[] = {{"launch_s", &DeviceTimes::launch_s},
                                                                    {"decode_s", &DeviceTimes::decode_s},
                                                                    {"batch_s", &DeviceTimes::batch_s},
                                                                    {"write_bytes_per_second", &DeviceTimes::write_bytes_per_second},
                                                                    {"read_bytes_per_second", &DeviceTimes::read_bytes_per_second}};

json::object times_json(const DeviceTimes& times) {
  json::object out;
  for (const auto& [name, member] : kTimes)
    if (times.*member > 0) out[name] = times.*member;
  return out;
}

SelfTest self_test_of(const json::object& o) {
  SelfTest out;
  out.n_cases = static_cast<int64_t>(number_of(o, "n_cases"));
  out.n_run = static_cast<int64_t>(number_of(o, "n_run"));
  out.failure = string_of(o, "failure");
  const auto times = [&](std::string_view key, DeviceTimes* to) {
    const json::value* v = o.if_contains(key);
    for (const auto& [name, member] : kTimes)
      if (v != nullptr && v->is_object()) to->*member = number_of(v->get_object(), name);
  };
  times("times", &out.times);
  times("cpu", &out.cpu);
  return out;
}

std::string description_of(const Device& device) {
  return {device.info().description, strnlen(device.info().description, sizeof device.info().description)};
}

}  // namespace

json::object self_test_json(const SelfTest& test) {
  return {{"n_cases", test.n_cases},
          {"n_run", test.n_run},
          {"failure", utf8_lossy(test.failure)},
          {"times", times_json(test.times)},
          {"cpu", times_json(test.cpu)}};
}

std::string self_test_text(const SelfTest& test) {
  if (!test.failure.empty()) return "failed: " + printable(test.failure);
  std::string out = text("%lld of %lld cases run, all right", static_cast<long long>(test.n_run), static_cast<long long>(test.n_cases));
  if (test.n_run == 0) out = text("none of %lld cases is supported", static_cast<long long>(test.n_cases));
  const DeviceTimes &d = test.times, &c = test.cpu;
  if (d.launch_s > 0) out += text("; launch %.1f us", 1e6 * d.launch_s);
  if (d.decode_s > 0) out += text("; product of 2048 x 2048 q4_0: 1 row %.3g ms (CPU %.3g)", 1e3 * d.decode_s, 1e3 * c.decode_s);
  if (d.batch_s > 0) out += text(", 32 rows %.3g ms (CPU %.3g)", 1e3 * d.batch_s, 1e3 * c.batch_s);
  if (d.write_bytes_per_second > 0) out += "; copies in at " + format_rate(d.write_bytes_per_second);
  if (d.read_bytes_per_second > 0) out += ", out at " + format_rate(d.read_bytes_per_second);
  return out;
}

DeviceChecks::DeviceChecks(Options options)
    : options_(std::move(options)), path_(cache_file("devices.json")), notes_(cache_file("crashed-plugins")) {
  program_ = identity("/proc/self/exe");
  for (const json::value& v : read_entries(path_, kKey)) {
    if (!v.is_object()) continue;
    const json::object& o = v.get_object();
    Entry entry;
    entry.identity = string_of(o, "identity");
    entry.failure = string_of(o, "failure");
    if (string_of(o, "program") != program_) continue;
    const json::value* rows = o.if_contains("devices");
    if (rows == nullptr || !rows->is_array()) continue;
    for (const json::value& d : rows->get_array()) {
      if (!d.is_object()) continue;
      const json::object& from = d.get_object();
      Row row{string_of(from, "name"), string_of(from, "description"), flag_of(from, "software"), flag_of(from, "tested"),
              self_test_of(from)};
      entry.devices[static_cast<uint32_t>(std::min(number_of(from, "index"), 1e6))] = std::move(row);
    }
    entries_[string_of(o, "file")] = std::move(entry);
  }
  take_notes();
  if (options_.refresh) entries_.clear();
}

// A plugin that passed its test and ended a run all the same: not loaded until somebody asks for another test, or its file is another one.
void DeviceChecks::take_notes() {
  for (const CrashNote& note : take_crash_notes(notes_)) {
    if (identity(note.file) != note.identity) continue;
    const std::string what =
        "it ended a run with " + note.signal + "; it is not loaded until `forethought devices --refresh` tests it again";
    entries_[note.file] = {note.identity, what, {}};
    crashed_.push_back(note.file + ": " + what);
  }
  if (!crashed_.empty()) keep();
}

void DeviceChecks::keep() const {
  json::array all;
  for (const auto& [file, entry] : entries_) {
    json::array devices;
    for (const auto& [index, row] : entry.devices) {
      json::object o = self_test_json(row.test);
      o["index"] = index;
      o["name"] = utf8_lossy(row.name);
      o["description"] = utf8_lossy(row.description);
      o["software"] = row.software;
      o["tested"] = row.tested;
      devices.push_back(std::move(o));
    }
    all.push_back({{"file", utf8_lossy(file)},
                   {"identity", entry.identity},
                   {"program", program_},
                   {"failure", utf8_lossy(entry.failure)},
                   {"devices", std::move(devices)}});
  }
  (void)write_entries(path_, kKey, all);  // then they are tested again
}

bool DeviceChecks::wants_test(const Row& row) const {
  return !row.software || options_.all || std::find(options_.named.begin(), options_.named.end(), row.name) != options_.named.end();
}

void DeviceChecks::ask(const std::filesystem::path& file, Entry* entry) {
  std::vector<std::string> args = {"self-test", file.string(), std::to_string(options_.threads), options_.cpu_options,
                                   options_.all ? "all" : "hardware"};
  args.insert(args.end(), options_.named.begin(), options_.named.end());
  const ChildAnswer answer = ask_child(args, {}, allowed_seconds());
  const std::map<uint32_t, Row> before = std::exchange(entry->devices, {});
  entry->failure.clear();
  json::error_code error;
  const json::value parsed = json::parse(answer.text, error);
  if (!answer.failure.empty() || error || !parsed.is_array()) {
    entry->failure = "its self-test " + (answer.failure.empty() ? "gave no answer" : answer.failure) +
                     "; a plugin that does this is not loaded; `forethought devices --refresh` tests it again";
  } else {
    for (const json::value& v : parsed.get_array()) {
      if (!v.is_object()) continue;
      const json::object& o = v.get_object();
      Row row{string_of(o, "name"), string_of(o, "description"), flag_of(o, "software"), flag_of(o, "tested"), self_test_of(o)};
      const auto index = static_cast<uint32_t>(std::min(number_of(o, "index"), 1e6));
      const auto old = before.find(index);
      if (!row.tested && old != before.end() && old->second.description == row.description) row = old->second;
      entry->devices[index] = std::move(row);
    }
  }
  if (!answer.timed_out || !machine_is_busy()) keep();  // what was only slow today gets another chance
}

std::string DeviceChecks::admit(const std::filesystem::path& file) {
  const std::string now = identity(file);
  if (now.empty()) return {};  // gone: loading it says so
  Entry& entry = entries_[file.string()];
  const bool stale = entry.identity != now;
  const bool wanting = std::any_of(entry.devices.begin(), entry.devices.end(),
                                   [&](const auto& item) { return !item.second.tested && wants_test(item.second); });
  if (stale) entry = {now, {}, {}};
  if (stale || wanting) ask(file, &entry);
  return entry.failure;
}

DeviceChecks::Entry* DeviceChecks::entry_of(const std::filesystem::path& file) {
  std::error_code error;
  const auto found = entries_.find(std::filesystem::canonical(file, error).string());
  return error || found == entries_.end() ? nullptr : &found->second;
}

DeviceCheck DeviceChecks::check(const BackendReport& backend, uint32_t index, const Device& device) {
  DeviceCheck out;
  Entry* const entry = entry_of(backend.path);
  if (entry == nullptr) return out;
  watch_for_crashes(device.api(), std::filesystem::canonical(backend.path).string(), entry->identity, notes_);
  // Another description is another device or another driver.
  const auto differs = [&] {
    return entry->devices.count(index) == 0 || entry->devices[index].description != utf8_lossy(description_of(device));
  };
  if (differs()) ask(std::filesystem::canonical(backend.path), entry);
  if (!entry->failure.empty() || differs()) {
    out.refusal = entry->failure.empty() ? "its self-test found no such device" : entry->failure;
    return out;
  }
  const Row& row = entry->devices[index];
  if (!row.tested) return out;
  out.write_bytes_per_second = row.test.times.write_bytes_per_second;
  out.read_bytes_per_second = row.test.times.read_bytes_per_second;
  out.wrong = !row.test.failure.empty();
  out.refusal = out.wrong ? "self-test failed: " + row.test.failure : too_slow(row.test.times, row.test.cpu);
  return out;
}

const SelfTest* DeviceChecks::tested(const BackendReport& backend, uint32_t index) const {
  std::error_code error;
  const auto entry = entries_.find(std::filesystem::canonical(backend.path, error).string());
  if (error || entry == entries_.end()) return nullptr;
  const auto row = entry->second.devices.find(index);
  return row == entry->second.devices.end() || !row->second.tested ? nullptr : &row->second.test;
}

int self_test_main(const std::vector<std::string>& args) {
  if (args.size() < 4) return 2;
  ::fcntl(kAnswerFd, F_SETFD, FD_CLOEXEC);
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);  // a crash is an answer, not a report
  RegistryOptions options;
  options.n_threads = static_cast<uint32_t>(std::clamp(std::atoi(args[1].c_str()), 0, 1024));
  options.builtin_only = false;
  options.plugin_paths = {args[0]};
  options.named_only = true;
  options.cpu_options = args[2];
  const auto registry = Registry::open(options);
  if (!registry) return 1;
  json::array out;
  const Device& reference = (*registry)->devices()[0].device;
  for (const DeviceEntry& entry : (*registry)->devices()) {
    if ((*registry)->backends()[entry.backend].path.empty()) continue;
    const bool software = (entry.device.info().flags & FTH_DEVICE_SOFTWARE) != 0;
    const bool named = std::find(args.begin() + 4, args.end(), entry.device.name()) != args.end();
    const bool tested = !software || named || args[3] == "all";
    json::object row = tested ? self_test_json(self_test(entry.device, reference)) : json::object();
    row["index"] = entry.index;
    row["name"] = utf8_lossy(entry.device.name());
    row["description"] = utf8_lossy(description_of(entry.device));
    row["software"] = software;
    row["tested"] = tested;
    out.push_back(std::move(row));
  }
  const std::string answer = json::serialize(out);
  // Not through exit(): destructors of a driver have no say in what was measured.
  ::_exit(::write(kAnswerFd, answer.data(), answer.size()) == static_cast<ssize_t>(answer.size()) ? 0 : 1);
}

}  // namespace fth::cli
