// Reading, writing, making up and describing traces.
#include "core/experts/trace.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>
#include <string_view>
#include <utility>

namespace fth {
namespace {

constexpr std::string_view kMagic = "forethought-trace 1";
constexpr int64_t kMaxLayers = 4096, kMaxExperts = 4096;
constexpr double kNever = -1e30;  // log-odds of an expert that is not drawn
constexpr uintmax_t kMostBytes = 256 << 20;

bool take(std::string_view* line, int64_t* out) {
  while (!line->empty() && line->front() == ' ') line->remove_prefix(1);
  const auto [end, error] = std::from_chars(line->data(), line->data() + line->size(), *out);
  if (error != std::errc{}) return false;
  line->remove_prefix(static_cast<size_t>(end - line->data()));
  return true;
}

}  // namespace

Result<ExpertTrace> read_trace(const std::filesystem::path& path) {
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) return fail(Code::not_found, path.string() + ": " + error.message());
  if (bytes > kMostBytes) return fail(Code::data_loss, path.string() + ": a trace of more than 256 MiB");
  std::ifstream in(path);
  if (!in) return fail(Code::not_found, path.string() + ": " + std::strerror(errno));
  ExpertTrace t;
  std::string text;
  int64_t number = 0;
  const auto bad = [&](const std::string& what) {
    return fail(Code::data_loss, path.string() + ":" + std::to_string(number) + ": " + what);
  };
  while (std::getline(in, text)) {
    ++number;
    std::string_view line = text;
    if (number == 1) {
      if (line != kMagic) return bad("not \"" + std::string(kMagic) + "\"");
      continue;
    }
    if (line.empty() || line.front() == '#') continue;
    if (line.starts_with("model ")) {
      t.model = line.substr(6);
    } else if (line.starts_with("source ")) {
      t.source = line.substr(7);
    } else if (line.starts_with("shape ")) {
      line.remove_prefix(6);
      if (!take(&line, &t.n_layer) || !take(&line, &t.n_expert) || !take(&line, &t.top_k) || !line.empty())
        return bad("not \"shape LAYERS EXPERTS TOP_K\"");
      if (t.n_layer < 1 || t.n_layer > kMaxLayers || t.n_expert < 1 || t.n_expert > kMaxExperts || t.top_k < 1 || t.top_k > t.n_expert)
        return bad("the shape is out of range");
      t.sparse.assign(static_cast<size_t>(t.n_layer), false);
    } else {
      if (t.n_layer == 0) return bad("a row before \"shape\"");
      int64_t token = 0, layer = 0, id = 0;
      if (!take(&line, &token) || !take(&line, &layer)) return bad("not \"TOKEN LAYER IDS...\"");
      ExpertTrace::Row row{static_cast<int32_t>(token), static_cast<int32_t>(layer), {}};
      while (take(&line, &id)) {
        if (id < 0 || id >= t.n_expert) return bad("expert " + std::to_string(id) + " of " + std::to_string(t.n_expert));
        if (std::find(row.experts.begin(), row.experts.end(), id) != row.experts.end())
          return bad("expert " + std::to_string(id) + " twice");
        row.experts.push_back(static_cast<int32_t>(id));
      }
      if (!line.empty()) return bad("\"" + std::string(line.substr(0, 20)) + "\" is not an expert");
      const bool follows =
          t.rows.empty() ? token == 0 : (token == t.rows.back().token && layer > t.rows.back().layer) || token == t.rows.back().token + 1;
      if (layer < 0 || layer >= t.n_layer || !follows) return bad("tokens and layers do not come in order");
      if (static_cast<int64_t>(row.experts.size()) > t.top_k || row.experts.empty())
        return bad(std::to_string(row.experts.size()) + " experts, top_k is " + std::to_string(t.top_k));
      t.sparse[static_cast<size_t>(layer)] = true;
      t.n_tokens = token + 1;
      t.rows.push_back(std::move(row));
    }
  }
  if (t.rows.empty()) return bad("no rows");
  return t;
}

Result<> write_trace(const std::filesystem::path& path, const ExpertTrace& trace, const std::string& comment) {
  std::string text = std::string(kMagic) + (comment.empty() ? "" : "\n# " + comment) + "\nmodel " + trace.model + "\nsource " +
                     trace.source + "\nshape " + std::to_string(trace.n_layer) + ' ' + std::to_string(trace.n_expert) + ' ' +
                     std::to_string(trace.top_k) + '\n';
  for (const auto& row : trace.rows) {
    text += std::to_string(row.token) + ' ' + std::to_string(row.layer);
    for (const int32_t e : row.experts) text += ' ' + std::to_string(e);
    text += '\n';
  }
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  out.close();
  if (!out) return fail(Code::unavailable, "write " + path.string() + ": " + std::strerror(errno));
  return {};
}

namespace {

// The k largest of log-odds plus Gumbel noise: k draws without replacement, by weight.
void draw(const std::vector<double>& odds, int64_t k, std::mt19937_64* random, std::vector<std::pair<double, int32_t>>* drawn,
          std::vector<int32_t>* out) {
  std::uniform_real_distribution<double> unit(0, 1);
  drawn->clear();
  for (size_t e = 0; e < odds.size(); ++e)
    if (odds[e] > kNever) drawn->emplace_back(odds[e] - std::log(-std::log(unit(*random) + 1e-300)), static_cast<int32_t>(e));
  const auto n = std::min<std::ptrdiff_t>(k, static_cast<std::ptrdiff_t>(drawn->size()));
  std::partial_sort(drawn->begin(), drawn->begin() + n, drawn->end(), std::greater<>());
  for (std::ptrdiff_t i = 0; i < n; ++i) out->push_back((*drawn)[static_cast<size_t>(i)].second);
}

// Log-odds of a hot expert against a cold one so that k draws without replacement give the hot ones their share of the uses, on average.
double lift_for(const SyntheticTrace& r, double n_hot, double n_cold) {
  double low = -20, high = 20;
  for (int i = 0; i < 60; ++i) {
    const double weight = std::exp((low + high) / 2);
    double hot = n_hot, cold = n_cold, taken = 0;
    for (int64_t k = 0; k < r.top_k; ++k) {
      const double p = hot * weight / std::max(hot * weight + cold, 1e-300);
      taken += p, hot -= p, cold -= 1 - p;
      hot = std::max(hot, 0.0), cold = std::max(cold, 0.0);
    }
    (taken < r.hot_uses * static_cast<double>(r.top_k) ? low : high) = (low + high) / 2;
  }
  return (low + high) / 2;
}

}  // namespace

ExpertTrace make_trace(const SyntheticTrace& r) {
  ExpertTrace t;
  t.model = r.skewed ? "synthetic-skewed" : "synthetic-uniform";
  char text[200];
  std::snprintf(text, sizeof text, "synthetic: %.2f of the experts for %.2f of the uses, %lld topics, spread %.2f, stay %.3f, seed %llu",
                r.hot_experts, r.hot_uses, static_cast<long long>(r.n_topics), r.topic_spread, r.stay,
                static_cast<unsigned long long>(r.seed));
  t.source = r.skewed ? text : "synthetic: uniform, independent, seed " + std::to_string(r.seed);
  t.n_layer = r.n_layer, t.n_expert = r.n_expert, t.top_k = r.top_k, t.n_tokens = r.n_tokens;
  t.sparse.assign(static_cast<size_t>(r.n_layer), true);
  std::mt19937_64 random(r.seed);
  std::uniform_real_distribution<double> unit(0, 1);
  const auto n = static_cast<size_t>(r.n_expert);
  // Log-odds of each expert, [layer][topic][expert]: the layer's hot set, and what the topic adds to it.
  std::vector<std::vector<std::vector<double>>> odds(static_cast<size_t>(r.n_layer));
  std::normal_distribution<double> normal(0, 1);
  const size_t n_hot = std::clamp<size_t>(static_cast<size_t>(r.hot_experts * static_cast<double>(n) + 0.5), 1, n);
  const double lift = r.skewed ? lift_for(r, static_cast<double>(n_hot), static_cast<double>(n - n_hot)) : 0;
  for (auto& layer : odds) {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), random);
    layer.assign(static_cast<size_t>(r.n_topics), std::vector<double>(n, 0.0));
    if (!r.skewed) continue;
    for (auto& topic : layer) {
      for (size_t i = 0; i < n_hot; ++i) topic[order[i]] = lift;
      for (double& o : topic) o += r.topic_spread * normal(random);
    }
  }
  size_t topic = 0;
  std::vector<std::pair<double, int32_t>> drawn;
  for (int64_t token = 0; token < r.n_tokens; ++token) {
    if (unit(random) >= r.stay) topic = random() % static_cast<size_t>(r.n_topics);
    for (int64_t l = 0; l < r.n_layer; ++l) {
      t.rows.push_back({static_cast<int32_t>(token), static_cast<int32_t>(l), {}});
      draw(odds[static_cast<size_t>(l)][topic], r.top_k, &random, &drawn, &t.rows.back().experts);
    }
  }
  return t;
}

ExpertTrace make_trace(const std::vector<double>& chances, int64_t n_layer, int64_t n_expert, int64_t top_k, int64_t n_tokens) {
  ExpertTrace t;
  t.source = "synthetic: independent tokens, experts by their saved counts";
  t.n_layer = n_layer, t.n_expert = n_expert, t.top_k = top_k, t.n_tokens = n_tokens;
  t.sparse.assign(static_cast<size_t>(n_layer), false);
  const auto n = static_cast<size_t>(n_expert);
  std::vector<std::vector<double>> odds(static_cast<size_t>(n_layer), std::vector<double>(n, kNever));
  for (size_t key = 0; key < chances.size() && key < odds.size() * n; ++key) {
    if (!(chances[key] > 0)) continue;
    // Draws without replacement take the likely ones less often than by their weight: odds of p against 1 - p make up for it.
    const double p = std::min(chances[key], 0.98);
    odds[key / n][key % n] = std::log(p / (1 - p));
    t.sparse[key / n] = true;
  }
  std::mt19937_64 random(1);
  std::vector<std::pair<double, int32_t>> drawn;
  for (int64_t token = 0; token < n_tokens; ++token) {
    for (size_t l = 0; l < odds.size(); ++l) {
      if (!t.sparse[l]) continue;
      t.rows.push_back({static_cast<int32_t>(token), static_cast<int32_t>(l), {}});
      draw(odds[l], top_k, &random, &drawn, &t.rows.back().experts);
    }
  }
  return t;
}

namespace {

// [layer][expert] uses.
std::vector<std::vector<uint64_t>> count_uses(const ExpertTrace& t) {
  std::vector<std::vector<uint64_t>> uses(static_cast<size_t>(t.n_layer), std::vector<uint64_t>(static_cast<size_t>(t.n_expert)));
  for (const auto& row : t.rows)
    for (const int32_t e : row.experts) ++uses[static_cast<size_t>(row.layer)][static_cast<size_t>(e)];
  return uses;
}

}  // namespace

std::vector<double> popularity(const ExpertTrace& t) {
  std::vector<double> out(static_cast<size_t>(t.n_expert));
  double all = 0;
  for (auto& layer : count_uses(t)) {
    std::sort(layer.rbegin(), layer.rend());
    for (size_t e = 0; e < layer.size(); ++e) out[e] += static_cast<double>(layer[e]), all += static_cast<double>(layer[e]);
  }
  for (double& p : out) p *= static_cast<double>(t.top_k) / std::max(all, 1.0);
  return out;
}

double hot_share(const ExpertTrace& t, double share) {
  double sum = 0, layers = 0;
  for (auto& layer : count_uses(t)) {
    const double all = static_cast<double>(std::accumulate(layer.begin(), layer.end(), uint64_t{0}));
    if (all == 0) continue;
    std::sort(layer.rbegin(), layer.rend());
    const auto n = static_cast<std::ptrdiff_t>(share * static_cast<double>(t.n_expert) + 0.5);
    sum += static_cast<double>(std::accumulate(layer.begin(), layer.begin() + n, uint64_t{0})) / all;
    ++layers;
  }
  return sum / std::max(layers, 1.0);
}

double repeat_share(const ExpertTrace& t) {
  std::vector<const ExpertTrace::Row*> before(static_cast<size_t>(t.n_layer), nullptr);
  uint64_t same = 0, all = 0;
  for (const auto& row : t.rows) {
    const ExpertTrace::Row*& last = before[static_cast<size_t>(row.layer)];
    if (last != nullptr) {
      all += row.experts.size();
      for (const int32_t e : row.experts) same += std::find(last->experts.begin(), last->experts.end(), e) != last->experts.end() ? 1 : 0;
    }
    last = &row;
  }
  return all == 0 ? 0 : static_cast<double>(same) / static_cast<double>(all);
}

}  // namespace fth
