// The rules of white space and of tag ends follow Jinja's documentation and its observed output (tests/reference/templates).
#include "core/text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/text/jinja/utf8.h"

namespace fth::jinja {
namespace {

// Every line ending becomes \n and one at the very end goes.
std::string normalize(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_name_start(char c) { return is_alpha(c) || c == '_'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize(source)) {}

  Result<std::vector<Token>> run() {
    while (pos_ < source_.size()) FTH_RETURN_IF_ERROR(text_then_tag());
    push(TokenKind::end, source_.size(), "");
    return std::move(tokens_);
  }

 private:
  bool at(size_t i, std::string_view what) const { return std::string_view(source_).substr(std::min(i, source_.size())).starts_with(what); }
  char char_at(size_t i) const { return i < source_.size() ? source_[i] : '\0'; }

  // Positions are asked for in rising order, so lines are counted once.
  void locate(size_t position) {
    for (; located_ < position; ++located_) {
      if (source_[located_] == '\n') {
        ++line_;
        line_begin_ = located_ + 1;
      }
    }
  }
  int column(size_t position) const { return static_cast<int>(position - line_begin_) + 1; }

  void push(TokenKind kind, size_t position, std::string text) {
    locate(position);
    tokens_.push_back({kind, std::move(text), line_, column(position)});
  }
  tl::unexpected<Error> error(size_t position, const std::string& what) {
    locate(position);
    return fail_at(Code::data_loss, line_, column(position), what);
  }

  // Text in front of a tag that is no variable. '-' strips it; by default the blanks between a line's start and the tag go (lstrip_blocks).
  void push_text(size_t begin, size_t end, char sign, bool is_variable) {
    std::string_view text = std::string_view(source_).substr(begin, end - begin);
    if (sign == '-') {
      text = trim_end(text);
    } else if (sign != '+' && !is_variable) {
      const size_t newline = text.rfind('\n');
      const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || line_starting_) && skip_space(text, line) == text.size()) text = text.substr(0, line);
    }
    if (!text.empty()) push(TokenKind::text, begin, std::string(text));
  }

  // Where the tag that starts with `close` at i ends, and what follows it is consumed: "-%}" takes all white space, "%}" one newline
  // (trim_blocks), "+%}" and "}}" nothing. npos: no tag ends here.
  size_t tag_end(size_t i, std::string_view close, bool trims_newline = true) const {
    if (char_at(i) == '-' && at(i + 1, close)) return skip_space(source_, i + 1 + close.size());
    if (char_at(i) == '+' && close != "}}" && at(i + 1, close)) return i + 1 + close.size();
    if (!at(i, close)) return std::string::npos;
    i += close.size();
    return trims_newline && close != "}}" && char_at(i) == '\n' ? i + 1 : i;
  }

  void consume_to(size_t position) {
    line_starting_ = position > 0 && source_[position - 1] == '\n';
    pos_ = position;
  }

  Result<> text_then_tag() {
    const size_t begin = pos_;
    size_t open = source_.find('{', begin);
    while (open != std::string::npos && !at(open, "{%") && !at(open, "{{") && !at(open, "{#")) open = source_.find('{', open + 1);
    if (open == std::string::npos) {
      push(TokenKind::text, begin, source_.substr(begin));
      pos_ = source_.size();
      return {};
    }
    const char kind = source_[open + 1];
    const char sign = char_at(open + 2) == '-' || char_at(open + 2) == '+' ? source_[open + 2] : '\0';
    push_text(begin, open, sign, kind == '{');
    consume_to(open + (sign != '\0' ? 3 : 2));
    if (kind == '#') return comment(open);
    if (kind == '%') {
      const size_t word = skip_space(source_, pos_);
      if (at(word, "raw")) {
        const size_t close = skip_space(source_, word + 3);
        if (char_at(close) != '+' && tag_end(close, "%}") != std::string::npos) return raw(open, tag_end(close, "%}", false));
      }
    }
    push(kind == '%' ? TokenKind::block_begin : TokenKind::variable_begin, open, "");
    return tag(kind == '%' ? TokenKind::block_end : TokenKind::variable_end);
  }

  Result<> comment(size_t open) {
    size_t close = source_.find("#}", pos_);
    if (close == std::string::npos) return error(open, "unclosed comment");
    if (close > pos_ && (source_[close - 1] == '-' || source_[close - 1] == '+')) --close;
    consume_to(tag_end(close, "#}"));
    return {};
  }

  Result<> raw(size_t open, size_t begin) {
    locate(open);
    const auto unclosed = fail_at(Code::data_loss, line_, column(open), "unclosed raw block");
    consume_to(begin);
    for (size_t i = source_.find("{%", begin); i != std::string::npos; i = source_.find("{%", i + 2)) {
      const char sign = char_at(i + 2) == '-' || char_at(i + 2) == '+' ? source_[i + 2] : '\0';
      const size_t word = skip_space(source_, i + (sign != '\0' ? 3 : 2));
      if (!at(word, "endraw")) continue;
      const size_t end = tag_end(skip_space(source_, word + 6), "%}");
      if (end == std::string::npos) continue;
      push_text(begin, i, sign, false);
      consume_to(end);
      return {};
    }
    return unclosed;
  }

  // The tokens between a tag's delimiters. Within brackets "}}" and "%}" do not end it.
  Result<> tag(TokenKind end_kind) {
    const std::string_view close = end_kind == TokenKind::block_end ? "%}" : "}}";
    std::string brackets;
    while (true) {
      pos_ = skip_space(source_, pos_);
      if (pos_ >= source_.size()) return error(pos_, "the template ends within a tag");
      if (const size_t end = tag_end(pos_, close); brackets.empty() && end != std::string::npos) {
        push(end_kind, pos_, "");
        consume_to(end);
        return {};
      }
      const char c = source_[pos_];
      if (is_name_start(c)) {
        size_t end = pos_ + 1;
        while (is_name_start(char_at(end)) || is_digit(char_at(end))) ++end;
        take(TokenKind::name, end);
      } else if (is_digit(c)) {
        number();
      } else if (c == '\'' || c == '"') {
        FTH_RETURN_IF_ERROR(string(c));
      } else {
        FTH_RETURN_IF_ERROR(symbol(brackets));
      }
    }
  }

  void take(TokenKind kind, size_t end) {
    push(kind, pos_, source_.substr(pos_, end - pos_));
    pos_ = end;
  }

  size_t digits(size_t i) const {
    while (is_digit(char_at(i)) || (char_at(i) == '_' && is_digit(char_at(i + 1)))) ++i;
    return i;
  }

  // "7", "1_000", "0.5", "1e9"; after a dot ("x.0.1") only an integer.
  void number() {
    const size_t whole = digits(pos_);
    size_t end = whole;
    if (pos_ == 0 || source_[pos_ - 1] != '.') {
      if (char_at(end) == '.' && is_digit(char_at(end + 1))) end = digits(end + 1);
      if (char_at(end) == 'e' || char_at(end) == 'E') {
        const size_t exponent = end + (char_at(end + 1) == '-' || char_at(end + 1) == '+' ? 2 : 1);
        if (is_digit(char_at(exponent))) end = digits(exponent);
      }
    }
    const size_t begin = tokens_.size();
    take(end == whole ? TokenKind::integer : TokenKind::floating, end);
    std::erase(tokens_[begin].text, '_');
  }

  Result<> symbol(std::string& brackets) {
    static constexpr std::array kTwo = {"**", "//", "==", "!=", ">=", "<="};
    for (const char* two : kTwo) {
      if (at(pos_, two)) {
        take(TokenKind::symbol, pos_ + 2);
        return {};
      }
    }
    const char c = source_[pos_];
    if (std::string_view("+-/*%~[](){}><=.:|,").find(c) == std::string_view::npos) {
      return error(pos_, "unexpected character " + quoted(c));
    }
    if (c == '(') brackets.push_back(')');
    if (c == '[') brackets.push_back(']');
    if (c == '{') brackets.push_back('}');
    if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty()) return error(pos_, "unexpected " + quoted(c));
      if (brackets.back() != c) return error(pos_, "unexpected " + quoted(c) + ", expected " + quoted(brackets.back()));
      brackets.pop_back();
    }
    take(TokenKind::symbol, pos_ + 1);
    return {};
  }

  static std::string quoted(char c) {
    if (c >= ' ' && c < 0x7F) return std::string("'") + c + "'";
    return "byte " + std::to_string(static_cast<unsigned char>(c));
  }

  Result<> string(char quote) {
    const size_t begin = pos_;
    std::string value;
    for (size_t i = begin + 1; i < source_.size(); ++i) {
      if (source_[i] == quote) {
        push(TokenKind::string, begin, std::move(value));
        pos_ = i + 1;
        return {};
      }
      if (source_[i] != '\\') {
        value.push_back(source_[i]);
        continue;
      }
      if (++i == source_.size()) break;
      FTH_ASSIGN_OR_RETURN(i, escape(i, value));
    }
    return error(begin, "unclosed string");
  }

  // The escape whose letter is at i; returns its last position. An unknown escape keeps its backslash, as in Python.
  Result<size_t> escape(size_t i, std::string& value) {
    static constexpr std::string_view kLetters = "\\'\"abfnrtv", kValues = "\\'\"\a\b\f\n\r\t\v";
    const char c = source_[i];
    if (const size_t k = kLetters.find(c); k != std::string_view::npos) {
      value.push_back(kValues[k]);
      return i;
    }
    if (c == '\n') return i;
    const bool octal = c >= '0' && c <= '7';
    const size_t wanted = octal ? 3 : c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (wanted == 0) {
      value.push_back('\\');
      value.push_back(c);
      return i;
    }
    char32_t code = 0;
    size_t n = 0;
    for (size_t k = octal ? i : i + 1; n < wanted; ++n, ++k) {
      const char h = to_lower(char_at(k));
      const bool hex = is_digit(h) || (h >= 'a' && h <= 'f');
      if (octal ? h < '0' || h > '7' : !hex) break;
      code = code * (octal ? 8 : 16) + static_cast<char32_t>(is_digit(h) ? h - '0' : h - 'a' + 10);
    }
    if (!octal && n < wanted) return error(i, "truncated escape");
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return error(i, "this escape names no character");
    append_utf8(value, code);
    return octal ? i + n - 1 : i + n;
  }

  const std::string source_;
  std::vector<Token> tokens_;
  size_t pos_ = 0;
  bool line_starting_ = true;  // the last tag ended with a newline, so blanks after it start a line
  size_t located_ = 0, line_begin_ = 0;
  int line_ = 1;
};

}  // namespace

tl::unexpected<Error> fail_at(Code code, int line, int column, const std::string& what) {
  return fail(code, "chat template: line " + std::to_string(line) + ", column " + std::to_string(column) + ": " + what);
}

Result<std::vector<Token>> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace fth::jinja
