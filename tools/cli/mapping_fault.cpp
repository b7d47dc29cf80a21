// Everything here runs inside a signal handler: system calls, fixed buffers and nothing else. The file is found in /proc/self/maps at the time of the fault, so
// that no list of mappings has to be kept, and a file that is cut while its header is parsed is found as well.

#include "tools/cli/mapping_fault.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace fth::cli {

namespace {

constexpr int kBadModel = 4;

class Line {
 public:
  void add(std::string_view words) {
    const size_t n = words.size() < sizeof bytes_ - used_ ? words.size() : sizeof bytes_ - used_;
    std::memcpy(bytes_ + used_, words.data(), n);
    used_ += n;
  }
  // A name from outside: nothing in it may command a terminal.
  void add_printable(std::string_view words) {
    for (const char c : words) add(static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? std::string_view("?") : std::string_view(&c, 1));
  }
  void add(uint64_t n) {
    char digits[20];
    size_t at = sizeof digits;
    do {
      digits[--at] = static_cast<char>('0' + n % 10);
      n /= 10;
    } while (n != 0);
    add(std::string_view(digits + at, sizeof digits - at));
  }
  void write_out() const { static_cast<void>(!::write(STDERR_FILENO, bytes_, used_)); }

 private:
  char bytes_[8192];  // a path has at most 4096
  size_t used_ = 0;
};

// Characters of a file, one after the other; 0 at its end.
class Characters {
 public:
  explicit Characters(const char* path) : fd_(::open(path, O_RDONLY | O_CLOEXEC)) {}
  ~Characters() {
    if (fd_ >= 0) ::close(fd_);
  }
  char next() {
    if (at_ == used_) {
      const ssize_t n = fd_ < 0 ? 0 : ::read(fd_, block_, sizeof block_);
      if (n <= 0) return 0;
      used_ = static_cast<size_t>(n);
      at_ = 0;
    }
    return block_[at_++];
  }

 private:
  int fd_;
  char block_[4096];
  size_t at_ = 0, used_ = 0;
};

// "7f0e1000-7f0e5000 r--s 00000000 fe:01 1234       /path of/the file", one line of /proc/self/maps.
struct Region {
  uint64_t begin = 0, end = 0, offset = 0, inode = 0;
  bool read_only_shared = false;  // as model files are mapped; drivers map their devices to write
  char path[4096];                // ends with 0
};

uint64_t number(Characters& from, unsigned base, char& after) {
  uint64_t n = 0;
  while (true) {
    after = from.next();
    const bool decimal = after >= '0' && after <= '9';
    const bool letter = base == 16 && after >= 'a' && after <= 'f';
    if (!decimal && !letter) return n;
    n = n * base + static_cast<uint64_t>(decimal ? after - '0' : after - 'a' + 10);
  }
}

bool next_region(Characters& from, Region& to) {
  char after = 0;
  to.begin = number(from, 16, after);
  if (after != '-') return false;
  to.end = number(from, 16, after);
  char mode[5] = {};
  for (char& c : mode) c = from.next();
  to.read_only_shared = std::string_view(mode, 4) == "r--s";
  to.offset = number(from, 16, after);
  number(from, 16, after);  // device, major and minor
  number(from, 16, after);
  to.inode = number(from, 10, after);
  while (after == ' ') after = from.next();
  size_t n = 0;
  for (; after != '\n' && after != 0; after = from.next())
    if (n + 1 < sizeof to.path) to.path[n++] = after;
  to.path[n] = 0;
  return true;
}

// Statics: the thread may be a driver's, with little stack.
Region found, looked_at;

bool find_region(uint64_t address) {
  Characters maps("/proc/self/maps");
  while (next_region(maps, looked_at))
    if (address >= looked_at.begin && address < looked_at.end) {
      std::memcpy(&found, &looked_at, sizeof found);
      return found.read_only_shared && found.inode != 0 && found.path[0] == '/';
    }
  return false;
}

// How far the file is mapped, in whole pages: madvise() may have split the mapping, and each piece is a line.
uint64_t mapped_bytes() {
  uint64_t most = 0;
  Characters maps("/proc/self/maps");
  while (next_region(maps, looked_at)) {
    const uint64_t end = looked_at.offset + (looked_at.end - looked_at.begin);
    if (looked_at.inode == found.inode && std::strcmp(looked_at.path, found.path) == 0 && end > most) most = end;
  }
  return most;
}

std::atomic_flag taken = ATOMIC_FLAG_INIT;  // by the first thread that came; lock-free by definition

void on_bus_error(int signal, siginfo_t* about, void*) {
  while (taken.test_and_set(std::memory_order_acquire)) ::pause();  // the first one ends the program
  const auto address = reinterpret_cast<uint64_t>(about->si_addr);
  if (about->si_code <= 0 || !find_region(address)) {  // sent by somebody, or no file of ours: the default action is next
    ::signal(signal, SIG_DFL);
    ::raise(signal);
    taken.clear(std::memory_order_release);
    return;
  }
  const uint64_t needed = found.offset + (address - found.begin), mapped = mapped_bytes();
  struct stat now {};
  const bool there = ::stat(found.path, &now) == 0 && static_cast<uint64_t>(now.st_ino) == found.inode;
  const uint64_t size = there ? static_cast<uint64_t>(now.st_size) : 0;
  Line line;
  line.add("\nforethought: ");
  line.add_printable(found.path);
  if (there && size > needed) {
    line.add(": byte ");
    line.add(needed);
    line.add(" cannot be read from storage; `dmesg` has the disk's error, and a fresh copy of the file may help\n");
  } else {
    line.add(": was cut while it was in use: ");
    if (there) {
      line.add(size);
      line.add(" bytes now, ");
    }
    line.add(mapped);
    line.add(
        " when it was mapped (in whole pages); put the whole file back and run again. Replace a model by renaming a new file over it\n");
  }
  line.write_out();
  ::_exit(kBadModel);
}

}  // namespace

void explain_mapping_faults() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace fth::cli
