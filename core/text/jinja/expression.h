#pragma once
// Expressions, from the tokens of a tag to a tree. The statements (parser.cpp) derive from this.

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/text/jinja/ast.h"
#include "core/text/jinja/lexer.h"

namespace fth::jinja {

class ExpressionParser {
 protected:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // Counts the nesting of statements and expressions while one is being parsed.
  class Nested {
   public:
    explicit Nested(int& depth) : depth_(depth) { ++depth_; }
    ~Nested() { --depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    int& depth_;
  };

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(pos_ + ahead, tokens_.size() - 1)]; }
  bool is_symbol(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::symbol && peek(ahead).text == text;
  }
  bool is_name(std::string_view text, size_t ahead = 0) const { return peek(ahead).kind == TokenKind::name && peek(ahead).text == text; }
  bool skip_symbol(std::string_view text) { return is_symbol(text) && (++pos_, true); }
  bool skip_name(std::string_view text) { return is_name(text) && (++pos_, true); }

  tl::unexpected<Error> error(const std::string& what, Code code = Code::data_loss) const;  // at the current token
  tl::unexpected<Error> unexpected(const std::string& wanted) const;
  tl::unexpected<Error> too_deep() const;
  Result<> expect_symbol(std::string_view text);
  Result<std::string> expect_name();

  ExprPtr make(ExprKind kind) const { return std::make_unique<Expr>(Expr{.kind = kind, .line = peek().line}); }
  // Adds an operand and keeps count of the depth, which chains of attributes, calls and filters raise without recursion here.
  Result<> add(Expr& parent, ExprPtr child);

  Result<ExprPtr> tuple(bool with_conditional = true, bool may_be_empty = false);  // "a" or "a, b"
  Result<ExprPtr> expression();
  Result<ExprPtr> filter(ExprPtr value);      // from a filter's name on
  Result<ExprPtr> filters_of(ExprPtr value);  // the "| name", "is name" and "(...)" that follow

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int depth_ = 0;
  int macros_ = 0;    // around the current token
  int branches_ = 0;  // around it: within an 'if', an unknown filter or test fails only when it is reached, as in Jinja

 private:
  // Operands joined by what skip_joint finds, as one node; a lone operand as itself.
  template <class Operand, class Joint>
  Result<ExprPtr> joined(ExprKind kind, Operand operand, Joint skip_joint);
  template <class Operand>
  Result<ExprPtr> chained(ExprKind kind, Operand operand, std::initializer_list<std::pair<std::string_view, Op>> operators);
  Result<ExprPtr> disjunction();
  Result<ExprPtr> conjunction();
  Result<ExprPtr> negation();
  Result<ExprPtr> compared();
  Result<ExprPtr> sum();
  Result<ExprPtr> concatenation();
  Result<ExprPtr> product();
  Result<ExprPtr> power();
  Result<ExprPtr> filtered_unary();
  Result<ExprPtr> unary();
  Result<ExprPtr> primary();
  Result<ExprPtr> name();
  Result<ExprPtr> number();
  Result<ExprPtr> brackets();
  Result<ExprPtr> postfix(ExprPtr value);
  Result<ExprPtr> member(ExprPtr value);
  Result<ExprPtr> element(ExprPtr value);
  Result<ExprPtr> call(ExprPtr callee);
  Result<ExprPtr> test(ExprPtr value);
  Result<> arguments(Expr& node);  // "(a, b, name=c)", appended to node.args
};

}  // namespace fth::jinja
