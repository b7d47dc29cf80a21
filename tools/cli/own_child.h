#pragma once
// Asking another process of this program, where the answer may cost the process: a driver that crashes or hangs ends there. From any thread.

#include <string>
#include <string_view>
#include <vector>

namespace fth::cli {

struct ChildAnswer {
  std::string text;
  std::string failure;     // why there is no whole answer: "ended with SIGSEGV (Segmentation fault)"; empty: there is one
  bool timed_out = false;  // it was ended after `seconds`
};

std::string signal_name(int number);  // "SIGSEGV (Segmentation fault)"

inline constexpr int kAnswerFd = 3;  // where the child writes its answer; its standard output and error go nowhere

// Runs `forethought ARGS` with `input` on its standard input and waits for its answer and its end. A child that has not ended after `seconds` is killed.
ChildAnswer ask_child(const std::vector<std::string>& args, std::string_view input, double seconds);

}  // namespace fth::cli
