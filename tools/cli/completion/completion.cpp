// forethought completion: a completion script for a shell, written from the option tables, so that it never lags behind them.

#include <algorithm>

#include "tools/cli/command.h"
#include "tools/cli/output.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Prints a completion script for bash, zsh or fish.\n\n"
    "  source <(forethought completion bash)\n"
    "  forethought completion fish > ~/.config/fish/completions/forethought.fish\n";

struct CompletionFlags : CommonFlags {};
void describe(CompletionFlags& f, po::options_description& options) { add_common(f, options); }

struct Option {
  std::string name, letter, argument, about;  // letter and argument may be empty
};

std::vector<Option> options_of(const Command& command) {
  std::vector<Option> out;
  const po::options_description options = command.options();
  for (const auto& o : options.options()) {
    const std::string shown =
        o->canonical_display_name(po::command_line_style::allow_dash_for_short);  // "-m", or "--json" without a letter
    Option option{o->long_name(), shown.size() == 2 ? shown.substr(1) : "", o->semantic()->max_tokens() > 0 ? o->semantic()->name() : "",
                  o->description()};
    if (!option.argument.empty() && option.argument.front() == '=') option.argument.erase(0, 1);
    out.push_back(std::move(option));
  }
  return out;
}

bool names_a_file(const Option& option) { return option.argument == "FILE" || option.argument == "PATH"; }
bool takes_a_model(const Command& command) { return command.positional.starts_with("MODEL"); }

// The first clause of the text, without what would end a quoted string in a shell.
std::string brief(const std::string& about) {
  std::string out = about.substr(0, about.find_first_of(";(:"));
  std::erase_if(out, [](char c) { return c == '\'' || c == '`' || c == '[' || c == ']' || c == '"' || c == '$' || c == '\\'; });
  while (!out.empty() && (out.back() == ' ' || out.back() == ',')) out.pop_back();
  return out;
}

std::string bash_script() {
  std::string out =
      "# bash completion for forethought; written by `forethought completion bash`\n"
      "_forethought() {\n"
      "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}\n"
      "  COMPREPLY=()\n"
      "  if ((COMP_CWORD == 1)); then\n"
      "    COMPREPLY=($(compgen -W '";
  for (const Command* c : commands()) out += std::string(c->name) + ' ';
  out += "help --help --version' -- \"$cur\"))\n    return\n  fi\n  local options= files= values= model=\n  case $command in\n";
  for (const Command* c : commands()) {
    std::string all, files, values;
    for (const Option& o : options_of(*c)) {
      const std::string names = "--" + o.name + (o.letter.empty() ? "" : " -" + o.letter) + (o.name == "ubatch" ? " -ub" : "");
      all += (all.empty() ? "" : " ") + names;
      if (!o.argument.empty()) (names_a_file(o) ? files : values) += ' ' + names + ' ';
    }
    out += "    " + std::string(c->name) + ") options='" + all + "' files='" + files + "' values='" + values +
           "' model=" + (takes_a_model(*c) ? "1" : "") + " ;;\n";
  }
  out += "    help) COMPREPLY=($(compgen -W '";
  for (const Command* c : commands()) out += std::string(c->name) + ' ';
  out +=
      "' -- \"$cur\")); return ;;\n"
      "    *) return ;;\n"
      "  esac\n"
      "  if [[ $command == completion && $cur != -* ]]; then COMPREPLY=($(compgen -W 'bash zsh fish' -- \"$cur\")); return; fi\n"
      "  if [[ $files == *\" $prev \"* ]]; then compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- \"$cur\")); return; fi\n"
      "  if [[ $prev == --experts ]]; then COMPREPLY=($(compgen -W 'auto resident streamed' -- \"$cur\")); return; fi\n"
      "  if [[ $prev == --kv-type ]]; then COMPREPLY=($(compgen -W 'f16 q8_0 f32' -- \"$cur\")); return; fi\n"
      "  if [[ $prev == --kv ]]; then COMPREPLY=($(compgen -W 'auto memory storage' -- \"$cur\")); return; fi\n"
      "  if [[ $prev == --down ]]; then COMPREPLY=($(compgen -W 'auto row_major neuron_major' -- \"$cur\")); return; fi\n"
      "  if [[ $values == *\" $prev \"* ]]; then return; fi\n"
      "  if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W \"$options\" -- \"$cur\")); return; fi\n"
      "  if [[ $model ]]; then compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- \"$cur\")); fi\n"
      "}\n"
      "complete -F _forethought forethought\n";
  return out;
}

std::string zsh_script() {
  std::string out =
      "#compdef forethought\n"
      "# zsh completion for forethought; written by `forethought completion zsh`\n"
      "_forethought() {\n"
      "  local -a commands\n"
      "  commands=(\n";
  for (const Command* c : commands()) out += "    '" + std::string(c->name) + ":" + brief(std::string(c->summary)) + "'\n";
  out +=
      "  )\n"
      "  if ((CURRENT == 2)); then\n"
      "    _describe command commands\n"
      "    return\n"
      "  fi\n"
      "  local command=${words[2]}\n"
      "  words=(${words[2,-1]})\n"
      "  ((CURRENT--))\n"
      "  case $command in\n";
  for (const Command* c : commands()) {
    out += "    " + std::string(c->name) + ") _arguments";
    for (const Option& o : options_of(*c)) {
      const std::string tail =
          "[" + brief(o.about) + "]" + (o.argument.empty() ? "" : ":" + o.argument + ":" + (names_a_file(o) ? "_files" : ""));
      // A repeatable option may come again.
      const std::string again = o.about.find("may be repeated") == std::string::npos ? "" : "*";
      out += " \\\n      '" + again + "--" + o.name + tail + "'";
      if (!o.letter.empty()) out += " '" + again + "-" + o.letter + tail + "'";
      if (o.name == "ubatch") out += " '-ub" + tail + "'";
    }
    if (takes_a_model(*c)) out += " \\\n      '*:model:_files'";
    if (c == &kCompletion) out += " \\\n      '*:shell:(bash zsh fish)'";
    out += " ;;\n";
  }
  return out + "  esac\n}\n_forethought \"$@\"\n";
}

std::string fish_script() {
  std::string out =
      "# fish completion for forethought; written by `forethought completion fish`\n"
      "complete -c forethought -f\n";
  for (const Command* c : commands()) {
    out += "complete -c forethought -n __fish_use_subcommand -a " + std::string(c->name) + " -d '" + brief(std::string(c->summary)) + "'\n";
    const std::string when = "complete -c forethought -n '__fish_seen_subcommand_from " + std::string(c->name) + "'";
    for (const Option& o : options_of(*c))
      out += when + " -l " + o.name + (o.letter.empty() ? "" : " -s " + o.letter) + (o.name == "ubatch" ? " -o ub" : "") +
             (o.argument.empty() ? ""
              : names_a_file(o)  ? " -r -F"
                                 : " -x") +
             " -d '" + brief(o.about) + "'\n";
    if (takes_a_model(*c)) out += when + " -F\n";
    if (c == &kCompletion) out += when + " -a 'bash zsh fish'\n";
  }
  return out;
}

Result<int> run(CompletionFlags& f) {
  const std::string shell = f.positional.size() == 1 ? f.positional[0] : "";
  if (shell != "bash" && shell != "zsh" && shell != "fish") return fail(Code::invalid_argument, "name one shell: bash, zsh or fish");
  FTH_RETURN_IF_ERROR(put(shell == "bash" ? bash_script() : shell == "zsh" ? zsh_script() : fish_script()));
  return 0;
}

}  // namespace

const Command kCompletion =
    make_command<CompletionFlags, describe, run>("completion", "print a completion script for bash, zsh or fish", kHelp, "SHELL");

}  // namespace fth::cli
