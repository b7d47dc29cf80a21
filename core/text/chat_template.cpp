#include "core/text/chat_template.h"

#include <utility>

#include "core/base/check.h"
#include "core/text/jinja/interpreter.h"
#include "core/text/jinja/parser.h"

namespace fth {
namespace {

constexpr std::string_view kChatMl =
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

}  // namespace

struct ChatTemplate::Impl {
  jinja::Body body;
};

ChatTemplate::ChatTemplate(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::parse(std::string_view source) {
  FTH_ASSIGN_OR_RETURN(jinja::Body body, jinja::parse(source));
  return ChatTemplate(std::make_shared<const Impl>(Impl{std::move(body)}));
}

ChatTemplate ChatTemplate::chatml() {
  static const std::shared_ptr<const Impl> kImpl = [] {
    Result<ChatTemplate> parsed = parse(kChatMl);
    FTH_CHECK(parsed.has_value(), "the built-in template parses");
    return parsed->impl_;
  }();
  return ChatTemplate(kImpl);
}

Result<std::string> ChatTemplate::render(const TemplateInput& input) const {
  jinja::Context context(input.date.empty() ? "1970-01-01" : input.date);
  jinja::Values messages;
  for (const Message& message : input.messages) {
    FTH_ASSIGN_OR_RETURN(jinja::Value dict, context.dict({{jinja::constant_text("role"), jinja::constant_text(message.role)},
                                                          {jinja::constant_text("content"), jinja::constant_text(message.content)}}));
    messages.push_back(std::move(dict));
  }
  jinja::Variables variables;
  FTH_ASSIGN_OR_RETURN(variables["messages"], context.list(std::move(messages)));
  variables["add_generation_prompt"].v = input.add_generation_prompt;
  variables["bos_token"] = jinja::constant_text(input.bos_token);
  variables["eos_token"] = jinja::constant_text(input.eos_token);
  // Templates are written against a host that passes these two as none when there are no tools, and test them with "is not none".
  variables["tools"] = jinja::Value{};
  variables["documents"] = jinja::Value{};
  for (const auto& [name, value] : input.flags) variables[name].v = value;
  return jinja::render(impl_->body, context, std::move(variables));
}

}  // namespace fth
