#include "core/text/jinja/interpreter.h"

#include <algorithm>
#include <utility>

#include "core/text/jinja/builtins.h"
#include "core/text/jinja/limits.h"
#include "core/text/jinja/operations.h"

namespace fth::jinja {

// Variables of a template, macro call, loop iteration or with-block; what is not set here is looked up outwards.
struct Scope {
  Variables variables;
  std::shared_ptr<Scope> outer;
};

namespace {

enum class Flow : uint8_t { next, leave_loop, next_item };

class Interpreter {
 public:
  Interpreter(Context& context, Variables variables) : context_(context), scope_(std::make_shared<Scope>()) {
    scope_->variables = std::move(variables);
  }

  Result<std::string> run(const Body& body) {
    if (const Result<Flow> flow = execute(body); !flow) {
      return fail(flow.error().code, "chat template: line " + std::to_string(line_) + ": " + flow.error().message);
    }
    return std::move(out_);
  }

 private:
  // Bounds the C++ stack; every recursion passes through execute(stmt) or evaluate.
  class Frame {
   public:
    explicit Frame(int& depth) : depth_(depth) { ++depth_; }
    ~Frame() { --depth_; }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    int& depth_;
  };

  // A new innermost scope for as long as this lives.
  class Inner {
   public:
    explicit Inner(Interpreter& interpreter) : Inner(interpreter, interpreter.scope_) {}
    Inner(Interpreter& interpreter, std::shared_ptr<Scope> outer) : interpreter_(interpreter), saved_(interpreter.scope_) {
      interpreter.scope_ = std::make_shared<Scope>(Scope{{}, std::move(outer)});
    }
    ~Inner() { interpreter_.scope_ = std::move(saved_); }
    Inner(const Inner&) = delete;
    Inner& operator=(const Inner&) = delete;

   private:
    Interpreter& interpreter_;
    std::shared_ptr<Scope> saved_;
  };

  Result<> enter(int line) {
    line_ = line;
    if (depth_ > kMaxDepth)
      return fail(Code::resource_exhausted, "evaluation nests more than " + std::to_string(kMaxDepth) + " levels deep");
    return context_.charge(1);
  }

  // Output bytes are counted over all open captures, so that captures within captures have one bound.
  Result<> write(std::string_view text) {
    if (text.size() > kMaxOutputBytes - open_bytes_) {
      return fail(Code::resource_exhausted, "more than " + std::to_string(kMaxOutputBytes) + " bytes of output");
    }
    FTH_RETURN_IF_ERROR(context_.charge_bytes(text.size()));
    open_bytes_ += text.size();
    out_.append(text);
    return {};
  }

  // --- statements

  Result<Flow> execute(const Body& body) {
    for (const StmtPtr& stmt : body) {
      FTH_ASSIGN_OR_RETURN(const Flow flow, execute(*stmt));
      if (flow != Flow::next) return flow;
    }
    return Flow::next;
  }

  Result<Flow> execute(const Stmt& stmt) {
    const Frame frame(depth_);
    FTH_RETURN_IF_ERROR(enter(stmt.line));
    switch (stmt.kind) {
      case StmtKind::text: FTH_RETURN_IF_ERROR(write(stmt.name)); return Flow::next;
      case StmtKind::output: return output(*stmt.exprs[0]);
      case StmtKind::branch: return branch(stmt);
      case StmtKind::loop: return loop(stmt);
      case StmtKind::set: {
        FTH_ASSIGN_OR_RETURN(Value value, evaluate(*stmt.exprs[0]));
        FTH_RETURN_IF_ERROR(assign(*stmt.target, std::move(value)));
        return Flow::next;
      }
      case StmtKind::set_block: return set_block(stmt);
      case StmtKind::filter: return filter_block(stmt);
      case StmtKind::macro: set(stmt.name, macro(stmt)); return Flow::next;
      case StmtKind::call: return call_block(stmt);
      case StmtKind::with: return with(stmt);
      case StmtKind::generation: {
        const Inner inner(*this);
        return execute(stmt.bodies[0]);
      }
      case StmtKind::stop: return Flow::leave_loop;
      case StmtKind::next: return Flow::next_item;
    }
    return fail(Code::internal, "unknown statement");
  }

  Result<Flow> output(const Expr& expr) {
    FTH_ASSIGN_OR_RETURN(const Value value, evaluate(expr));
    if (const std::string* text = value.text()) {
      FTH_RETURN_IF_ERROR(write(*text));
    } else {
      FTH_ASSIGN_OR_RETURN(const std::string printed, to_str(context_, value));
      FTH_RETURN_IF_ERROR(write(printed));
    }
    return Flow::next;
  }

  Result<Flow> branch(const Stmt& stmt) {
    for (size_t i = 0; i < stmt.exprs.size(); ++i) {
      FTH_ASSIGN_OR_RETURN(const Value condition, evaluate(*stmt.exprs[i]));
      if (is_true(condition)) return execute(stmt.bodies[i]);
    }
    if (stmt.bodies.size() > stmt.exprs.size()) return execute(stmt.bodies.back());
    return Flow::next;
  }

  Result<Flow> loop(const Stmt& stmt) {
    FTH_ASSIGN_OR_RETURN(Value iterable, evaluate(*stmt.exprs[0]));
    if (iterable.list() == nullptr || stmt.exprs[1] != nullptr) {
      FTH_ASSIGN_OR_RETURN(Values items, iterate(context_, iterable));
      if (stmt.exprs[1] != nullptr) FTH_RETURN_IF_ERROR(keep_matching(stmt, items));
      FTH_ASSIGN_OR_RETURN(iterable, context_.list(std::move(items)));
    }
    FTH_RETURN_IF_ERROR(check_nesting(iterable));
    const auto state = std::make_shared<Loop>(Loop{std::get<std::shared_ptr<const List>>(iterable.v)});
    Flow flow = Flow::next;
    for (const Value& item : state->items->items) {
      const Inner inner(*this);
      set("loop", Value{state});
      FTH_RETURN_IF_ERROR(assign(*stmt.target, item));
      FTH_ASSIGN_OR_RETURN(flow, execute(stmt.bodies[0]));
      if (flow == Flow::leave_loop) break;
      ++state->index0;
    }
    if (!state->items->items.empty()) return Flow::next;
    const Inner inner(*this);
    return execute(stmt.bodies[1]);
  }

  // {% for x in items if condition %}: what does not match is not counted by loop.length either.
  Result<> keep_matching(const Stmt& stmt, Values& items) {
    Values kept;
    for (Value& item : items) {
      const Inner inner(*this);
      FTH_RETURN_IF_ERROR(assign(*stmt.target, item));
      FTH_ASSIGN_OR_RETURN(const Value condition, evaluate(*stmt.exprs[1]));
      if (is_true(condition)) kept.push_back(std::move(item));
    }
    items = std::move(kept);
    return {};
  }

  // What `body` writes, as a string. Left by break or continue, the text is dropped and `flow` says so.
  Result<Value> capture(const Body& body, Flow& flow) {
    std::string saved = std::exchange(out_, {});
    Result<Flow> result = execute(body);
    std::string text = std::exchange(out_, std::move(saved));
    open_bytes_ -= text.size();
    FTH_RETURN_IF_ERROR(result);
    flow = *result;
    return context_.text(std::move(text));
  }

  // The same through the filters of `filters`, which start at the variable kCaptured.
  Result<Value> captured(const Stmt& stmt, const Expr* filters, Flow& flow) {
    const Inner inner(*this);
    FTH_ASSIGN_OR_RETURN(Value text, capture(stmt.bodies[0], flow));
    if (filters == nullptr || flow != Flow::next) return text;
    set(kCaptured, std::move(text));
    return evaluate(*filters);
  }

  Result<Flow> set_block(const Stmt& stmt) {
    Flow flow = Flow::next;
    FTH_ASSIGN_OR_RETURN(Value text, captured(stmt, stmt.exprs[0].get(), flow));
    if (flow == Flow::next) FTH_RETURN_IF_ERROR(assign(*stmt.target, std::move(text)));
    return flow;
  }

  Result<Flow> filter_block(const Stmt& stmt) {
    Flow flow = Flow::next;
    FTH_ASSIGN_OR_RETURN(const Value text, captured(stmt, stmt.exprs[0].get(), flow));
    FTH_ASSIGN_OR_RETURN(const std::string printed, to_str(context_, text));
    if (flow == Flow::next) FTH_RETURN_IF_ERROR(write(printed));
    return flow;
  }

  Result<Flow> with(const Stmt& stmt) {
    Values values;
    for (const ExprPtr& expr : stmt.exprs) {
      FTH_ASSIGN_OR_RETURN(Value value, evaluate(*expr));
      values.push_back(std::move(value));
    }
    const Inner inner(*this);
    for (size_t i = 0; i < values.size(); ++i) set(stmt.params[i], std::move(values[i]));
    return execute(stmt.bodies[0]);
  }

  Value macro(const Stmt& stmt) const {
    return Value{std::make_shared<const Function>(Function{.name = stmt.name, .macro = &stmt, .scope = scope_})};
  }

  Result<Flow> call_block(const Stmt& stmt) {
    const Value caller = macro(*stmt.bodies[0][0]);
    FTH_ASSIGN_OR_RETURN(const Value value, call(*stmt.exprs[0], &caller));
    FTH_ASSIGN_OR_RETURN(const std::string printed, to_str(context_, value));
    FTH_RETURN_IF_ERROR(write(printed));
    return Flow::next;
  }

  // --- variables

  void set(const std::string& name, Value value) { scope_->variables.insert_or_assign(name, std::move(value)); }

  Value look_up(const std::string& name) const {
    for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->outer.get()) {
      if (const auto found = scope->variables.find(name); found != scope->variables.end()) return found->second;
    }
    if (const Builtin* function = find_function(name)) {
      return Value{std::make_shared<const Function>(Function{.name = name, .builtin = function})};
    }
    return undefined_value("'" + name + "' is undefined");
  }

  Result<> assign(const Expr& target, Value value) {
    if (target.kind == ExprKind::variable) {
      set(target.name, std::move(value));
      return {};
    }
    if (target.kind == ExprKind::attribute) {
      const Value owner = look_up(target.args[0]->name);
      if (owner.name_space() == nullptr) {
        return type_error("cannot assign '" + target.args[0]->name + "." + target.name + "': only a namespace has attributes to assign");
      }
      owner.name_space()->slots.insert_or_assign(target.name, std::move(value));
      return {};
    }
    FTH_ASSIGN_OR_RETURN(Values items, iterate(context_, value));
    if (items.size() != target.args.size()) {
      return type_error("cannot unpack " + std::to_string(items.size()) + " values into " + std::to_string(target.args.size()) + " names");
    }
    for (size_t i = 0; i < items.size(); ++i) FTH_RETURN_IF_ERROR(assign(*target.args[i], std::move(items[i])));
    return {};
  }

  // --- expressions

  Result<Value> evaluate(const Expr& expr) {
    const Frame frame(depth_);
    FTH_RETURN_IF_ERROR(enter(expr.line));
    switch (expr.kind) {
      case ExprKind::constant: return expr.value;
      case ExprKind::variable: return look_up(expr.name);
      case ExprKind::list:
      case ExprKind::tuple: {
        FTH_ASSIGN_OR_RETURN(Values items, operands(expr, 0));
        return context_.list(std::move(items), expr.kind == ExprKind::tuple);
      }
      case ExprKind::dict: return dict(expr);
      case ExprKind::chain: return chain(expr);
      case ExprKind::comparison: return compared(expr);
      case ExprKind::all_of: return decided(expr, false);
      case ExprKind::any_of: return decided(expr, true);
      case ExprKind::concat: return concat(expr);
      case ExprKind::logical_not: {
        FTH_ASSIGN_OR_RETURN(const Value value, evaluate(*expr.args[0]));
        return Value{!is_true(value)};
      }
      case ExprKind::minus:
      case ExprKind::plus: {
        FTH_ASSIGN_OR_RETURN(Value value, evaluate(*expr.args[0]));
        FTH_ASSIGN_OR_RETURN(value, negative(value));
        return expr.kind == ExprKind::minus ? std::move(value) : negative(value);
      }
      case ExprKind::conditional: return conditional(expr);
      case ExprKind::attribute: {
        FTH_ASSIGN_OR_RETURN(const Value value, evaluate(*expr.args[0]));
        line_ = expr.line;
        return attribute(context_, value, expr.name);
      }
      case ExprKind::index: {
        FTH_ASSIGN_OR_RETURN(const Values parts, operands(expr, 0));
        line_ = expr.line;
        return subscript(context_, parts[0], parts[1]);
      }
      case ExprKind::slice: {
        FTH_ASSIGN_OR_RETURN(const Values parts, operands(expr, 0));
        line_ = expr.line;
        return slice(context_, parts[0], parts[1], parts[2], parts[3]);
      }
      case ExprKind::call: return call(expr, nullptr);
      case ExprKind::filter:
      case ExprKind::test: {
        FTH_ASSIGN_OR_RETURN(const Value self, evaluate(*expr.args[0]));
        Arguments arguments{{}, expr.keywords};
        FTH_ASSIGN_OR_RETURN(arguments.values, operands(expr, 1));
        line_ = expr.line;
        if (expr.builtin == nullptr) {
          const std::string kind = expr.kind == ExprKind::filter ? "the filter '" : "the test '";
          return fail(Code::unimplemented, kind + expr.name + "' is not supported");
        }
        return run_builtin(context_, *expr.builtin, self, arguments);
      }
    }
    return fail(Code::internal, "unknown expression");
  }

  // The values of args[first...]; none for an absent part of a slice.
  Result<Values> operands(const Expr& expr, size_t first) {
    Values values;
    values.reserve(expr.args.size() - first);
    for (size_t i = first; i < expr.args.size(); ++i) {
      Value value;
      if (expr.args[i] != nullptr) {
        FTH_ASSIGN_OR_RETURN(value, evaluate(*expr.args[i]));
      }
      values.push_back(std::move(value));
    }
    return values;
  }

  Result<Value> dict(const Expr& expr) {
    FTH_ASSIGN_OR_RETURN(Values parts, operands(expr, 0));
    std::vector<std::pair<Value, Value>> entries;
    for (size_t i = 0; i + 1 < parts.size(); i += 2) entries.emplace_back(std::move(parts[i]), std::move(parts[i + 1]));
    line_ = expr.line;
    return context_.dict(std::move(entries));
  }

  Result<Value> chain(const Expr& expr) {
    FTH_ASSIGN_OR_RETURN(Value value, evaluate(*expr.args[0]));
    for (size_t i = 0; i < expr.ops.size(); ++i) {
      FTH_ASSIGN_OR_RETURN(const Value next, evaluate(*expr.args[i + 1]));
      line_ = expr.line;
      FTH_ASSIGN_OR_RETURN(value, arithmetic(context_, expr.ops[i], value, next));
    }
    return value;
  }

  Result<Value> compared(const Expr& expr) {
    FTH_ASSIGN_OR_RETURN(Value left, evaluate(*expr.args[0]));
    for (size_t i = 0; i < expr.ops.size(); ++i) {
      FTH_ASSIGN_OR_RETURN(Value right, evaluate(*expr.args[i + 1]));
      line_ = expr.line;
      FTH_ASSIGN_OR_RETURN(const bool holds, comparison(context_, expr.ops[i], left, right));
      if (!holds) return Value{false};
      left = std::move(right);
    }
    return Value{true};
  }

  // `and` and `or` give the operand that decides, not its truth.
  Result<Value> decided(const Expr& expr, bool deciding) {
    Value value;
    for (const ExprPtr& operand : expr.args) {
      FTH_ASSIGN_OR_RETURN(value, evaluate(*operand));
      if (is_true(value) == deciding) break;
    }
    return value;
  }

  Result<Value> concat(const Expr& expr) {
    FTH_ASSIGN_OR_RETURN(const Values parts, operands(expr, 0));
    std::string out;
    for (const Value& part : parts) FTH_RETURN_IF_ERROR(append_str(context_, out, part));
    return context_.text(std::move(out));
  }

  Result<Value> conditional(const Expr& expr) {
    FTH_ASSIGN_OR_RETURN(const Value condition, evaluate(*expr.args[1]));
    if (is_true(condition)) return evaluate(*expr.args[0]);
    if (expr.args[2] != nullptr) return evaluate(*expr.args[2]);
    return undefined_value("an inline 'if' was false and has no 'else'");
  }

  Result<Value> call(const Expr& expr, const Value* caller) {
    FTH_ASSIGN_OR_RETURN(const Value callee, evaluate(*expr.args[0]));
    Arguments arguments{{}, expr.keywords};
    FTH_ASSIGN_OR_RETURN(arguments.values, operands(expr, 1));
    line_ = expr.line;
    const Function* function = callee.function();
    if (function == nullptr) {
      const Undefined* undefined = callee.undefined();
      if (undefined != nullptr && undefined->is_method) return fail(Code::unimplemented, undefined->reason + " that is a supported method");
      return type_error(undefined != nullptr ? undefined->reason : "'" + std::string(type_name(callee)) + "' object is not callable");
    }
    if (function->macro != nullptr) return call_macro(*function, arguments, caller);
    if (caller != nullptr) return type_error("a call block needs a macro, not '" + function->name + "'");
    return run_builtin(context_, *function->builtin, function->self, arguments);
  }

  Result<Value> call_macro(const Function& function, const Arguments& arguments, const Value* caller) {
    if (macros_ >= kMaxMacroDepth)
      return fail(Code::resource_exhausted, "macros call each other more than " + std::to_string(kMaxMacroDepth) + " deep");
    std::shared_ptr<Scope> defined_in = function.scope.lock();
    if (defined_in == nullptr) return type_error("the macro '" + function.name + "' is called outside of the block that defines it");
    const Stmt& macro = *function.macro;
    const Inner inner(*this, std::move(defined_in));
    ++macros_;
    Result<> bound = bind(macro, arguments);
    if (caller != nullptr) set("caller", *caller);
    Flow flow = Flow::next;
    Result<Value> text = bound ? capture(macro.bodies[0], flow) : Result<Value>(tl::unexpected<Error>(bound.error()));
    --macros_;
    return text;
  }

  Result<> bind(const Stmt& macro, const Arguments& arguments) {
    const std::string name = "macro '" + macro.name + "'";
    const size_t n_positional = arguments.values.size() - arguments.keywords.size(), n_params = macro.params.size();
    if (n_positional > n_params)
      return type_error(name + " takes " + std::to_string(n_params) + " arguments, not " + std::to_string(n_positional));
    for (size_t i = 0; i < n_positional; ++i) set(macro.params[i], arguments.values[i]);
    for (size_t i = 0; i < arguments.keywords.size(); ++i) {
      const auto param = std::find(macro.params.begin(), macro.params.end(), arguments.keywords[i]);
      if (param == macro.params.end()) return type_error(name + " has no parameter '" + arguments.keywords[i] + "'");
      if (scope_->variables.contains(*param)) return type_error(name + " got '" + *param + "' twice");
      set(*param, arguments.values[n_positional + i]);
    }
    const size_t first_default = n_params - macro.exprs.size();
    for (size_t i = 0; i < n_params; ++i) {
      if (scope_->variables.contains(macro.params[i])) continue;
      Value value = undefined_value("parameter '" + macro.params[i] + "' was not provided");
      if (i >= first_default) {
        FTH_ASSIGN_OR_RETURN(value, evaluate(*macro.exprs[i - first_default]));
      }
      set(macro.params[i], std::move(value));
    }
    return {};
  }

  Context& context_;
  std::shared_ptr<Scope> scope_;  // shared with the macros defined in it and the scopes inside it
  std::string out_;
  uint64_t open_bytes_ = 0;
  int line_ = 1;
  int depth_ = 0, macros_ = 0;
};

}  // namespace

Result<std::string> render(const Body& body, Context& context, Variables variables) {
  return Interpreter(context, std::move(variables)).run(body);
}

}  // namespace fth::jinja
