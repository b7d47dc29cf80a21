#include "core/text/jinja/parser.h"

#include <algorithm>
#include <utility>

#include "core/text/jinja/expression.h"
#include "core/text/jinja/limits.h"

namespace fth::jinja {
namespace {

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  Result<Body> run() { return statements({}); }

 private:
  using Names = std::initializer_list<std::string_view>;

  Result<> expect_end(TokenKind kind) {
    if (peek().kind != kind) return unexpected("the end of the tag");
    ++pos_;
    return {};
  }

  // Up to a tag whose name is one of `ends`, which stays the current token; without ends, up to the template's end.
  Result<Body> statements(Names ends) {
    const Nested nested(depth_);
    if (depth_ > kMaxNesting) return too_deep();
    Body body;
    while (true) {
      const Token& token = peek();
      switch (token.kind) {
        case TokenKind::text:
          body.push_back(std::make_unique<Stmt>(Stmt{.kind = StmtKind::text, .line = token.line, .name = std::move(tokens_[pos_].text)}));
          ++pos_;
          break;
        case TokenKind::variable_begin: {
          ++pos_;
          StmtPtr output = statement(StmtKind::output);
          FTH_ASSIGN_OR_RETURN(ExprPtr value, tuple());
          output->exprs.push_back(std::move(value));
          FTH_RETURN_IF_ERROR(expect_end(TokenKind::variable_end));
          body.push_back(std::move(output));
          break;
        }
        case TokenKind::block_begin: {
          ++pos_;
          if (peek().kind != TokenKind::name) return unexpected("the name of a tag");
          if (std::find(ends.begin(), ends.end(), std::string_view(peek().text)) != ends.end()) return body;
          FTH_ASSIGN_OR_RETURN(StmtPtr tag, block());
          FTH_RETURN_IF_ERROR(expect_end(TokenKind::block_end));
          body.push_back(std::move(tag));
          break;
        }
        default:
          if (ends.size() == 0) return body;
          return unexpected("'" + std::string(*(ends.end() - 1)) + "'");
      }
    }
  }

  StmtPtr statement(StmtKind kind) const { return std::make_unique<Stmt>(Stmt{.kind = kind, .line = peek().line}); }

  // The end of a tag, then statements up to `ends`. The end tag's name is consumed unless there is a choice.
  Result<> body_of(Stmt& stmt, Names ends) {
    FTH_RETURN_IF_ERROR(expect_end(TokenKind::block_end));
    FTH_ASSIGN_OR_RETURN(Body body, statements(ends));
    stmt.bodies.push_back(std::move(body));
    if (ends.size() == 1) ++pos_;
    return {};
  }

  Result<StmtPtr> block() {
    const std::string tag = peek().text;
    if (tag == "if") return branch();
    if (tag == "for") return loop();
    if (tag == "set") return set();
    if (tag == "macro") return macro();
    if (tag == "call") return call_block();
    if (tag == "filter") return filter_block();
    if (tag == "with") return with();
    if (tag == "generation") {
      StmtPtr stmt = statement(StmtKind::generation);
      ++pos_;
      FTH_RETURN_IF_ERROR(body_of(*stmt, {"endgeneration"}));
      return stmt;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) return error("'" + tag + "' outside of a loop");
      StmtPtr stmt = statement(tag == "break" ? StmtKind::stop : StmtKind::next);
      ++pos_;
      return stmt;
    }
    for (const std::string_view known :
         {"autoescape", "block", "debug", "do", "extends", "from", "import", "include", "pluralize", "trans"}) {
      if (tag == known) return error("the tag '" + tag + "' is not supported", Code::unimplemented);
    }
    return error("unknown tag '" + tag + "'");
  }

  Result<StmtPtr> branch() {
    StmtPtr stmt = statement(StmtKind::branch);
    ++branches_;
    while (true) {
      const bool is_else = is_name("else");
      ++pos_;
      if (is_else) {
        FTH_RETURN_IF_ERROR(body_of(*stmt, {"endif"}));
        break;
      }
      FTH_ASSIGN_OR_RETURN(ExprPtr condition, tuple(/*with_conditional=*/false));
      stmt->exprs.push_back(std::move(condition));
      FTH_RETURN_IF_ERROR(body_of(*stmt, {"elif", "else", "endif"}));
      if (skip_name("endif")) break;
    }
    --branches_;
    return stmt;
  }

  Result<StmtPtr> loop() {
    StmtPtr stmt = statement(StmtKind::loop);
    ++pos_;
    FTH_ASSIGN_OR_RETURN(stmt->target, target(/*may_be_attribute=*/false));
    if (!skip_name("in")) return unexpected("'in'");
    FTH_ASSIGN_OR_RETURN(ExprPtr items, tuple(/*with_conditional=*/false));
    stmt->exprs.push_back(std::move(items));
    ExprPtr condition;
    if (skip_name("if")) {
      FTH_ASSIGN_OR_RETURN(condition, expression());
    }
    stmt->exprs.push_back(std::move(condition));
    if (is_name("recursive")) return error("recursive loops are not supported", Code::unimplemented);
    ++loops_;
    FTH_RETURN_IF_ERROR(body_of(*stmt, {"else", "endfor"}));
    --loops_;
    if (skip_name("else")) {
      FTH_RETURN_IF_ERROR(body_of(*stmt, {"endfor"}));
    } else {
      ++pos_;
      stmt->bodies.emplace_back();
    }
    return stmt;
  }

  Result<StmtPtr> set() {
    StmtPtr stmt = statement(StmtKind::set);
    ++pos_;
    FTH_ASSIGN_OR_RETURN(stmt->target, target(/*may_be_attribute=*/true));
    if (skip_symbol("=")) {
      FTH_ASSIGN_OR_RETURN(ExprPtr value, tuple());
      stmt->exprs.push_back(std::move(value));
      return stmt;
    }
    stmt->kind = StmtKind::set_block;
    ExprPtr filters;
    if (is_symbol("|")) {
      FTH_ASSIGN_OR_RETURN(filters, filters_of(captured()));
    }
    stmt->exprs.push_back(std::move(filters));
    FTH_RETURN_IF_ERROR(body_of(*stmt, {"endset"}));
    return stmt;
  }

  // Stands for the text of the block in the filters of {% set x | trim %} and {% filter trim %}.
  ExprPtr captured() const {
    ExprPtr expr = make(ExprKind::variable);
    expr->name = kCaptured;
    return expr;
  }

  Result<> params_of(Stmt& stmt) {
    FTH_RETURN_IF_ERROR(expect_symbol("("));
    while (!is_symbol(")")) {
      if (!stmt.params.empty()) FTH_RETURN_IF_ERROR(expect_symbol(","));
      FTH_ASSIGN_OR_RETURN(std::string name, expect_name());
      stmt.params.push_back(std::move(name));
      if (skip_symbol("=")) {
        FTH_ASSIGN_OR_RETURN(ExprPtr value, expression());
        stmt.exprs.push_back(std::move(value));
      } else if (!stmt.exprs.empty()) {
        return error("a parameter without a default after one with");
      }
    }
    ++pos_;
    return {};
  }

  // The body of a macro or of a call block: a function of its own, so no loop around it can be left from within.
  Result<> function_body(Stmt& stmt, std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    ++macros_;
    FTH_RETURN_IF_ERROR(body_of(stmt, {end}));
    --macros_;
    loops_ = loops;
    return {};
  }

  Result<StmtPtr> macro() {
    StmtPtr stmt = statement(StmtKind::macro);
    ++pos_;
    FTH_ASSIGN_OR_RETURN(stmt->name, expect_name());
    FTH_RETURN_IF_ERROR(params_of(*stmt));
    FTH_RETURN_IF_ERROR(function_body(*stmt, "endmacro"));
    return stmt;
  }

  // A Stmt of its own holds the caller's parameters and body, since defaults and the call both need `exprs`.
  Result<StmtPtr> call_block() {
    StmtPtr stmt = statement(StmtKind::call);
    ++pos_;
    StmtPtr caller = std::make_unique<Stmt>(Stmt{.kind = StmtKind::macro, .line = stmt->line, .name = "caller"});
    if (is_symbol("(")) FTH_RETURN_IF_ERROR(params_of(*caller));
    FTH_ASSIGN_OR_RETURN(ExprPtr call, expression());
    if (call->kind != ExprKind::call) return error("expected a call after 'call'");
    stmt->exprs.push_back(std::move(call));
    FTH_RETURN_IF_ERROR(function_body(*caller, "endcall"));
    stmt->bodies.emplace_back();
    stmt->bodies[0].push_back(std::move(caller));
    return stmt;
  }

  Result<StmtPtr> filter_block() {
    StmtPtr stmt = statement(StmtKind::filter);
    ++pos_;
    ExprPtr filters = captured();
    FTH_ASSIGN_OR_RETURN(filters, filter(std::move(filters)));
    FTH_ASSIGN_OR_RETURN(filters, filters_of(std::move(filters)));
    stmt->exprs.push_back(std::move(filters));
    FTH_RETURN_IF_ERROR(body_of(*stmt, {"endfilter"}));
    return stmt;
  }

  Result<StmtPtr> with() {
    StmtPtr stmt = statement(StmtKind::with);
    ++pos_;
    while (peek().kind != TokenKind::block_end) {
      if (!stmt->params.empty()) FTH_RETURN_IF_ERROR(expect_symbol(","));
      FTH_ASSIGN_OR_RETURN(std::string name, expect_name());
      stmt->params.push_back(std::move(name));
      FTH_RETURN_IF_ERROR(expect_symbol("="));
      FTH_ASSIGN_OR_RETURN(ExprPtr value, expression());
      stmt->exprs.push_back(std::move(value));
    }
    FTH_RETURN_IF_ERROR(body_of(*stmt, {"endwith"}));
    return stmt;
  }

  // What can be assigned: a name, "a, b", or with `set` a namespace's slot.
  Result<ExprPtr> target(bool may_be_attribute) {
    FTH_ASSIGN_OR_RETURN(ExprPtr first, one_target(may_be_attribute));
    if (!is_symbol(",")) return first;
    ExprPtr names = make(ExprKind::tuple);
    FTH_RETURN_IF_ERROR(add(*names, std::move(first)));
    while (skip_symbol(",") && (peek().kind == TokenKind::name || is_symbol("(")) && !is_name("in")) {
      FTH_ASSIGN_OR_RETURN(ExprPtr next, one_target(/*may_be_attribute=*/false));
      FTH_RETURN_IF_ERROR(add(*names, std::move(next)));
    }
    return names;
  }

  Result<ExprPtr> one_target(bool may_be_attribute) {
    const Nested nested(depth_);
    if (depth_ > kMaxNesting) return too_deep();
    if (skip_symbol("(")) {
      FTH_ASSIGN_OR_RETURN(ExprPtr inner, target(/*may_be_attribute=*/false));
      FTH_RETURN_IF_ERROR(expect_symbol(")"));
      return inner;
    }
    ExprPtr expr = make(ExprKind::variable);
    FTH_ASSIGN_OR_RETURN(expr->name, expect_name());
    for (const std::string_view reserved : {"true", "false", "none", "True", "False", "None", "loop"}) {
      if (expr->name == reserved) return error("cannot assign to '" + expr->name + "'");
    }
    if (!may_be_attribute || !skip_symbol(".")) return expr;
    ExprPtr slot = make(ExprKind::attribute);
    FTH_ASSIGN_OR_RETURN(slot->name, expect_name());
    FTH_RETURN_IF_ERROR(add(*slot, std::move(expr)));
    return slot;
  }

  int loops_ = 0;  // around the current token, within its macro
};

}  // namespace

Result<Body> parse(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return fail(Code::resource_exhausted,
                "chat template: " + std::to_string(source.size()) + " bytes; at most " + std::to_string(kMaxSourceBytes));
  }
  FTH_ASSIGN_OR_RETURN(std::vector<Token> tokens, tokenize(source));
  return Parser(std::move(tokens)).run();
}

}  // namespace fth::jinja
