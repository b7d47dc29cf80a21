#pragma once
// Renders a conversation with the chat template that the model file carries: the part of Jinja that real templates use, interpreted within bounds
// (steps, output bytes, nesting, loop counts); a template is untrusted input. No attribute reaches anything but the values given here.

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace fth {

struct Message {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

struct TemplateInput {
  std::vector<Message> messages;
  bool add_generation_prompt = true;
  std::string bos_token, eos_token;
  std::map<std::string, bool> flags;  // extra variables, such as enable_thinking
  std::string date;                   // what strftime_now renders, "%Y-%m-%d" of the caller's choice; empty: 1970-01-01
};

class ChatTemplate {
 public:
  // data_loss with line and column for a syntax error; unimplemented for a construct that is not supported, by name.
  static Result<ChatTemplate> parse(std::string_view source);
  // <|im_start|>role\ncontent<|im_end|>\n, for files without a template; the caller announces it.
  static ChatTemplate chatml();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // invalid_argument when the template raises (raise_exception), resource_exhausted past a bound, data_loss for a type error; with line.
  Result<std::string> render(const TemplateInput& input) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;  // shared: the built-in ChatML template is one constant
};

}  // namespace fth
