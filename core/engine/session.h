#pragma once
// One conversation: its KV cache, its position, its figures. Must not outlive its Engine. One thread at a time.

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace fth {

// Time and bytes by device and kind of segment, since the session began; `run` prints it as "what ran where".
struct SegmentTime {
  std::string device;
  std::string kind;  // "attention", "experts"
  uint64_t count = 0;
  double seconds = 0;
  uint64_t bytes = 0;  // of weights and KV read
};

// Reads of experts, in the part of a session that they belong to. All zero when experts are resident.
struct IoStats {
  uint64_t requested = 0, hits = 0, late = 0, misses = 0;  // experts asked for; resident; being read; read because they were asked for
  uint64_t tier = 0;                                       // of the hits, copied from spare device memory
  uint64_t early = 0;                                      // whose gate was computed before up and down had been read
  uint64_t guesses = 0, wrong_guesses = 0;
  uint64_t bytes_read = 0;
  double stall_seconds = 0;  // waiting for storage
  double io_seconds = 0;     // with at least one read in flight
  IoStats& operator+=(const IoStats& o);
};

// The part of the KV cache that is on storage. All zero when all of it is in memory.
struct KvStats {
  uint64_t bytes_read = 0, bytes_written = 0;
  double stall_seconds = 0;
};

struct TokenStats {  // of one decoded token
  double seconds = 0;
  IoStats io;
};

// The screened head, where it was used. rows: multiplied, of all rows of those tokens.
struct HeadStats {
  uint64_t screened = 0, exact = 0;  // tokens, of those whose largest logits alone were wanted
  uint64_t checked = 0;              // of the screened ones, those that were computed by the exact head, too
  uint64_t rows = 0, all_rows = 0;
};

// The screened head against the exact one, position by position.
struct HeadAgreement {
  int64_t positions = 0;
  int64_t same_first = 0;    // the same largest logit, one being wanted
  int64_t same_largest = 0;  // the same k largest, in the same order and to the bit, k being wanted
  double share = 0;          // of the rows that were multiplied for one logit, summed over positions
};

struct Stats {
  int64_t prompt_tokens = 0, decode_tokens = 0, reused_tokens = 0;
  double prompt_seconds = 0, decode_seconds = 0;
  uint64_t decode_bytes = 0;  // weights and KV read while decoding
  uint64_t copied_bytes = 0;  // between devices
  IoStats prompt_io, decode_io;
  KvStats kv;
  HeadStats head;
  std::vector<SegmentTime> segments;
  std::vector<TokenStats> tokens;  // decoded, in order
};

// Values inside the pass, for `logits --dump` and tests. Called after each segment with rows x cols floats (or ids as floats) named as llama.cpp
// names them: embd, ffn_moe_logits-3, ffn_moe_topk-3, ffn_moe_weights_norm-3, ffn_inp-3, ffn_norm-3, ffn_out-3, l_out-3, result_norm.
using Inspect = std::function<void(std::string_view name, int64_t first_pos, int64_t rows, int64_t cols, const float* values)>;

// Replaces the router's choice: fills ids [rows, top_k] for the tokens at first_pos .. first_pos + rows - 1 of a layer. For comparisons only.
using ForceRouting = std::function<void(int64_t layer, int64_t first_pos, int64_t rows, int32_t* ids)>;

// The experts of each token of a step at one layer: ids [rows, top_k], by rank.
using OnRouting = std::function<void(int64_t layer, int64_t first_pos, int64_t rows, int64_t top_k, const int32_t* ids)>;

class Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  int64_t n_past() const;  // tokens in the KV cache
  int64_t n_ctx() const;
  std::span<const int32_t> tokens() const;  // those tokens

  // Appends `ids` in ubatches and returns the logits [n_vocab] after the last one, valid until the next call.
  // on_progress(done, total) may return false to stop: cancelled, and n_past() is what was done.
  // out_of_range when they do not fit the context (nothing is done then); invalid_argument for an id outside the vocabulary or no ids.
  Result<std::span<const float>> prefill(std::span<const int32_t> ids,
                                         const std::function<bool(int64_t done, int64_t total)>& on_progress = {});
  // prefill of one token, counted as decoding.
  Result<std::span<const float>> decode(int32_t id);
  // Of the logits that prefill and decode return only the k largest are looked at from now on; others may be -inf. 0, as at the start: all are. Changes
  // nothing unless the engine has a screened head (EngineOptions::head).
  void set_wanted_logits(int64_t k);
  // The last decoded token's logits once more, with k as above; in no figures. For comparisons. failed_precondition when the last step was no decode.
  Result<std::span<const float>> head_again(int64_t k);
  // Appends `ids` and adds to `sum` what the screened head gives at each of their positions beside the exact one, also to Engine::head_errors(). The first positions
  // of a model that has not been measured only measure it. For comparisons; in no figures. go_on() false stops it: cancelled. failed_precondition where
  // there is no screened head for k logits.
  Result<> compare_heads(std::span<const int32_t> ids, int64_t k, HeadAgreement* sum, const std::function<bool()>& go_on);
  // Logits of every position of `ids`: on_rows(first_pos, rows, values [rows, n_vocab]) per ubatch.
  Result<> prefill_all(std::span<const int32_t> ids,
                       const std::function<Result<>(int64_t first_pos, int64_t rows, const float* values)>& on_rows);

  // Keeps the longest usable prefix that `ids` shares with the cache and drops the rest; returns its length (always < ids.size(), so that there is
  // something left to prefill). Sliding-window layers can only go back as far as their ring still holds.
  int64_t reuse(std::span<const int32_t> ids);
  void clear();

  Stats stats() const;
  void reset_stats();
  void set_inspect(Inspect inspect);
  void set_force_routing(ForceRouting force);
  void set_on_routing(OnRouting on_routing);

  struct Impl;
  explicit Session(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace fth
