// A signal handler can reach nothing but a static: this flag is the program's only one.

#include "tools/cli/interrupt.h"

#include <csignal>

namespace fth::cli {

namespace {
volatile std::sig_atomic_t flag = 0;
void on_interrupt(int) { flag = 1; }
}  // namespace

void watch_interrupts(SecondPress second) {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  // No SA_RESTART: a blocked read returns, and its caller sees the flag.
  action.sa_flags = second == SecondPress::ends_the_program ? static_cast<int>(SA_RESETHAND) : 0;
  sigaction(SIGINT, &action, nullptr);
}

bool interrupted() { return flag != 0; }
void forget_interrupt() { flag = 0; }

}  // namespace fth::cli
