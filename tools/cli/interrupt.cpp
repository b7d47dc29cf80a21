// A signal handler can reach nothing but statics: these are the program's only ones, beside crash messages (mapping_fault.cpp).

#include "tools/cli/interrupt.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

namespace fth::cli {

namespace {

volatile std::sig_atomic_t pressed = 0;
volatile std::sig_atomic_t end_signal = 0;
int wake[2] = {-1, -1};  // written once, before the handlers are installed

void on_interrupt(int) { pressed = 1; }

void on_end(int signal) {
  const int before = errno;
  end_signal = signal;
  // Never waits: the pipe is non-blocking, and one byte in it is enough.
  if (wake[1] >= 0) static_cast<void>(!::write(wake[1], "", 1));
  errno = before;
}

void install(int signal, void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  // No SA_RESTART: a blocked read returns, and its caller sees the flag.
  action.sa_flags = flags;
  sigaction(signal, &action, nullptr);
}

}  // namespace

void watch_interrupts(SecondPress second) {
  if (wake[0] < 0 && ::pipe2(wake, O_CLOEXEC | O_NONBLOCK) != 0) wake[0] = wake[1] = -1;
  install(SIGINT, on_interrupt, second == SecondPress::ends_the_program ? static_cast<int>(SA_RESETHAND) : 0);
  install(SIGTERM, on_end, static_cast<int>(SA_RESETHAND));
  // Under nohup it stays ignored.
  struct sigaction hangup {};
  if (sigaction(SIGHUP, nullptr, &hangup) != 0 || hangup.sa_handler != SIG_IGN) install(SIGHUP, on_end, 0);
}

bool interrupted() { return pressed != 0 || end_signal != 0; }
bool told_to_end() { return end_signal != 0; }
void forget_interrupt() { pressed = 0; }
int interrupt_exit_code() { return 128 + (end_signal != 0 ? static_cast<int>(end_signal) : SIGINT); }
int told_to_end_fd() { return wake[0]; }

}  // namespace fth::cli
