#pragma once
// What is known of the devices behind plugins: tested and timed at their first use, in a process of its own, and kept by plugin file, device, driver and program. The registry asks
// for it while it opens (core/device/registry.h); a plugin whose test ended that process, or that ended a run, is never loaded into this one.

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/device/registry.h"
#include "core/device/self_test.h"

namespace fth::cli {

class DeviceChecks {
 public:
  struct Options {
    bool all = false;      // software devices, too: else only those that are named
    bool refresh = false;  // as if nothing were kept
    std::vector<std::string> named;
    uint32_t threads = 0;
    std::string cpu_options;  // of the CPU that devices are compared with
  };
  explicit DeviceChecks(Options options);

  std::string admit(const std::filesystem::path& file);
  DeviceCheck check(const BackendReport& backend, uint32_t index, const Device& device);
  // The kept figures of a device, for `devices`; null: not tested.
  const SelfTest* tested(const BackendReport& backend, uint32_t index) const;
  // What plugins were left out for since the last start, one sentence each: they ended a run (crash_notes.h).
  const std::vector<std::string>& crashed() const { return crashed_; }
  const std::filesystem::path& path() const { return path_; }  // of what is kept; empty: nowhere

 private:
  struct Row {  // of a device
    std::string name, description;
    bool software = false, tested = false;
    SelfTest test;
  };
  struct Entry {  // of a plugin file
    std::string identity, failure;
    std::map<uint32_t, Row> devices;
  };
  Entry* entry_of(const std::filesystem::path& file);
  bool wants_test(const Row& row) const;
  void ask(const std::filesystem::path& file, Entry* entry);
  void keep() const;
  void take_notes();

  Options options_;
  std::filesystem::path path_, notes_;
  std::vector<std::string> crashed_;
  std::string program_;                   // this program's own file
  std::map<std::string, Entry> entries_;  // by path
};

// {"n_cases": ..., "times": {...}}: of a row of the kept file and of `devices --json`.
boost::json::object self_test_json(const SelfTest& test);
// "8 of 8 cases right; launch 12 us; ...", for people.
std::string self_test_text(const SelfTest& test);

// The other side: `forethought self-test`, which only ask_child() starts.
int self_test_main(const std::vector<std::string>& args);

}  // namespace fth::cli
