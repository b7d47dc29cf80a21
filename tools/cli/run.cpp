// forethought run: one prompt, one answer.

#include <boost/json.hpp>

#include "tools/cli/command.h"
#include "tools/cli/generate.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/output.h"
#include "tools/cli/report.h"
#include "tools/cli/routing_trace.h"
#include "tools/cli/trace_file.h"
#include "tools/cli/warm.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Generates text from a prompt: given with -p, -f, as words, or on standard input. The model file's chat template is applied\n"
    "unless --no-template is given. The text alone goes to standard output, as it comes; figures go to standard error.\n"
    "Stops at an end token, at -n tokens, at a stop string, at the end of the context, or with Ctrl-C (exit code 130; SIGTERM: 143).\n\n"
    "  forethought run -p \"What is 38 + 47?\"\n"
    "  forethought run -m model.gguf --no-template -n 64 --temp 0.8 --seed 1 \"Once upon a time\"\n";

struct RunFlags : CommonFlags {
  EngineFlags engine;
  WarmFlags warm;
  SamplingFlags sampling;
  PromptFlags prompt;
  int64_t n_predict = -1;
  std::vector<std::string> stops;
  std::string system, tokens, trace_routing, trace;
  bool no_template = false, print_ids = false, ignore_end = false;
};

void describe(RunFlags& f, po::options_description& options) {
  add_prompt(f.prompt, options);
  options.add_options()                                                                                                                  //
      ("tokens", po::value(&f.tokens)->value_name("FILE"), "take the prompt as token ids: every run of digits in FILE")                  //
      ("system", po::value(&f.system)->value_name("TEXT"), "a system message before the prompt")                                         //
      ("no-template", po::bool_switch(&f.no_template), "continue the text as it is, without the chat template")                          //
      ("n-predict,n", po::value(&f.n_predict)->value_name("N"), "tokens to generate at most (default: -1, until something else stops)")  //
      ("stop", po::value(&f.stops)->value_name("TEXT"), "stop before this text (may be repeated)")                                       //
      ("ignore-end", po::bool_switch(&f.ignore_end), "do not stop at end tokens")                                                        //
      ("print-ids", po::bool_switch(&f.print_ids), "print the ids, separated by spaces, instead of the text")                            //
      ("trace-routing", po::value(&f.trace_routing)->value_name("FILE"), "write which experts each token uses, for bench/expert_io")     //
      ("trace", po::value(&f.trace)->value_name("FILE"), "write what ran when, for a trace viewer (Perfetto, chrome://tracing)");
  add_sampling(f.sampling, options);
  add_engine(f.engine, options);
  add_warm(f.warm, options);
  add_common(f, options, "print one JSON object (text, ids, timings, stats) instead of the text");
}

Result<std::vector<int32_t>> prompt_ids(const RunFlags& f, const Engine& engine, const std::optional<std::string>& prompt) {
  if (!f.tokens.empty()) return read_tokens(f.tokens);
  if (f.no_template) return text_ids(engine, *prompt);
  if (!engine.template_note().empty() && !f.quiet) say("note: " + printable(engine.template_note()));
  std::vector<Message> messages;
  if (!f.system.empty()) messages.push_back({"system", f.system});
  messages.push_back({"user", *prompt});
  return render_ids(engine, messages);
}

Result<> check(const RunFlags& f) {
  if (f.n_predict < -1)
    return fail(Code::invalid_argument, text("--n-predict %lld: must be 0 or more, or -1", static_cast<long long>(f.n_predict)));
  const bool has_text = !f.prompt.prompt.empty() || !f.prompt.file.empty() || !f.positional.empty();
  if (!f.tokens.empty() && has_text)
    return fail(Code::invalid_argument, "--tokens takes the place of the prompt: leave out -p, -f and the words");
  if (!f.system.empty() && (f.no_template || !f.tokens.empty()))
    return fail(Code::invalid_argument, "--system needs the chat template: leave out --no-template and --tokens");
  FTH_RETURN_IF_ERROR(check_warm(f.warm));
  if (f.json && f.print_ids) return fail(Code::invalid_argument, "--json has the ids already: leave out --print-ids");
  return {};
}

void print_figures(const RunFlags& f, const Opened& opened, const Stats& stats) {
  if (f.quiet) return;
  const std::string table = segment_table(stats);
  if (!table.empty()) say("\n" + table.substr(0, table.size() - 1));
  const std::string refusals = refusal_lines(opened.engine->plan());
  if (f.verbose && !refusals.empty()) say("not used:\n" + refusals.substr(0, refusals.size() - 1));
  if (const std::string lines = streaming_lines(opened, stats); !lines.empty()) say(lines);
  if (const std::string line = kv_line(stats); !line.empty()) say(line);
  if (const std::string line = head_line(*opened.engine, stats); !line.empty()) say(line);
  say(summary_line(opened, stats));
}

Result<int> run(RunFlags& f) {
  FTH_RETURN_IF_ERROR(check(f));
  FTH_ASSIGN_OR_RETURN(const SamplerOptions sampling, sampler_options(f.sampling, f));
  FTH_ASSIGN_OR_RETURN(Sampler sampler, Sampler::make(sampling));
  std::optional<std::string> prompt;
  if (f.tokens.empty()) {
    FTH_ASSIGN_OR_RETURN(prompt, prompt_text(f.prompt, f.positional));
    if (!prompt)
      return fail(Code::invalid_argument,
                  "there is no prompt: give one with -p TEXT, -f FILE or on standard input; `forethought chat` talks");
  }
  std::unique_ptr<Recorder> recorder;  // outlives the engine that writes to it
  FTH_ASSIGN_OR_RETURN(Opened opened, open_engine(f.engine, f));
  const Engine& engine = *opened.engine;
  FTH_ASSIGN_OR_RETURN(const auto ids, prompt_ids(f, engine, prompt));
  if (ids.empty()) return fail(Code::invalid_argument, "the prompt has no tokens");
  for (const int32_t id : ids) sampler.accept(id);
  FTH_ASSIGN_OR_RETURN(const WarmSet warm,
                       WarmSet::restore(f.warm, f, *opened.engine));  // written at its end, after Ctrl-C and SIGTERM too
  watch_interrupts(SecondPress::ends_the_program);
  FTH_ASSIGN_OR_RETURN(Session session, opened.engine->new_session());
  std::optional<RoutingTrace> trace;
  if (!f.trace_routing.empty()) trace.emplace(session);

  if (!f.trace.empty()) {
    recorder = engine.new_recorder();
    opened.engine->set_recorder(recorder.get());
  }

  GenerateOptions options;
  options.recorder = recorder.get();
  options.n_predict = f.n_predict;
  options.stops = f.stops;
  options.ignore_end = f.ignore_end;
  bool first = true;
  if (f.print_ids) {
    options.on_id = [&first](int32_t id) { return put((std::exchange(first, false) ? "" : " ") + std::to_string(id)); };
  } else if (!f.json) {
    options.on_text = [](std::string_view piece) { return put(piece); };
  }
  FTH_ASSIGN_OR_RETURN(const Generated out, generate(engine, session, sampler, ids, options, !f.quiet));
  const Stats stats = session.stats();
  if (f.json) {
    boost::json::object timings{
        {"seconds_to_first", out.seconds_to_first}, {"prompt_seconds", stats.prompt_seconds}, {"decode_seconds", stats.decode_seconds}};
    FTH_RETURN_IF_ERROR(put(json_text(boost::json::object{{"text", utf8_lossy(out.text)},
                                                          {"ids", boost::json::value_from(out.ids)},
                                                          {"stop", name(out.stop)},
                                                          {"prompt_ids", boost::json::value_from(ids)},
                                                          {"seed", sampling.seed},
                                                          {"model", utf8_lossy(opened.model.string())},
                                                          {"timings", std::move(timings)},
                                                          {"stats", stats_json(opened, stats)}})));
  } else if (f.print_ids || out.text.empty() || out.text.back() != '\n') {
    FTH_RETURN_IF_ERROR(put("\n"));
  }
  if (out.stop == Stop::context && !f.quiet)
    say(text("stopped at the end of the context, %lld tokens; a larger --ctx goes on", static_cast<long long>(session.n_ctx())));
  print_figures(f, opened, stats);
  if (trace) FTH_RETURN_IF_ERROR(trace->write(f.trace_routing, engine));
  if (recorder) FTH_RETURN_IF_ERROR(write_trace(f.trace, {{opened.model.filename().string(), recorder.get()}}));
  return out.stop == Stop::interrupted ? interrupt_exit_code() : 0;
}

}  // namespace

const Command kRun = make_command<RunFlags, describe, run>("run", "generate text from a prompt", kHelp, "PROMPT");

}  // namespace fth::cli
