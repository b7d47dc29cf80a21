// The program: picks the subcommand, prints its error, returns its exit code.

#include <csignal>
#include <exception>
#include <new>

#include "tools/cli/command.h"
#include "tools/cli/device_checks.h"
#include "tools/cli/gather.h"
#include "tools/cli/mapping_fault.h"
#include "tools/cli/output.h"
#include "tools/cli/segment_runs.h"

namespace fth::cli {
namespace {

std::string overview() {
  Table list("ll");
  for (const Command* command : commands()) list.row({std::string(command->name), std::string(command->summary)});
  return "Forethought runs sparse mixture-of-experts language models on the hardware that is there.\n\n"
         "  forethought run -p \"What is 38 + 47?\"                   the bundled tiny model answers\n"
         "  forethought plan -m model.gguf --ram 8GiB               what would run where, before a weight is read\n\n"
         "Usage: forethought COMMAND [options]\n\nCommands:\n" +
         list.plain("  ") +
         "\n`forethought COMMAND --help` has the options and examples of each; `forethought --version` the version.\n\n"
         "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 does not fit the memory budget, 4 the model file is bad,\n"
         "5 a device failed, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).\n\n"
         "Environment: FORETHOUGHT_MODEL (model used without -m), FORETHOUGHT_PLUGIN_PATH (plugin folders, separated by\n"
         "colons), NO_COLOR, XDG_CACHE_HOME (measured memory bandwidth, warm sets), XDG_STATE_HOME (chat history).\n";
}

Result<int> dispatch(std::vector<std::string> args) {
  if (args.empty()) {
    say(overview());
    return 2;
  }
  if (args[0] == "help" && args.size() > 1) args = {args[1], "--help"};
  if (args[0] == "help" || args[0] == "--help" || args[0] == "-h") {
    FTH_RETURN_IF_ERROR(put(overview()));
    return 0;
  }
  if (args[0] == "--version" || args[0] == "version") {
    FTH_RETURN_IF_ERROR(put("forethought " FTH_VERSION "\n"));
    return 0;
  }
  if (args[0] == "self-test") return self_test_main({args.begin() + 1, args.end()});  // only this program starts it
  if (args[0] == "measure-segments") return measure_segments_main({args.begin() + 1, args.end()});
  if (args[0] == "measure-gather") return measure_gather_main({args.begin() + 1, args.end()});
  const Command* command = find_command(args[0]);
  if (command == nullptr) {
    std::string names;
    for (const Command* known : commands()) names += (names.empty() ? "" : ", ") + std::string(known->name);
    return fail(Code::invalid_argument, "there is no command '" + printable(args[0], 60) + "'; the commands are " + names);
  }
  return command->main(*command, std::span<const std::string>(args).subspan(1));
}

}  // namespace
}  // namespace fth::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of write(), and the end
  fth::cli::explain_mapping_faults();
  try {
    const auto result = fth::cli::dispatch({argv + (argc > 0 ? 1 : 0), argv + argc});
    if (result) return *result;
    if (!result.error().message.empty()) fth::cli::say("forethought: " + result.error().message);
    return fth::cli::exit_code(result.error());
  } catch (const std::bad_alloc&) {
    fth::cli::say("forethought: out of memory; use a smaller --ctx or -ub, or a smaller model");
    return 3;
  } catch (const std::exception& e) {
    fth::cli::say(std::string("forethought: unexpected failure: ") + e.what());
    return 1;
  }
}
