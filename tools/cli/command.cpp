// Parsing and help of a subcommand, and what an error means as an exit code.

#include "tools/cli/command.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <sstream>

#include "tools/cli/interrupt.h"
#include "tools/cli/output.h"

namespace fth::cli {

std::span<const Command* const> commands() {
  static constexpr std::array<const Command*, 13> kCommands{&kRun,  &kChat,   &kBench, &kProfile, &kPlan,       &kDevices,   &kInspect,
                                                            &kPack, &kDoctor, &kCache, &kLogits,  &kPerplexity, &kCompletion};
  return kCommands;
}

const Command* find_command(std::string_view name) {
  for (const Command* command : commands())
    if (command->name == name) return command;
  return nullptr;
}

int exit_code(const Error& error) {
  if (told_to_end()) return interrupt_exit_code();  // whatever else broke on the way: a terminal that is gone, say
  switch (error.code) {
    case Code::cancelled: return error.message.empty() ? 0 : interrupt_exit_code();
    case Code::invalid_argument: return 2;
    case Code::resource_exhausted: return 3;
    case Code::not_found:
    case Code::unimplemented:
    case Code::data_loss: return 4;
    case Code::unavailable: return 5;
    default: return 1;
  }
}

namespace {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t above = row[j + 1];
      row[j + 1] = std::min({above + 1, row[j] + 1, diagonal + (a[i] == b[j] ? 0u : 1u)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string nearest_option(const po::options_description& options, std::string_view given) {
  given.remove_prefix(std::min(given.find_first_not_of('-'), given.size()));
  std::string best;
  size_t distance = 3;  // further away is another word, not a slip
  for (const auto& option : options.options()) {
    const std::string& name = option->long_name();
    const bool begins = given.size() >= 3 && name.starts_with(given);
    const size_t d = begins ? 0 : edit_distance(given, name);
    if (d < distance) distance = d, best = name;
  }
  return best;
}

// -ub is the field's name for the prefill step, and two letters after one dash are two options to the parser. --start-on-cpu may stand without its word, and the parser would take the
// prompt for it.
std::vector<std::string> expand_short(std::span<const std::string> args) {
  std::vector<std::string> out;
  bool plain = false;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    plain = plain || arg == "--";
    const std::string next = i + 1 < args.size() ? args[i + 1] : "";
    if (!plain && arg == "--start-on-cpu" && next != "auto" && next != "on" && next != "off") {
      out.push_back(arg + "=on");
      continue;
    }
    if (!plain && (arg == "-ub" || arg.starts_with("-ub="))) {
      out.push_back("--ubatch" + arg.substr(3));
    } else {
      out.push_back(arg);
    }
  }
  return out;
}

std::string help_text(const Command& self, const po::options_description& options) {
  std::ostringstream out;
  out << self.help << "\nUsage: forethought " << self.name << " [options]";
  if (!self.positional.empty()) out << " [" << self.positional << "]";
  out << "\n\n";
  po::options_description wide(options.options().empty() ? "" : "Options", 110, 70);
  for (const auto& option : options.options()) wide.add(option);
  out << wide;
  return out.str();
}

}  // namespace

Result<bool> parse(const Command& self, po::options_description& options, CommonFlags& common, std::span<const std::string> args) {
  const std::string hint = "; `forethought " + std::string(self.name) + " --help` lists the options";
  po::options_description all;
  all.add(options);
  all.add_options()("positional", po::value(&common.positional));
  po::positional_options_description positional;
  if (!self.positional.empty()) positional.add("positional", -1);
  try {
    namespace style = po::command_line_style;
    po::variables_map values;
    po::store(po::command_line_parser(expand_short(args))
                  .options(all)
                  .positional(positional)
                  .style(style::unix_style & ~style::allow_guessing)
                  .run(),
              values);
    if (values.count("help") > 0) {
      FTH_RETURN_IF_ERROR(put(help_text(self, options)));
      return false;
    }
    po::notify(values);
    return true;
  } catch (const po::unknown_option& e) {
    const std::string near = nearest_option(options, e.get_option_name());
    return fail(Code::invalid_argument, std::string(e.what()) + (near.empty() ? hint : "; did you mean --" + near + "?"));
  } catch (const po::too_many_positional_options_error&) {
    return fail(Code::invalid_argument, std::string(self.name) + " takes no words without a dash" + hint);
  } catch (const po::error& e) {
    return fail(Code::invalid_argument, e.what() + hint);
  }
}

}  // namespace fth::cli
