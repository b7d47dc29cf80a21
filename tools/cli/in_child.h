#pragma once
// Measuring in a process of its own: what it touches never counts towards ours, and if it dies we live. Call before any thread exists.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>

namespace fth::cli {

// What measure() returns in a forked child: bytes that mean the same here. Empty, and why_not says so, when there is no child or it ends without an answer.
template <class Measure>
auto in_child(const Measure& measure, std::string& why_not) -> std::optional<std::invoke_result_t<Measure>> {
  using Answer = std::invoke_result_t<Measure>;
  static_assert(std::is_trivially_copyable_v<Answer>);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    why_not = std::string("pipe: ") + std::strerror(errno);
    return std::nullopt;
  }
  const pid_t child = ::fork();
  const std::string fork_error = child < 0 ? std::strerror(errno) : "";
  if (child == 0) {
    ssize_t written = 0;
    try {
      const Answer answer = measure();
      written = ::write(ends[1], &answer, sizeof answer);
    } catch (...) {  // no thread or no memory for it
    }
    ::_exit(written == static_cast<ssize_t>(sizeof(Answer)) ? 0 : 1);
  }
  ::close(ends[1]);
  Answer answer{};
  ssize_t got = -1;
  if (child > 0) {
    do got = ::read(ends[0], &answer, sizeof answer);
    while (got < 0 && errno == EINTR);
    while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  ::close(ends[0]);
  if (got == static_cast<ssize_t>(sizeof answer)) return answer;
  why_not = child < 0 ? "fork: " + fork_error : "the measuring process ended without an answer";
  return std::nullopt;
}

}  // namespace fth::cli
