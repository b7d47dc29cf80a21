#pragma once
// What happens when a mapped model file is cut, or its storage fails, while the program reads it: the system has no page to give and raises SIGBUS.

namespace fth::cli {

// From here on SIGBUS on a page of a file that is mapped shared, as model files are, ends the program with exit code 4 and one line on standard error
// that names the file, its length now and when it was mapped, and the next step. Any other SIGBUS ends it as before.
// The weights are gone in the middle of a computation on any thread, a driver's included: there is nothing to return an error from.
void explain_mapping_faults();

}  // namespace fth::cli
