// posix_spawn of /proc/self/exe: unlike fork alone it may be called while other threads run.

#include "tools/cli/own_child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "tools/cli/output.h"

namespace fth::cli {

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kLongestAnswer = size_t{4} << 20;

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { close(); }
  int get() const { return fd_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return "ended with " + signal_name(WTERMSIG(status));
  return WEXITSTATUS(status) == 0 ? std::string() : text("ended with exit code %d", WEXITSTATUS(status));
}

}  // namespace

std::string signal_name(int number) {
  const char* const known = ::sigabbrev_np(number);
  const char* const about = ::sigdescr_np(number);
  if (known == nullptr) return text("signal %d", number);
  return "SIG" + std::string(known) + (about == nullptr ? "" : " (" + std::string(about) + ")");
}

ChildAnswer ask_child(const std::vector<std::string>& args, std::string_view input, double seconds) {
  ChildAnswer out;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    out.failure = std::string("could not be started: pipe: ") + std::strerror(errno);
    return out;
  }
  const Fd from(ends[0]);
  Fd to(ends[1]);
  const Fd given(::memfd_create("forethought", MFD_CLOEXEC));  // all of it at once: neither side waits for the other
  if (given.get() < 0 || ::write(given.get(), input.data(), input.size()) != static_cast<ssize_t>(input.size()) ||
      ::lseek(given.get(), 0, SEEK_SET) != 0) {
    out.failure = std::string("could not be started: ") + std::strerror(errno);
    return out;
  }
  std::string program = "/proc/self/exe";
  std::vector<std::string> words = args;
  words.insert(words.begin(), "forethought");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_adddup2(&files, given.get(), 0);
  ::posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
  ::posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
  ::posix_spawn_file_actions_adddup2(&files, to.get(), kAnswerFd);
  pid_t child = -1;
  const int spawned = ::posix_spawn(&child, program.c_str(), &files, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&files);
  if (spawned != 0) {
    out.failure = std::string("could not be started: ") + std::strerror(spawned);
    return out;
  }
  to.close();
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    pollfd one{from.get(), POLLIN, 0};
    const int ready = left <= 0 ? 0 : ::poll(&one, 1, static_cast<int>(std::min<long long>(left, 60'000)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0 && Clock::now() < end) continue;
    if (ready <= 0) {
      out.timed_out = true;
      ::kill(child, SIGKILL);
      break;
    }
    char bytes[4096];
    const ssize_t n = ::read(from.get(), bytes, sizeof bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0 || out.text.size() > kLongestAnswer) break;
    out.text.append(bytes, static_cast<size_t>(n));
  }
  // What closed its end of the pipe may still hang in a destructor of the driver's.
  int status = 0;
  for (bool killed = out.timed_out;;) {
    const pid_t ended = ::waitpid(child, &status, killed ? 0 : WNOHANG);
    if (ended == child) break;
    if (ended < 0 && errno != EINTR) break;
    if (ended == 0 && Clock::now() >= end) {
      out.timed_out = killed = true;
      ::kill(child, SIGKILL);
    } else if (ended == 0) {
      ::usleep(1000);
    }
  }
  out.failure = out.timed_out ? text("did not end within %.0f s", seconds) : how_it_ended(status);
  return out;
}

}  // namespace fth::cli
