#pragma once
// Lines from a person (edited with libedit, with a history file) or from a pipe (as they come).

#include <memory>
#include <string>

namespace fth::cli {

class LineEditor {
 public:
  enum class Event { line, cancelled, end };  // a line; Ctrl-C; Ctrl-D or the end of the input

  // `prompt` is shown on standard error, and only to a person. The history file is made when it is missing, for its owner alone.
  explicit LineEditor(std::string prompt);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  bool interactive() const;       // both standard input and standard error are terminals
  Event read(std::string& line);  // without the newline

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fth::cli
