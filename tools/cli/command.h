#pragma once
// A subcommand as data: its help, its options, its function. The table of all of them feeds the dispatcher, the help and the shell completion.

#include <boost/program_options.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"
#include "tools/cli/flags.h"

namespace fth::cli {

namespace po = boost::program_options;

struct Command {
  std::string_view name;
  std::string_view summary;              // one line, for the list
  std::string_view help;                 // what it is for, and two examples
  std::string_view positional;           // what the words without a dash are: "PROMPT", "MODEL"; empty when there are none
  po::options_description (*options)();  // for help and completion: names and texts only
  Result<int> (*main)(const Command& self, std::span<const std::string> args);  // the exit code, or an error that exit_code() maps
};

std::span<const Command* const> commands();
const Command* find_command(std::string_view name);

// Reads args into what `options` points at. False: --help was asked for and printed.
// invalid_argument for what is not understood, with the nearest option that exists.
Result<bool> parse(const Command& self, po::options_description& options, CommonFlags& common, std::span<const std::string> args);

// 0 done, 1 failed, 2 usage, 3 does not fit, 4 bad model file, 5 device failed, 130 interrupted (143 by SIGTERM, 129 by SIGHUP); 0 for a closed pipe.
int exit_code(const Error& error);

// Command from a struct of flags (derived from CommonFlags), a function that registers its options, and the function that does the work.
template <class Flags, void (*Describe)(Flags&, po::options_description&), Result<int> (*Main)(Flags&)>
constexpr Command make_command(std::string_view name, std::string_view summary, std::string_view help, std::string_view positional = "") {
  return {name,
          summary,
          help,
          positional,
          [] {
            Flags flags;  // gone on return: the caller reads only names and texts
            po::options_description options("Options");
            Describe(flags, options);
            return options;
          },
          [](const Command& self, std::span<const std::string> args) -> Result<int> {
            Flags flags;
            po::options_description options("Options");
            Describe(flags, options);
            FTH_ASSIGN_OR_RETURN(const bool go, parse(self, options, flags, args));
            if (!go) return 0;
            return Main(flags);
          }};
}

extern const Command kRun, kChat, kBench, kProfile, kPlan, kDevices, kInspect, kPack, kDoctor, kCache, kLogits, kPerplexity, kCompletion;

}  // namespace fth::cli
