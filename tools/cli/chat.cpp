// forethought chat: a conversation. The whole of it is rendered anew each turn; the session keeps what it has already read.

#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "tools/cli/command.h"
#include "tools/cli/generate.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/line_editor.h"
#include "tools/cli/output.h"
#include "tools/cli/report.h"
#include "tools/cli/warm.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Talks: a line is a message, the answer comes as it is generated. Ctrl-C stops the answer, Ctrl-D ends.\n"
    "Each turn reads only what is new in the conversation. With a pipe as input, each line of it is a message.\n"
    "/help lists the commands: /clear /stats /system TEXT /save FILE /quit.\n\n"
    "  forethought chat\n"
    "  forethought chat -m model.gguf --temp 0.7 --system \"Answer in one sentence.\"\n";

constexpr const char* kCommands =
    "  /clear         forget the conversation\n"
    "  /stats         what ran where, and how fast, since the start\n"
    "  /system TEXT   use this system message from here on; without TEXT: none\n"
    "  /save FILE     write the conversation as JSON\n"
    "  /quit          end, as Ctrl-D does";

struct ChatFlags : CommonFlags {
  EngineFlags engine;
  WarmFlags warm;
  SamplingFlags sampling;
  int64_t n_predict = -1;
  std::vector<std::string> stops;
  std::string system;
};

void describe(ChatFlags& f, po::options_description& options) {
  options.add_options()                                                                                                             //
      ("system", po::value(&f.system)->value_name("TEXT"), "the system message")                                                    //
      ("n-predict,n", po::value(&f.n_predict)->value_name("N"), "tokens in an answer at most (default: -1, until it is complete)")  //
      ("stop", po::value(&f.stops)->value_name("TEXT"), "stop an answer before this text (may be repeated)");
  add_sampling(f.sampling, options);
  add_engine(f.engine, options);
  add_warm(f.warm, options);
  add_common(f, options);
}

struct Conversation {
  std::string system;
  std::vector<Message> turns;  // user and assistant
  std::vector<Message> messages() const {
    std::vector<Message> out;
    if (!system.empty()) out.push_back({"system", system});
    out.insert(out.end(), turns.begin(), turns.end());
    return out;
  }
};

Result<> save(const Conversation& conversation, const std::string& path) {
  boost::json::array messages;
  for (const Message& m : conversation.messages()) messages.push_back({{"role", m.role}, {"content", utf8_lossy(m.content)}});
  std::ofstream out(path);
  out << json_text(boost::json::object{{"messages", std::move(messages)}});
  out.close();
  if (!out) return fail(Code::failed_precondition, path + ": " + std::strerror(errno));
  return {};
}

class Chat {
 public:
  Chat(const ChatFlags& flags, const Opened& opened, Session& session, Sampler& sampler)
      : flags_(flags), opened_(opened), session_(session), sampler_(sampler) {
    conversation_.system = flags.system;
  }

  // False: the conversation is over.
  bool command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string word = line.substr(0, space), rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (word == "/quit" || word == "/exit") return false;
    if (word == "/help") {
      say(kCommands);
    } else if (word == "/clear") {
      conversation_.turns.clear();
      session_.clear();
    } else if (word == "/stats") {
      const std::string head = head_line(*opened_.engine, session_.stats());
      say(segment_table(session_.stats()) + (head.empty() ? "" : head + '\n') + summary_line(opened_, session_.stats()));
    } else if (word == "/system") {
      conversation_.system = rest;
    } else if (word == "/save" && !rest.empty()) {
      const auto saved = save(conversation_, rest);
      say(saved ? "saved " + rest : "forethought: " + saved.error().message);
    } else {
      say(word == "/save" ? "forethought: /save FILE: name a file" : "forethought: there is no " + word + "; /help lists the commands");
    }
    return true;
  }

  // One message and its answer. An error that the next message may not have (too long, say) is said and the message forgotten.
  Result<> turn(const std::string& line) {
    conversation_.turns.push_back({"user", line});
    forget_interrupt();
    auto answered = answer();
    if (answered) {
      conversation_.turns.push_back({"assistant", answered->text});
      return {};
    }
    conversation_.turns.pop_back();
    const Error& error = answered.error();
    if (error.code == Code::cancelled && !error.message.empty()) {
      say("stopped");
      return {};
    }
    if (error.code != Code::out_of_range && error.code != Code::invalid_argument) return tl::unexpected<Error>(error);
    say("forethought: " + error.message + "; /clear forgets the conversation, a larger --ctx holds more");
    return {};
  }

 private:
  Result<Generated> answer() {
    FTH_ASSIGN_OR_RETURN(const auto ids, render_ids(*opened_.engine, conversation_.messages()));
    if (static_cast<int64_t>(ids.size()) >= session_.n_ctx())
      return fail(Code::out_of_range,
                  text("the conversation is %zu tokens, the context %lld", ids.size(), static_cast<long long>(session_.n_ctx())));
    const Stats before = session_.stats();
    const auto reused = static_cast<size_t>(session_.reuse(ids));
    const std::span<const int32_t> fresh = std::span(ids).subspan(reused);
    if (flags_.verbose) say(text("%zu tokens reused, %zu to read", reused, fresh.size()));
    for (const int32_t id : fresh) sampler_.accept(id);
    GenerateOptions options;
    options.n_predict = flags_.n_predict;
    options.stops = flags_.stops;
    options.on_text = [](std::string_view piece) { return put(piece); };
    FTH_ASSIGN_OR_RETURN(Generated out, generate(*opened_.engine, session_, sampler_, fresh, options, !flags_.quiet));
    FTH_RETURN_IF_ERROR(put("\n"));
    if (out.stop == Stop::context && !flags_.quiet) say("the context is full: /clear forgets the conversation, a larger --ctx holds more");
    if (flags_.verbose) {
      const Stats after = session_.stats();
      say(text("prompt %.1f tok/s, decode %.1f tok/s",
               per_second(static_cast<double>(after.prompt_tokens - before.prompt_tokens), after.prompt_seconds - before.prompt_seconds),
               per_second(static_cast<double>(after.decode_tokens - before.decode_tokens), after.decode_seconds - before.decode_seconds)));
    }
    return out;
  }

  const ChatFlags& flags_;
  const Opened& opened_;
  Session& session_;
  Sampler& sampler_;
  Conversation conversation_;
};

Result<int> run(ChatFlags& f) {
  if (f.n_predict < -1)
    return fail(Code::invalid_argument, text("--n-predict %lld: must be 0 or more, or -1", static_cast<long long>(f.n_predict)));
  FTH_RETURN_IF_ERROR(take_positional_model(f, f.engine));
  FTH_RETURN_IF_ERROR(check_warm(f.warm));
  FTH_ASSIGN_OR_RETURN(const SamplerOptions sampling, sampler_options(f.sampling, f));
  FTH_ASSIGN_OR_RETURN(Sampler sampler, Sampler::make(sampling));
  FTH_ASSIGN_OR_RETURN(Opened opened, open_engine(f.engine, f));
  const Engine& engine = *opened.engine;
  if (!engine.template_note().empty() && !f.quiet) say("note: " + printable(engine.template_note()));
  FTH_ASSIGN_OR_RETURN(const WarmSet warm, WarmSet::restore(f.warm, f, *opened.engine));
  FTH_ASSIGN_OR_RETURN(Session session, opened.engine->new_session());
  watch_interrupts(SecondPress::is_the_same);

  const bool colour = wants_colour(STDERR_FILENO);
  LineEditor editor("> ");
  if (editor.interactive() && !f.quiet) {
    const std::string who =
        printable(engine.model().config.name.empty() ? opened.model.filename().string() : engine.model().config.name, 80);
    say((colour ? "\033[1m" : "") + who + (colour ? "\033[0m" : "") +
        text(", %lld tokens of context on %s. /help lists the commands, Ctrl-D ends.", static_cast<long long>(session.n_ctx()),
             devices_used(engine.plan()).c_str()));
  }
  Chat chat(f, opened, session, sampler);
  std::string line;
  while (true) {
    const auto event = editor.read(line);
    if (event == LineEditor::Event::end) {
      if (editor.interactive()) say("");
      break;
    }
    if (event == LineEditor::Event::cancelled || line.empty()) continue;
    if (line.front() == '/') {
      if (!chat.command(line)) break;
      continue;
    }
    FTH_RETURN_IF_ERROR(chat.turn(line));
    // With a pipe as input nobody waits for the next line: Ctrl-C means the program. SIGTERM and a closed terminal always do.
    if (told_to_end() || (!editor.interactive() && interrupted())) break;
  }
  return told_to_end() || (!editor.interactive() && interrupted()) ? interrupt_exit_code() : 0;
}

}  // namespace

const Command kChat = make_command<ChatFlags, describe, run>("chat", "talk with the model", kHelp, "MODEL");

}  // namespace fth::cli
