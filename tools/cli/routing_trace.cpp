// Rows are kept until the end: a prompt's come layer by layer, the file has them token by token.
#include "tools/cli/routing_trace.h"

#include <fstream>

namespace fth::cli {

RoutingTrace::RoutingTrace(Session& session) {
  session.set_on_routing([this](int64_t layer, int64_t first_pos, int64_t rows, int64_t top_k, const int32_t* ids) {
    for (int64_t r = 0; r < rows; ++r) rows_[{first_pos + r, layer}].assign(ids + r * top_k, ids + (r + 1) * top_k);
  });
}

Result<> RoutingTrace::write(const std::filesystem::path& path, const Engine& engine) const {
  const Config& c = engine.model().config;
  auto part = path;
  part += ".part";
  {
    std::ofstream out(part);
    out << "forethought-trace 1\nmodel " << engine.options().model.filename().string() << "\nsource recorded\nshape " << c.n_layer << ' '
        << c.n_expert << ' ' << c.top_k << '\n';
    for (const auto& [at, ids] : rows_) {
      out << at.first << ' ' << at.second;
      for (const int32_t id : ids) out << ' ' << id;
      out << '\n';
    }
    out.close();
    if (!out) return fail(Code::failed_precondition, "--trace-routing " + path.string() + ": cannot be written");
  }
  std::error_code error;
  std::filesystem::rename(part, path, error);
  if (error) return fail(Code::failed_precondition, "--trace-routing " + path.string() + ": " + error.message());
  return {};
}

}  // namespace fth::cli
