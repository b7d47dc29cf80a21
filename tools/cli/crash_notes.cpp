// Everything that the handler needs is made by watch_for_crashes(): it calls open, write, close, sigaction and raise alone.

#include "tools/cli/crash_notes.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <fstream>
#include <string_view>

#include "core/device/plugin_calls.h"
#include "tools/cli/output.h"
#include "tools/cli/own_child.h"

namespace fth::cli {

namespace {

constexpr std::array kSignals = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
constexpr size_t kMost = 64;

struct Watched {
  const fth_backend* api = nullptr;
  std::string notes;                                // the file's path
  std::array<std::string, kSignals.size()> line;    // appended to it
  std::array<std::string, kSignals.size()> report;  // to standard error
};

// Globals, as all that a signal handler reaches. Entries below the count are whole and never change.
std::array<Watched, kMost>& watched() {
  static auto& all = *new std::array<Watched, kMost>;  // not destroyed: drivers' threads may crash while the program ends
  return all;
}
std::atomic<const Watched*> g_watched{nullptr};  // with the count: what the handler reads
std::atomic<size_t> g_count{0};
std::atomic<bool> g_dying{false};
std::array<struct sigaction, kSignals.size()> g_before;

const Watched* watched_as(const fth_backend* api) {
  const Watched* const all = g_watched.load(std::memory_order_acquire);
  const size_t n = g_count.load(std::memory_order_acquire);
  for (size_t i = 0; i < n && api != nullptr; ++i)
    if (all[i].api == api) return &all[i];
  return nullptr;
}

// A thread of ours says itself what it is in. One of a driver's, or of the pool at work for a backend, is at work for whoever is being called.
const Watched* culprit() {
  if (PluginCalls::calls()) return watched_as(PluginCalls::own());
  for (size_t lane = 0; lane < PluginCalls::kLanes; ++lane)
    if (const Watched* const found = watched_as(PluginCalls::at(lane).load(std::memory_order_relaxed))) return found;
  return nullptr;
}

void write_all(int fd, std::string_view bytes) {
  if (::write(fd, bytes.data(), bytes.size()) < 0) return;  // nobody is left to be told
}

void on_crash(int number, siginfo_t* about, void*) {
  size_t which = 0;
  while (which + 1 < kSignals.size() && kSignals[which] != number) ++which;
  if (!g_dying.exchange(true)) {
    if (const Watched* const by = culprit()) {
      // Opened here and not before: a file that is there without a crash would have to be removed by whoever ends otherwise.
      const int fd = ::open(by->notes.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
      if (fd >= 0) {
        write_all(fd, by->line[which]);
        ::close(fd);
      }
      write_all(STDERR_FILENO, by->report[which]);
    }
  }
  ::sigaction(number, &g_before[which], nullptr);
  // A fault comes again when its instruction does; what was sent has to be sent again.
  if (about->si_code <= 0) ::raise(number);
}

void install() {
  // A driver that overflows the stack leaves none for the handler.
  static std::array<char, 64 * 1024> stack;
  stack_t now{};
  if (::sigaltstack(nullptr, &now) == 0 && (now.ss_flags & SS_DISABLE) != 0) {
    stack_t own{};
    own.ss_sp = stack.data();
    own.ss_size = stack.size();
    ::sigaltstack(&own, nullptr);
  }
  struct sigaction action {};
  action.sa_sigaction = on_crash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &g_before[i]);
}

}  // namespace

void watch_for_crashes(const fth_backend& api, const std::string& file, const std::string& identity, const std::filesystem::path& notes) {
  const size_t n = g_count.load(std::memory_order_relaxed);
  if (notes.empty() || n == kMost || watched_as(&api) != nullptr || file.find('\n') != std::string::npos) return;
  std::error_code error;
  std::filesystem::create_directories(notes.parent_path(), error);
  Watched& w = watched()[n];
  w.api = &api;
  w.notes = notes.string();
  for (size_t i = 0; i < kSignals.size(); ++i) {
    const std::string name = signal_name(kSignals[i]);
    w.line[i] = name + '\t' + identity + '\t' + file + '\n';
    w.report[i] = "\nforethought: " + name + " in the plugin " + printable(file) +
                  "; the next run leaves it out, until `forethought devices --refresh` tests it again\n";
  }
  g_watched.store(watched().data(), std::memory_order_release);
  g_count.store(n + 1, std::memory_order_release);
  if (n == 0) install();
}

std::vector<CrashNote> take_crash_notes(const std::filesystem::path& notes) {
  constexpr size_t kMostNotes = 100;
  std::vector<CrashNote> out;
  std::error_code error;
  if (notes.empty() || !std::filesystem::exists(notes, error)) return out;
  auto mine = notes;  // what another process notes meanwhile is left for the next start
  mine += text(".%ld", static_cast<long>(::getpid()));
  std::filesystem::rename(notes, mine, error);
  if (error) return out;
  std::ifstream in(mine);
  for (std::string line; out.size() < kMostNotes && std::getline(in, line);) {
    const size_t first = line.find('\t'), second = line.find('\t', first + 1);
    if (first == std::string::npos || second == std::string::npos || first == 0 || second + 1 == line.size()) continue;
    out.push_back({line.substr(second + 1), line.substr(first + 1, second - first - 1), line.substr(0, first)});
  }
  std::filesystem::remove(mine, error);
  return out;
}

}  // namespace fth::cli
