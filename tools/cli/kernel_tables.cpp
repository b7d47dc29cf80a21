// Reads "kernels NAME; not used: NAME (reason), NAME".

#include "tools/cli/kernel_tables.h"

#include <algorithm>

namespace fth::cli {

std::vector<KernelSet> kernel_sets(std::string_view description) {
  constexpr std::string_view kUsed = "; kernels ", kOthers = "; not used: ";
  std::vector<KernelSet> out;
  const size_t begin = description.find(kUsed);
  if (begin == std::string_view::npos) return out;
  std::string_view rest = description.substr(begin + kUsed.size());
  const KernelSet used{std::string(rest.substr(0, rest.find(';'))), true, true, ""};
  const size_t others = rest.find(kOthers);
  rest = others == std::string_view::npos ? std::string_view() : rest.substr(others + kOthers.size());
  while (!rest.empty()) {
    const size_t end = std::min(rest.find_first_of(",("), rest.size());
    std::string_view name = rest.substr(0, end);
    while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
    rest.remove_prefix(end);
    std::string_view reason;
    if (!rest.empty() && rest.front() == '(') {
      size_t close = 0, depth = 0;
      for (; close < rest.size(); ++close) {
        if (rest[close] == '(') ++depth;
        if (rest[close] == ')' && --depth == 0) break;
      }
      reason = rest.substr(1, close - std::min<size_t>(close, 1));
      rest.remove_prefix(std::min(close + 1, rest.size()));
    }
    if (!name.empty()) out.push_back({std::string(name), false, reason.empty(), std::string(reason)});
    while (!rest.empty() && (rest.front() == ',' || rest.front() == ' ')) rest.remove_prefix(1);
  }
  // The list is in order of preference, and the one in use is the first that runs (unless another was forced).
  out.insert(std::find_if(out.begin(), out.end(), [](const KernelSet& k) { return k.runs; }), used);
  return out;
}

std::string_view whole_description(std::string_view description, std::span<const std::string> log) {
  for (const std::string& line : log) {
    const size_t at = line.find(": ");
    const std::string_view text = at == std::string::npos ? std::string_view() : std::string_view(line).substr(at + 2);
    if (!description.empty() && text.starts_with(description)) return text;
  }
  return description;
}

}  // namespace fth::cli
