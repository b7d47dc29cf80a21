// Chat templates from arbitrary bytes: parse and render must return, within their bounds, whatever the template and the conversation are.
// The first byte picks the input: even, all of the rest is the template; odd, the rest is split at its first zero byte into the template
// and the contents of the messages.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const bool split = (data[0] & 1) != 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string_view source = split ? bytes.substr(0, bytes.find('\0')) : bytes;
  const std::string content(split && source.size() < bytes.size() ? bytes.substr(source.size() + 1) : "Hello <b>\n  World ");

  const fth::Result<fth::ChatTemplate> parsed = fth::ChatTemplate::parse(source);
  if (!parsed) return 0;
  fth::TemplateInput input;
  input.messages = {{"system", content}, {"user", content.substr(content.size() / 2)}, {"assistant", ""}, {"user", "2"}};
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  input.flags = {{"enable_thinking", false}};
  input.date = "2024-07-26";
  const fth::Result<std::string> first = parsed->render(input), second = parsed->render(input);
  if (first.has_value() != second.has_value() || (first && *first != *second)) std::abort();  // a rendering leaves no trace in the template
  return 0;
}
