// libedit behind an interface without it. Ctrl-C is a key here, not a signal. Reading is our own: libedit's and the library's would wait for a key
// after SIGTERM, and what is kept at the end of a conversation would be lost to the SIGKILL that follows.

#include "tools/cli/line_editor.h"

#include <histedit.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cwchar>
#include <filesystem>
#include <utility>

#include "tools/cli/interrupt.h"
#include "tools/cli/output.h"

namespace fth::cli {

struct LineEditor::Impl {
  std::string prompt;
  EditLine* edit = nullptr;  // null: not a terminal
  History* history = nullptr;
  std::filesystem::path history_file;
  bool cancelled = false;
  std::string waiting;  // not a terminal: read, and not yet a line

  static Impl& of(EditLine* e) {
    void* self = nullptr;
    el_get(e, EL_CLIENTDATA, &self);
    return *static_cast<Impl*>(self);
  }
  static char* prompt_of(EditLine* e) { return of(e).prompt.data(); }
  static unsigned char cancel(EditLine* e, int) {
    of(e).cancelled = true;
    return CC_NEWLINE;
  }
  static int key(EditLine*, wchar_t* to);
  bool read_piped(std::string& line);
};

namespace {

std::filesystem::path history_path() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') return std::filesystem::path(state) / "forethought/history";
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home == '/') return std::filesystem::path(home) / ".local/state/forethought/history";
  return {};
}

// As read(2) of standard input, but 0, the end, as soon as `stop` says so.
ssize_t read_input(char* to, size_t n, bool (*stop)()) {
  while (!stop()) {
    pollfd from[2] = {{STDIN_FILENO, POLLIN, 0}, {told_to_end_fd(), POLLIN, 0}};  // a negative descriptor is left out
    const int ready = ::poll(from, 2, -1);
    if (ready < 0 && errno != EINTR) return -1;
    if (ready <= 0 || stop()) continue;
    const ssize_t got = ::read(STDIN_FILENO, to, n);
    if (got >= 0 || errno != EINTR) return got;
  }
  return 0;
}

}  // namespace

// A character in the locale's encoding; what is none is dropped.
int LineEditor::Impl::key(EditLine*, wchar_t* to) {
  std::mbstate_t state{};
  while (true) {
    char byte = 0;
    const ssize_t got = read_input(&byte, 1, told_to_end);
    if (got <= 0) return static_cast<int>(got);
    const size_t used = std::mbrtowc(to, &byte, 1, &state);
    if (used <= 1) return 1;
    if (used == static_cast<size_t>(-1)) state = {};
  }
}

// The last line may lack its newline.
bool LineEditor::Impl::read_piped(std::string& line) {
  size_t end = waiting.find('\n');
  while (end == std::string::npos) {
    char block[4096];
    const size_t before = waiting.size();
    const ssize_t got = read_input(block, sizeof block, interrupted);
    if (got <= 0) {
      if (got < 0 || interrupted() || waiting.empty()) return false;
      line = std::exchange(waiting, {});
      return true;
    }
    waiting.append(block, static_cast<size_t>(got));
    end = waiting.find('\n', before);
  }
  line = waiting.substr(0, end);
  waiting.erase(0, end + 1);
  return true;
}

LineEditor::LineEditor(std::string prompt) : impl_(std::make_unique<Impl>()) {
  impl_->prompt = std::move(prompt);
  if (!is_terminal(STDIN_FILENO) || !is_terminal(STDERR_FILENO)) return;
  impl_->edit = el_init("forethought", stdin, stderr, stderr);
  if (impl_->edit == nullptr) return;
  impl_->history = history_init();
  el_set(impl_->edit, EL_CLIENTDATA, impl_.get());
  el_set(impl_->edit, EL_GETCFN, &Impl::key);
  el_set(impl_->edit, EL_PROMPT, &Impl::prompt_of);
  el_set(impl_->edit, EL_EDITOR, "emacs");
  el_set(impl_->edit, EL_ADDFN, "cancel-line", "drop the line", &Impl::cancel);
  el_set(impl_->edit, EL_BIND, "^C", "cancel-line", nullptr);
  el_set(impl_->edit, EL_SETTY, "-d", "-isig", nullptr);
  if (impl_->history == nullptr) return;
  HistEvent event{};
  ::history(impl_->history, &event, H_SETSIZE, 1000);
  ::history(impl_->history, &event, H_SETUNIQUE, 1);
  el_set(impl_->edit, EL_HIST, ::history, impl_->history);
  impl_->history_file = history_path();
  if (!impl_->history_file.empty()) ::history(impl_->history, &event, H_LOAD, impl_->history_file.c_str());
}

LineEditor::~LineEditor() {
  if (impl_->history != nullptr) {
    if (!impl_->history_file.empty()) {
      std::error_code ignored;
      std::filesystem::create_directories(impl_->history_file.parent_path(), ignored);
      const mode_t mask = ::umask(077);  // what people type is theirs
      HistEvent event{};
      ::history(impl_->history, &event, H_SAVE, impl_->history_file.c_str());
      ::umask(mask);
    }
    history_end(impl_->history);
  }
  if (impl_->edit != nullptr) el_end(impl_->edit);
}

bool LineEditor::interactive() const { return impl_->edit != nullptr; }

LineEditor::Event LineEditor::read(std::string& line) {
  if (impl_->edit == nullptr) return impl_->read_piped(line) ? Event::line : Event::end;
  impl_->cancelled = false;
  int length = 0;
  const char* typed = el_gets(impl_->edit, &length);
  if (impl_->cancelled) {
    std::fputs("\n", stderr);
    return Event::cancelled;
  }
  if (typed == nullptr || length <= 0) return Event::end;
  line.assign(typed, static_cast<size_t>(length));
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  HistEvent event{};
  if (impl_->history != nullptr && !line.empty()) ::history(impl_->history, &event, H_ENTER, line.c_str());
  return Event::line;
}

}  // namespace fth::cli
