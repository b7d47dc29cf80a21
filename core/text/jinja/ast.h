#pragma once
// A parsed template. Built once by the parser, never changed afterwards, read by any number of renderings at once.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/text/jinja/value.h"

namespace fth::jinja {

enum class ExprKind : uint8_t {
  constant,     // value
  variable,     // name
  list,         // args
  tuple,        // args
  dict,         // args: key, value, key, value, ...
  chain,        // args[0] ops[0] args[1] ops[1] ..., from the left
  comparison,   // the same, all of them true: a < b < c
  all_of,       // and
  any_of,       // or
  concat,       // ~
  logical_not,  // args[0]
  minus,        // args[0]
  plus,         // args[0]
  conditional,  // args: then, condition, else or null
  attribute,    // args[0].name
  index,        // args[0][args[1]]
  slice,        // args[0][args[1]:args[2]:args[3]], null where absent
  call,         // args[0](args...)
  filter,       // args[0] | name(args...); builtin, null if there is none
  test,         // args[0] is name(args...); likewise
};

enum class Op : uint8_t { add, subtract, multiply, divide, floor_divide, modulo, power, eq, ne, lt, le, gt, ge, in, not_in };

struct Expr {
  ExprKind kind;
  int line = 1;
  int depth = 1;  // of the tree below, at most kMaxNesting
  std::string name{};
  Value value{};
  std::vector<std::unique_ptr<Expr>> args{};
  std::vector<Op> ops{};
  std::vector<std::string> keywords{};  // of the last keywords.size() args of a call, filter or test
  const Builtin* builtin = nullptr;
};
using ExprPtr = std::unique_ptr<Expr>;

enum class StmtKind : uint8_t {
  text,        // name
  output,      // exprs[0]
  branch,      // bodies[i] if exprs[i]; one more body is the else
  loop,        // target in exprs[0] if exprs[1] (may be null): bodies[0]; bodies[1] if there was no item
  set,         // target = exprs[0]
  set_block,   // target = bodies[0] as text, through the filters of exprs[0] (may be null)
  macro,       // name(params): bodies[0]; exprs are the defaults of the last params
  call,        // exprs[0] is a call, given a caller(params) that renders bodies[0]
  filter,      // bodies[0] through exprs[0]
  with,        // params[i] = exprs[i] for bodies[0]
  generation,  // bodies[0] in a scope of its own: it only marks the assistant's words for training
  stop,        // break
  next,        // continue
};

struct Stmt {
  StmtKind kind;
  int line = 1;
  std::string name{};
  ExprPtr target{};
  std::vector<ExprPtr> exprs{};
  std::vector<std::string> params{};
  std::vector<std::vector<std::unique_ptr<Stmt>>> bodies{};
};
using StmtPtr = std::unique_ptr<Stmt>;
using Body = std::vector<StmtPtr>;

// The variable that holds a captured block while its filters run; no name in a source can be this one.
inline constexpr const char* kCaptured = "(block)";

}  // namespace fth::jinja
