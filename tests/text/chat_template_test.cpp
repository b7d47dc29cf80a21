// Chat templates against Python's jinja2 (tests/reference/templates/expected.json), and against templates that mean harm.
#include "core/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

namespace fth {
namespace {

namespace json = boost::json;
using testing::HasSubstr;

const std::filesystem::path& folder() {
  static const std::filesystem::path path = [] {
    const char* root = std::getenv("FTH_SOURCE_DIR");
    return std::filesystem::path(root != nullptr ? root : ".") / "tests/reference/templates";
  }();
  return path;
}

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << "cannot open " << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

const json::value& expected() {
  static const json::value value = json::parse(read(folder() / "expected.json"));
  return value;
}

std::string text_of(const json::value& value) { return std::string(value.as_string()); }

TemplateInput input_of(const json::value& conversation, const json::value& flags) {
  TemplateInput input;
  for (const json::value& message : conversation.at("messages").as_array()) {
    input.messages.push_back({text_of(message.at("role")), text_of(message.at("content"))});
  }
  input.add_generation_prompt = conversation.at("add_generation_prompt").as_bool();
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  for (const auto& flag : flags.as_object()) input.flags[std::string(flag.key())] = flag.value().as_bool();
  input.date = text_of(expected().at("date"));
  return input;
}

// `row` has either "output" or "error": syntax (with its line), refused (raise_exception) or runtime.
void check(const std::string& source, const TemplateInput& input, const json::object& row) {
  const std::string error = row.contains("error") ? text_of(row.at("error")) : "";
  const Result<ChatTemplate> parsed = ChatTemplate::parse(source);
  if (error == "syntax") {
    ASSERT_FALSE(parsed) << "parsed, and should not";
    EXPECT_EQ(parsed.error().code, Code::data_loss) << parsed.error().message;
    EXPECT_THAT(parsed.error().message, HasSubstr("line " + std::to_string(row.at("line").as_int64()) + ", column "));
    return;
  }
  ASSERT_TRUE(parsed) << parsed.error().message;
  const Result<std::string> output = parsed->render(input);
  if (error.empty()) {
    ASSERT_TRUE(output) << output.error().message;
    EXPECT_EQ(*output, text_of(row.at("output")));
    return;
  }
  ASSERT_FALSE(output) << "rendered as: " << *output;
  EXPECT_THAT(output.error().message, HasSubstr("line "));
  if (error == "refused") {
    EXPECT_EQ(output.error().code, Code::invalid_argument) << output.error().message;
  } else {
    EXPECT_TRUE(output.error().code == Code::data_loss || output.error().code == Code::unimplemented) << output.error().message;
  }
}

TEST(ChatTemplateReference, ModelTemplates) {
  const json::array& rows = expected().at("templates").as_array();
  ASSERT_GE(rows.size(), 100u);
  for (const json::value& row : rows) {
    const std::string name = text_of(row.at("template")), conversation = text_of(row.at("conversation"));
    SCOPED_TRACE(name + ", " + conversation + ", " + json::serialize(row.at("flags")));
    check(read(folder() / name), input_of(expected().at("conversations").at(conversation), row.at("flags")), row.as_object());
  }
}

TEST(ChatTemplateReference, Cases) {
  const json::array& rows = expected().at("cases").as_array();
  ASSERT_GE(rows.size(), 200u);
  const TemplateInput input = input_of(expected().at("case_conversation"), expected().at("case_flags"));
  for (const json::value& row : rows) {
    const std::string source = text_of(row.at("template"));
    SCOPED_TRACE(source);
    check(source, input, row.as_object());
  }
}

// "output", or "code: message".
std::string rendered(std::string_view source, const TemplateInput& input = {}) {
  const Result<ChatTemplate> parsed = ChatTemplate::parse(source);
  if (!parsed) return std::string(code_name(parsed.error().code)) + ": " + parsed.error().message;
  const Result<std::string> output = parsed->render(input);
  return output ? *output : std::string(code_name(output.error().code)) + ": " + output.error().message;
}

std::string repeated(std::string_view what, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += what;
  return out;
}

TemplateInput with_messages(std::vector<Message> messages) {
  TemplateInput input;
  input.messages = std::move(messages);
  return input;
}

TemplateInput with_date(std::string date) {
  TemplateInput input;
  input.date = std::move(date);
  return input;
}

TEST(ChatTemplate, ChatMl) {
  TemplateInput input = with_messages({{"user", "Hi"}, {"assistant", "Hello"}});
  const ChatTemplate chatml = ChatTemplate::chatml();
  EXPECT_EQ(chatml.render(input).value(),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>assistant\n");
  input.add_generation_prompt = false;
  input.messages.clear();
  EXPECT_EQ(ChatTemplate::chatml().render(input).value(), "");
}

TEST(ChatTemplate, MoveKeepsTheTemplate) {
  ChatTemplate a = ChatTemplate::parse("{{ 1 }}").value();
  ChatTemplate b = ChatTemplate::chatml();
  b = std::move(a);
  EXPECT_EQ(b.render({}).value(), "1");
}

TEST(ChatTemplate, OneTemplateServesManyThreads) {
  const ChatTemplate shared =
      ChatTemplate::parse("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content|int %}{% endfor %}{{ ns.n }}")
          .value();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&shared, t] {
      TemplateInput input;
      for (int i = 0; i < 100; ++i) input.messages.push_back({"user", std::to_string(t)});
      for (int i = 0; i < 20; ++i) EXPECT_EQ(shared.render(input).value(), std::to_string(100 * t));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ChatTemplate, Dates) {
  EXPECT_EQ(rendered("{{ strftime_now('%d %b %Y') }}"), "01 Jan 1970");
  EXPECT_EQ(rendered("{{ strftime_now('%-d/%-m %A %F') }}", with_date("2024-02-09")), "9/2 Friday 2024-02-09");
  EXPECT_THAT(rendered("{{ strftime_now('%d') }}", with_date("2023-02-29")),
              HasSubstr("invalid_argument: chat template: line 1: the date"));
  EXPECT_THAT(rendered("{{ strftime_now('%d') }}", with_date("yesterday")), HasSubstr("invalid_argument"));
  EXPECT_THAT(rendered("{{ strftime_now('%Q') }}"), HasSubstr("unimplemented"));
}

TEST(ChatTemplate, MalformedUtf8PassesThrough) {
  const TemplateInput input = with_messages({{"user", "a\xff\xe4\xbd z\xc3"}});
  EXPECT_EQ(rendered("{{ messages[0].content.strip() }}|{{ messages[0].content|length }}|{{ messages[0].content[1:2] }}", input),
            "a\xff\xe4\xbd z\xc3|7|\xff");
}

TEST(ChatTemplate, WhatIsNotSupportedIsNamed) {
  for (const char* tag : {"include 'x'", "import 'x' as y", "from 'x' import y", "extends 'x'", "block b", "autoescape true", "do x"}) {
    const std::string name(tag, std::string_view(tag).find_first_of(" "));
    EXPECT_THAT(rendered("\n {% " + std::string(tag) + " %}"),
                HasSubstr("unimplemented: chat template: line 2, column 5: the tag '" + name + "'"));
  }
  EXPECT_THAT(rendered("{{ 'x'|wordwrap(3) }}"), HasSubstr("unimplemented: chat template: line 1, column 8: the filter 'wordwrap'"));
  EXPECT_THAT(rendered("{{ 1 is escaped }}"), HasSubstr("unimplemented: chat template: line 1, column 9: the test 'escaped'"));
  EXPECT_THAT(rendered("{% if true %}\n{{ '{}'|from_json }}{% endif %}"),
              HasSubstr("unimplemented: chat template: line 2: the filter 'from_json'"));
  EXPECT_THAT(rendered("{% for x in [] recursive %}{% endfor %}"), HasSubstr("unimplemented"));
  EXPECT_THAT(rendered("{% macro m() %}{{ varargs }}{% endmacro %}"), HasSubstr("unimplemented"));
  EXPECT_THAT(rendered("{{ range(*[1]) }}"), HasSubstr("unimplemented"));
  EXPECT_THAT(rendered("{{ 'a %s' % 1 }}"), HasSubstr("unimplemented"));
  EXPECT_THAT(rendered("{{ 'x'.encode() }}"), HasSubstr("unimplemented"));
  EXPECT_THAT(rendered("{{ cycler(1) }}"), HasSubstr("unimplemented"));
  EXPECT_THAT(rendered("{{ '{:>3}'.format(1) }}"), HasSubstr("unimplemented"));
  EXPECT_THAT(rendered("{% break %}"), HasSubstr("data_loss"));
  EXPECT_THAT(rendered("{% for x in [1] %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}"), HasSubstr("data_loss"));
}

TEST(ChatTemplate, NothingElseIsReachable) {
  for (const char* source : {"{{ ''.__class__ }}", "{{ ''['__class__'] }}", "{{ messages.__init__ }}", "{{ range.__globals__ }}",
                             "{{ (1).__class__ }}", "{{ [''] | map(attribute='__class__') | list }}", "{{ none.__class__ }}",
                             "{{ ''._private }}", "{% for x in [1] %}{{ loop._iterable }}{% endfor %}", "{{ ''.format.__self__ }}"}) {
    EXPECT_THAT(rendered(source), HasSubstr("data_loss")) << source;
  }
  for (const char* source : {"{{ self }}", "{{ environ }}", "{{ open }}", "{{ messages[0].__class__ }}"}) {
    EXPECT_EQ(rendered(source, with_messages({{"user", "x"}})), "") << source;
  }
  EXPECT_THAT(rendered("{{ range }}"), HasSubstr("data_loss"));
  EXPECT_THAT(rendered("{{ {}.items }}"), HasSubstr("data_loss"));
  EXPECT_THAT(rendered("{{ namespace() }}"), HasSubstr("data_loss"));
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  EXPECT_THAT(rendered("{{ 1 }}\n\n{{ 2 +\n  '' }}"), HasSubstr("data_loss: chat template: line 3: unsupported operand"));
  EXPECT_THAT(rendered("{% if true %}\n{{ raise_exception('go away') }}{% endif %}"),
              HasSubstr("invalid_argument: chat template: line 2: the template refuses this conversation: go away"));
  EXPECT_THAT(rendered("ok\n  {{ 'x' | }}"), HasSubstr("data_loss: chat template: line 2, column 12: expected the name of a filter"));
}

struct Harm {
  const char* name;
  std::string source;
};

class ChatTemplateBounds : public testing::TestWithParam<Harm> {};

TEST_P(ChatTemplateBounds, EndInResourceExhausted) {
  EXPECT_THAT(rendered(GetParam().source), testing::StartsWith("resource_exhausted: "));
}

INSTANTIATE_TEST_SUITE_P(
    Harms, ChatTemplateBounds,
    testing::Values(
        Harm{"source", repeated(" ", 256 * 1024 + 1)},  //
        Harm{"steps", "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"},
        Harm{"range", "{{ range(100001) }}"},  //
        Harm{"range_overflow", "{{ range(-9223372036854775807, 9223372036854775807) }}"},
        Harm{"macro_recursion", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"},
        Harm{"mutual_recursion", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}"},
        Harm{"wide_recursion", "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"},
        Harm{"deep_frames",
             "{% macro m() %}" + repeated("{% if true %}", 60) + "{{ m() }}" + repeated("{% endif %}", 60) + "{% endmacro %}{{ m() }}"},
        Harm{"string_doubling", "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"},
        Harm{"concat_doubling", "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"},
        Harm{"replace_doubling",
             "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s|replace('x', 'xx') %}{% endfor %}"},
        Harm{"string_repeat", "{{ ('x' * 9000000)|length }}"},  //
        Harm{"many_strings_alive",
             "{% set ns = namespace(l=[]) %}{% for i in range(9) %}{% set ns.l = ns.l + ['x' * 1000000] %}{% endfor %}"},
        Harm{"list_doubling", "{% set ns = namespace(l=[1]) %}{% for i in range(100) %}{% set ns.l = ns.l + ns.l %}{% endfor %}"},
        Harm{"list_repeat", "{{ ([1] * 9000000)|length }}"},  //
        Harm{"value_nesting", "{% set ns = namespace(v=[]) %}{% for i in range(1000) %}{% set ns.v = [ns.v] %}{% endfor %}"},
        Harm{"dict_nesting", "{% set ns = namespace(v={}) %}{% for i in range(1000) %}{% set ns.v = {'a': ns.v} %}{% endfor %}"},
        Harm{"method_nesting", "{% set ns = namespace(v={}) %}{% for i in range(1000) %}{% set ns.v = {'a': ns.v}.get %}{% endfor %}"},
        Harm{"loop_nesting",
             "{% set ns = namespace(v=[]) %}{% for i in range(1000) %}{% for x in [ns.v] %}{% set ns.v = loop %}{% endfor %}{% endfor %}"},
        Harm{"print_shared", "{% set ns = namespace(v=[]) %}{% for i in range(90) %}{% set ns.v = [ns.v, ns.v] %}{% endfor %}{{ ns.v }}"},
        Harm{"json_shared",
             "{% set ns = namespace(v=[]) %}{% for i in range(90) %}{% set ns.v = [ns.v, ns.v] %}{% endfor %}{{ ns.v|tojson }}"},
        Harm{"compare_shared",
             "{% set ns = namespace(v=[], w=[]) %}{% for i in range(90) %}{% set ns.v = [ns.v, ns.v] %}{% set ns.w = [ns.w, ns.w] "
             "%}{% endfor %}{{ ns.v == ns.w }}"},
        Harm{"output", "{% set s = 'x' * 1000000 %}{% for i in range(9) %}{{ s }}{% endfor %}"},
        Harm{"captured_output", "{% set s = 'x' * 1000000 %}{% set t %}{% for i in range(9) %}{{ s }}{% endfor %}{% endset %}"},
        Harm{"text_work", "{% set s = 'x' * 4000000 %}{% for i in range(100000) %}{% set t = s|upper %}{% endfor %}"},
        Harm{"find_work",
             "{% set s = 'a' * 4000000 %}{% set t = 'a' * 2000000 + 'b' %}{% for i in range(100000) %}{{ t in s }}{% endfor %}"},
        Harm{"rsplit_work", "{% set s = 'a' * 4000000 %}{% set t = 'b' + 'a' * 2000000 %}{{ s.rsplit(t, 1) }}"},
        Harm{"characters", "{% for c in 'x' * 2000000 %}{% endfor %}"},  //
        Harm{"unique", "{{ range(100000)|unique|list|length }}"},        //
        Harm{"integers", "{{ 9223372036854775807 + 1 }}"},               //
        Harm{"power", "{{ 10 ** 100 }}"},                                //
        Harm{"negation", "{{ -(-9223372036854775807 - 1) }}"},           //
        Harm{"brackets", "{{ " + repeated("[", 1000) + repeated("]", 1000) + " }}"},
        Harm{"parentheses", "{{ " + repeated("(", 100000) + repeated(")", 100000) + " }}"},
        Harm{"not_not", "{{ " + repeated("not ", 50000) + "1 }}"},  //
        Harm{"signs", "{{ " + repeated("-", 100000) + "1 }}"}, Harm{"filters", "{{ 1" + repeated("|d", 50000) + " }}"},
        Harm{"attributes", "{{ x" + repeated(".a", 50000) + " }}"}, Harm{"calls", "{{ x" + repeated("()", 50000) + " }}"},
        Harm{"indices", "{{ x" + repeated("[0]", 50000) + " }}"}, Harm{"conditionals", "{{ 1" + repeated(" if 1 else 1", 10000) + " }}"},
        Harm{"conditionals_without_else", "{{ 1" + repeated(" if 1", 10000) + " }}"},
        Harm{"blocks", repeated("{% if 1 %}", 10000) + repeated("{% endif %}", 10000)},
        Harm{"targets", "{% set " + repeated("(", 10000) + "x" + repeated(")", 10000) + " = 1 %}"}),
    [](const auto& harm) { return std::string(harm.param.name); });

TEST(ChatTemplate, LongButFlatIsFine) {
  EXPECT_EQ(rendered("{{ 0" + repeated(" + 1", 20000) + " }}"), "20000");
  EXPECT_EQ(rendered("{{ ''" + repeated(" ~ 'x'", 10000) + " }}"), repeated("x", 10000));
  EXPECT_EQ(rendered("{% if false %}" + repeated("{% elif false %}", 10000) + "{% else %}x{% endif %}"), "x");
  EXPECT_EQ(rendered("{{ " + repeated("true and ", 10000) + "1 }}"), "1");
}

TEST(ChatTemplate, ThingsThatHoldThemselvesAreFreed) {  // the leak checker of the sanitizer build is the judge
  EXPECT_EQ(rendered("{% set ns = namespace() %}{% set ns.me = ns %}{% set ns.l = [ns, namespace(up=ns)] %}ok"), "ok");
  EXPECT_EQ(rendered("{% set ns = namespace() %}{% macro m() %}{{ ns }}{% endmacro %}{% set ns.m = m %}{% set n = m %}ok"), "ok");
  EXPECT_EQ(rendered("{% set ns = namespace() %}{% for i in [ns] %}{% set ns.loop = loop %}{% endfor %}ok"), "ok");
  EXPECT_EQ(
      rendered(
          "{% set ns = namespace(up=none) %}{% for i in range(50000) %}{% set n = namespace(up=ns.up) %}{% set ns.up = n %}{% endfor %}ok"),
      "ok");
}

TEST(ChatTemplate, MacroOutlivedByItsScope) {
  EXPECT_THAT(
      rendered(
          "{% set ns = namespace() %}{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}{% set ns.m = m %}{% endfor %}{{ ns.m() }}"),
      HasSubstr("data_loss: chat template: line 1: the macro 'm' is called outside"));
}

TEST(ChatTemplate, LongConversationsFit) {
  TemplateInput input;
  for (int i = 0; i < 2000; ++i)
    input.messages.push_back({i % 2 == 0 ? "user" : "assistant", "<think>\nhm\n</think>\n\n" + repeated("word ", 200)});
  const Result<std::string> output = ChatTemplate::parse(read(folder() / "qwen3.jinja")).value().render(input);
  ASSERT_TRUE(output) << output.error().message;
  EXPECT_GT(output->size(), 2'000'000u);
}

}  // namespace
}  // namespace fth
