#pragma once
// Ctrl-C, SIGTERM and SIGHUP as a question that loops ask. Until watch_interrupts() each ends the program the usual way.

namespace fth::cli {

// What Ctrl-C does once it has been pressed. A second SIGTERM ends the program at once; a second SIGHUP does not, since a terminal that closes sends several.
enum class SecondPress { ends_the_program, is_the_same };
void watch_interrupts(SecondPress second);

bool interrupted();         // by any of them
bool told_to_end();         // SIGTERM or SIGHUP: for good
void forget_interrupt();    // Ctrl-C alone
int interrupt_exit_code();  // 128 and the signal's number: 143, 129; 130 otherwise

// Readable from told_to_end() on, for who waits in poll(). -1: nothing is watched, or the pipe could not be made.
int told_to_end_fd();

}  // namespace fth::cli
