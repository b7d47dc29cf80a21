// Recursive descent. Operators of one precedence become one flat node, so the depth that the bound counts is the depth a reader sees.
#include "core/text/jinja/expression.h"

#include <array>
#include <charconv>

#include "core/text/jinja/builtins.h"
#include "core/text/jinja/limits.h"

namespace fth::jinja {

tl::unexpected<Error> ExpressionParser::error(const std::string& what, Code code) const {
  return fail_at(code, peek().line, peek().column, what);
}
tl::unexpected<Error> ExpressionParser::unexpected(const std::string& wanted) const {
  static constexpr std::array<std::string_view, 11> kKinds = {
      "text", "a tag", "the end of the tag", "an expression", "the end of the tag", "", "a string", "", "", "", "the end of the template"};
  const std::string_view kind = kKinds[static_cast<size_t>(peek().kind)];
  return error("expected " + wanted + ", not " + (kind.empty() ? "'" + peek().text + "'" : std::string(kind)));
}
tl::unexpected<Error> ExpressionParser::too_deep() const {
  return error("nested more than " + std::to_string(kMaxNesting) + " levels deep", Code::resource_exhausted);
}

Result<> ExpressionParser::expect_symbol(std::string_view text) {
  if (!skip_symbol(text)) return unexpected("'" + std::string(text) + "'");
  return {};
}
Result<std::string> ExpressionParser::expect_name() {
  if (peek().kind != TokenKind::name) return unexpected("a name");
  return tokens_[pos_++].text;
}
Result<> ExpressionParser::add(Expr& parent, ExprPtr child) {
  if (child != nullptr) parent.depth = std::max(parent.depth, child->depth + 1);
  if (parent.depth > kMaxNesting) return too_deep();
  parent.args.push_back(std::move(child));
  return {};
}

Result<ExprPtr> ExpressionParser::tuple(bool with_conditional, bool may_be_empty) {
  const auto at_end = [this] { return peek().kind == TokenKind::block_end || peek().kind == TokenKind::variable_end || is_symbol(")"); };
  ExprPtr list = make(ExprKind::tuple);
  bool comma = false;
  while (!at_end()) {
    FTH_ASSIGN_OR_RETURN(ExprPtr item, with_conditional ? expression() : disjunction());
    if (!comma && !is_symbol(",")) return item;
    FTH_RETURN_IF_ERROR(add(*list, std::move(item)));
    comma = true;
    if (!skip_symbol(",")) break;
  }
  if (!comma && !may_be_empty) return unexpected("an expression");
  return list;
}

Result<ExprPtr> ExpressionParser::expression() {
  const Nested nested(depth_);
  if (depth_ > kMaxNesting) return too_deep();
  FTH_ASSIGN_OR_RETURN(ExprPtr value, disjunction());
  while (is_name("if")) {
    ExprPtr choice = make(ExprKind::conditional);
    ++pos_;
    FTH_RETURN_IF_ERROR(add(*choice, std::move(value)));
    FTH_ASSIGN_OR_RETURN(ExprPtr condition, disjunction());
    FTH_RETURN_IF_ERROR(add(*choice, std::move(condition)));
    ExprPtr otherwise;
    if (skip_name("else")) {
      FTH_ASSIGN_OR_RETURN(otherwise, expression());
    }
    FTH_RETURN_IF_ERROR(add(*choice, std::move(otherwise)));
    value = std::move(choice);
  }
  return value;
}

template <class Operand, class Joint>
Result<ExprPtr> ExpressionParser::joined(ExprKind kind, Operand operand, Joint skip_joint) {
  FTH_ASSIGN_OR_RETURN(ExprPtr first, (this->*operand)());
  if (!skip_joint()) return first;
  ExprPtr node = make(kind);
  node->line = first->line;
  FTH_RETURN_IF_ERROR(add(*node, std::move(first)));
  do {
    FTH_ASSIGN_OR_RETURN(ExprPtr next, (this->*operand)());
    FTH_RETURN_IF_ERROR(add(*node, std::move(next)));
  } while (skip_joint());
  return node;
}

Result<ExprPtr> ExpressionParser::disjunction() {
  return joined(ExprKind::any_of, &ExpressionParser::conjunction, [this] { return skip_name("or"); });
}
Result<ExprPtr> ExpressionParser::conjunction() {
  return joined(ExprKind::all_of, &ExpressionParser::negation, [this] { return skip_name("and"); });
}
Result<ExprPtr> ExpressionParser::negation() {
  if (!is_name("not")) return compared();
  const Nested nested(depth_);
  if (depth_ > kMaxNesting) return too_deep();
  ExprPtr node = make(ExprKind::logical_not);
  ++pos_;
  FTH_ASSIGN_OR_RETURN(ExprPtr value, negation());
  FTH_RETURN_IF_ERROR(add(*node, std::move(value)));
  return node;
}

template <class Operand>
Result<ExprPtr> ExpressionParser::chained(ExprKind kind, Operand operand,
                                          std::initializer_list<std::pair<std::string_view, Op>> operators) {
  std::vector<Op> ops;
  const auto skip_operator = [&] {
    if (kind == ExprKind::comparison && is_name("not") && is_name("in", 1)) return pos_ += 2, ops.push_back(Op::not_in), true;
    for (const auto& [symbol, op] : operators) {
      if (op == Op::in ? skip_name(symbol) : skip_symbol(symbol)) return ops.push_back(op), true;
    }
    return false;
  };
  FTH_ASSIGN_OR_RETURN(ExprPtr node, joined(kind, operand, skip_operator));
  if (!ops.empty()) node->ops = std::move(ops);
  return node;
}

Result<ExprPtr> ExpressionParser::compared() {
  return chained(ExprKind::comparison, &ExpressionParser::sum,
                 {{"==", Op::eq}, {"!=", Op::ne}, {"<=", Op::le}, {">=", Op::ge}, {"<", Op::lt}, {">", Op::gt}, {"in", Op::in}});
}
Result<ExprPtr> ExpressionParser::sum() {
  return chained(ExprKind::chain, &ExpressionParser::concatenation, {{"+", Op::add}, {"-", Op::subtract}});
}
Result<ExprPtr> ExpressionParser::concatenation() {
  return joined(ExprKind::concat, &ExpressionParser::product, [this] { return skip_symbol("~"); });
}
Result<ExprPtr> ExpressionParser::product() {
  return chained(ExprKind::chain, &ExpressionParser::power,
                 {{"*", Op::multiply}, {"/", Op::divide}, {"//", Op::floor_divide}, {"%", Op::modulo}});
}
Result<ExprPtr> ExpressionParser::power() { return chained(ExprKind::chain, &ExpressionParser::filtered_unary, {{"**", Op::power}}); }

Result<ExprPtr> ExpressionParser::filtered_unary() {
  FTH_ASSIGN_OR_RETURN(ExprPtr value, unary());
  return filters_of(std::move(value));
}

// A sign binds tighter than a filter: -1|abs is (-1)|abs.
Result<ExprPtr> ExpressionParser::unary() {
  if (!is_symbol("-") && !is_symbol("+")) {
    FTH_ASSIGN_OR_RETURN(ExprPtr value, primary());
    return postfix(std::move(value));
  }
  const Nested nested(depth_);
  if (depth_ > kMaxNesting) return too_deep();
  ExprPtr node = make(is_symbol("-") ? ExprKind::minus : ExprKind::plus);
  ++pos_;
  FTH_ASSIGN_OR_RETURN(ExprPtr value, unary());
  FTH_RETURN_IF_ERROR(add(*node, std::move(value)));
  return postfix(std::move(node));
}

Result<ExprPtr> ExpressionParser::primary() {
  const Token& token = peek();
  switch (token.kind) {
    case TokenKind::name: return name();
    case TokenKind::string: {
      ExprPtr expr = make(ExprKind::constant);
      std::string text;
      while (peek().kind == TokenKind::string) text += tokens_[pos_++].text;
      expr->value = constant_text(std::move(text));
      return expr;
    }
    case TokenKind::integer:
    case TokenKind::floating: return number();
    default: break;
  }
  if (skip_symbol("(")) {
    FTH_ASSIGN_OR_RETURN(ExprPtr inner, tuple(/*with_conditional=*/true, /*may_be_empty=*/true));
    FTH_RETURN_IF_ERROR(expect_symbol(")"));
    return inner;
  }
  if (is_symbol("[") || is_symbol("{")) return brackets();
  return unexpected("an expression");
}

Result<ExprPtr> ExpressionParser::name() {
  const std::string& word = peek().text;
  ExprPtr expr = make(ExprKind::constant);
  if (word == "true" || word == "True" || word == "false" || word == "False") {
    expr->value.v = word == "true" || word == "True";
  } else if (word != "none" && word != "None") {
    if (macros_ > 0 && (word == "varargs" || word == "kwargs"))
      return error("'" + word + "' of a macro is not supported", Code::unimplemented);
    expr->kind = ExprKind::variable;
    expr->name = word;
  }
  ++pos_;
  return expr;
}

Result<ExprPtr> ExpressionParser::number() {
  const Token& token = peek();
  ExprPtr expr = make(ExprKind::constant);
  const char *begin = token.text.data(), *end = begin + token.text.size();
  int64_t integer = 0;
  double floating = 0;
  if (token.kind == TokenKind::integer) {
    if (std::from_chars(begin, end, integer).ec != std::errc()) return error("an integer beyond 64 bits", Code::resource_exhausted);
    expr->value.v = integer;
  } else {
    if (std::from_chars(begin, end, floating).ec != std::errc())
      return error("a number beyond the range of a double", Code::resource_exhausted);
    expr->value.v = floating;
  }
  ++pos_;
  return expr;
}

// [a, b] or {a: b, c: d}; a trailing comma is fine.
Result<ExprPtr> ExpressionParser::brackets() {
  const bool is_dict = is_symbol("{");
  const std::string_view close = is_dict ? "}" : "]";
  ExprPtr expr = make(is_dict ? ExprKind::dict : ExprKind::list);
  ++pos_;
  while (!is_symbol(close)) {
    if (!expr->args.empty()) FTH_RETURN_IF_ERROR(expect_symbol(","));
    if (is_symbol(close)) break;
    FTH_ASSIGN_OR_RETURN(ExprPtr item, expression());
    FTH_RETURN_IF_ERROR(add(*expr, std::move(item)));
    if (!is_dict) continue;
    FTH_RETURN_IF_ERROR(expect_symbol(":"));
    FTH_ASSIGN_OR_RETURN(ExprPtr value, expression());
    FTH_RETURN_IF_ERROR(add(*expr, std::move(value)));
  }
  ++pos_;
  return expr;
}

Result<ExprPtr> ExpressionParser::postfix(ExprPtr value) {
  while (true) {
    if (is_symbol(".")) {
      FTH_ASSIGN_OR_RETURN(value, member(std::move(value)));
    } else if (is_symbol("[")) {
      FTH_ASSIGN_OR_RETURN(value, element(std::move(value)));
    } else if (is_symbol("(")) {
      FTH_ASSIGN_OR_RETURN(value, call(std::move(value)));
    } else {
      return value;
    }
  }
}

Result<ExprPtr> ExpressionParser::member(ExprPtr value) {
  ++pos_;
  if (peek().kind == TokenKind::integer) {
    ExprPtr node = make(ExprKind::index);
    FTH_ASSIGN_OR_RETURN(ExprPtr key, number());
    FTH_RETURN_IF_ERROR(add(*node, std::move(value)));
    FTH_RETURN_IF_ERROR(add(*node, std::move(key)));
    return node;
  }
  ExprPtr node = make(ExprKind::attribute);
  FTH_ASSIGN_OR_RETURN(node->name, expect_name());
  FTH_RETURN_IF_ERROR(add(*node, std::move(value)));
  return node;
}

Result<ExprPtr> ExpressionParser::element(ExprPtr value) {
  ExprPtr node = make(ExprKind::index);
  ++pos_;
  FTH_RETURN_IF_ERROR(add(*node, std::move(value)));
  ExprPtr part;
  if (!is_symbol(":")) {
    FTH_ASSIGN_OR_RETURN(part, expression());
  }
  if (is_symbol(",")) return error("more than one index is not supported", Code::unimplemented);
  FTH_RETURN_IF_ERROR(add(*node, std::move(part)));
  if (is_symbol(":")) {
    node->kind = ExprKind::slice;
    for (int i = 0; i < 2; ++i) {
      part = nullptr;
      if (skip_symbol(":") && !is_symbol(":") && !is_symbol("]")) {
        FTH_ASSIGN_OR_RETURN(part, expression());
      }
      FTH_RETURN_IF_ERROR(add(*node, std::move(part)));
    }
  }
  FTH_RETURN_IF_ERROR(expect_symbol("]"));
  return node;
}

Result<ExprPtr> ExpressionParser::call(ExprPtr callee) {
  ExprPtr node = make(ExprKind::call);
  FTH_RETURN_IF_ERROR(add(*node, std::move(callee)));
  FTH_RETURN_IF_ERROR(arguments(*node));
  return node;
}

// "(a, b, name=c)", appended to node.args.
Result<> ExpressionParser::arguments(Expr& node) {
  FTH_RETURN_IF_ERROR(expect_symbol("("));
  for (bool first = true; !is_symbol(")"); first = false) {
    if (!first) FTH_RETURN_IF_ERROR(expect_symbol(","));
    if (is_symbol(")")) break;
    if (is_symbol("*") || is_symbol("**")) return error("unpacked arguments are not supported", Code::unimplemented);
    if (peek().kind == TokenKind::name && is_symbol("=", 1)) {
      node.keywords.push_back(peek().text);
      pos_ += 2;
    } else if (!node.keywords.empty()) {
      return error("a positional argument after a named one");
    }
    FTH_ASSIGN_OR_RETURN(ExprPtr value, expression());
    FTH_RETURN_IF_ERROR(add(node, std::move(value)));
  }
  ++pos_;
  return {};
}

Result<ExprPtr> ExpressionParser::filters_of(ExprPtr value) {
  while (true) {
    if (skip_symbol("|")) {
      FTH_ASSIGN_OR_RETURN(value, filter(std::move(value)));
    } else if (is_name("is")) {
      FTH_ASSIGN_OR_RETURN(value, test(std::move(value)));
    } else if (is_symbol("(")) {
      FTH_ASSIGN_OR_RETURN(value, call(std::move(value)));
    } else {
      return value;
    }
  }
}

// The filter's name onwards.
Result<ExprPtr> ExpressionParser::filter(ExprPtr value) {
  ExprPtr node = make(ExprKind::filter);
  if (peek().kind != TokenKind::name) return unexpected("the name of a filter");
  node->builtin = find_filter(peek().text);
  if (node->builtin == nullptr && branches_ == 0) return error("the filter '" + peek().text + "' is not supported", Code::unimplemented);
  FTH_ASSIGN_OR_RETURN(node->name, expect_name());
  FTH_RETURN_IF_ERROR(add(*node, std::move(value)));
  if (is_symbol("(")) FTH_RETURN_IF_ERROR(arguments(*node));
  return node;
}

Result<ExprPtr> ExpressionParser::test(ExprPtr value) {
  ++pos_;
  const bool negated = skip_name("not");
  ExprPtr node = make(ExprKind::test);
  if (peek().kind != TokenKind::name) return unexpected("the name of a test");
  node->builtin = find_test(peek().text);
  if (node->builtin == nullptr && branches_ == 0) return error("the test '" + peek().text + "' is not supported", Code::unimplemented);
  FTH_ASSIGN_OR_RETURN(node->name, expect_name());
  FTH_RETURN_IF_ERROR(add(*node, std::move(value)));
  const TokenKind kind = peek().kind;
  if (is_symbol("(")) {
    FTH_RETURN_IF_ERROR(arguments(*node));
  } else if (((kind == TokenKind::name && !is_name("else") && !is_name("or") && !is_name("and")) || kind == TokenKind::string ||
              kind == TokenKind::integer || kind == TokenKind::floating || is_symbol("[") || is_symbol("{"))) {
    if (is_name("is")) return error("tests cannot be chained with 'is'");
    FTH_ASSIGN_OR_RETURN(ExprPtr argument, primary());
    FTH_ASSIGN_OR_RETURN(argument, postfix(std::move(argument)));
    FTH_RETURN_IF_ERROR(add(*node, std::move(argument)));
  }
  if (!negated) return node;
  ExprPtr opposite = make(ExprKind::logical_not);
  FTH_RETURN_IF_ERROR(add(*opposite, std::move(node)));
  return opposite;
}

}  // namespace fth::jinja
