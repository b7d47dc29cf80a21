#pragma once
// Ctrl-C as a question that loops ask. Until watch_interrupts() the key ends the program the usual way.

namespace fth::cli {

enum class SecondPress { ends_the_program, is_the_same };
void watch_interrupts(SecondPress second);
bool interrupted();
void forget_interrupt();

}  // namespace fth::cli
