#pragma once
// What an architecture's reader (core/model/arch/) asks with: keys by their short name, overrides first, checked for type and range; weights by name,
// checked for shape. It remembers what was asked, so that overrides nobody asked for are refused and tensors nobody asked for are noted.
// One per load, one thread. Keys here lack the architecture's prefix: "context_length".
//
// Errors: data_loss for what the file says, invalid_argument for what an override says; both name the key or tensor, the numbers and the limits.

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"
#include "core/model/config.h"
#include "core/model/message.h"

namespace fth {

class ModelReader {
 public:
  // All three outlive the reader.
  ModelReader(const Gguf& file, std::string_view architecture, std::span<const Override> overrides);

  // Keys. The find_ forms give nothing where the key is absent; the others say how to supply it.
  Result<std::optional<int64_t>> find_integer(std::string_view key, int64_t least, int64_t most);
  Result<int64_t> integer(std::string_view key, int64_t least, int64_t most);
  // An integer, or an array of one per layer that are all the same (unimplemented if they differ).
  Result<std::optional<int64_t>> find_uniform(std::string_view key, int64_t n_layer, int64_t least, int64_t most);
  Result<int64_t> uniform(std::string_view key, int64_t n_layer, int64_t least, int64_t most);
  // Finite and above 0.
  Result<std::optional<double>> find_positive(std::string_view key);
  Result<double> positive(std::string_view key);
  // A string; integers in their decimal form.
  Result<std::optional<std::string>> find_text(std::string_view key);
  // The array under a key, or null where it is absent, not an array, or overridden.
  const MetaArray* find_array(std::string_view key);
  // A setting that no file carries: only an override answers.
  std::optional<std::string> setting(std::string_view key);

  // Weights. Shapes are [experts, rows, cols]; ones in front may be missing in the file. The find_ forms give an empty Weight where there is none.
  // Matrices have any type but i32; vectors are f32 and finite.
  Result<Weight> matrix(std::string_view name, int64_t rows, int64_t cols) { return stack(name, 1, rows, cols); }
  Result<Weight> stack(std::string_view name, int64_t experts, int64_t rows, int64_t cols);
  Result<Weight> vector(std::string_view name, int64_t n);
  Result<Weight> find_vector(std::string_view name, int64_t n);
  // A router: f32, f16 or bf16, finite. Quantising one scrambles the choice of experts, and no converter does.
  Result<Weight> router(std::string_view name, int64_t experts, int64_t cols);
  // The tensor as the file has it; null where it is absent. Counts as asked for.
  const TensorInfo* find_tensor(std::string_view name);

  // Rows [first, first + count) of a matrix that is not a stack, under the name "<name>:<suffix>".
  static Weight rows_of(const Weight& whole, std::string_view suffix, int64_t first, int64_t count);

  // Errors with the file's name in front: the file is wrong; it asks for what is not here; an override must decide.
  template <class... Parts>
  tl::unexpected<Error> bad(const Parts&... parts) const {
    return fail(Code::data_loss, message(file_.name(), ": ", parts...));
  }
  template <class... Parts>
  tl::unexpected<Error> unsupported(const Parts&... parts) const {
    return fail(Code::unimplemented, message(file_.name(), ": ", parts...));
  }
  template <class... Parts>
  tl::unexpected<Error> undecided(const Parts&... parts) const {
    return fail(Code::failed_precondition, message(file_.name(), ": ", parts...));
  }

  // After everything was asked. invalid_argument for an override that nothing asked for; unimplemented for a bias that nothing asked for, which would
  // change the answers; a note for other tensors.
  Result<void> finish(std::vector<std::string>& notes) const;

  const Gguf& file() const { return file_; }
  std::string full_key(std::string_view key) const;  // "smallthinker.context_length"

 private:
  const Override* overriding(std::string_view key);
  Result<int64_t> in_range(std::string_view key, int64_t value, int64_t least, int64_t most, const Override* from) const;
  Result<Weight> checked(const TensorInfo& tensor, int64_t experts, int64_t rows, int64_t cols) const;
  Result<void> require_finite(const Weight& weight) const;
  tl::unexpected<Error> missing_key(std::string_view key) const;
  tl::unexpected<Error> missing_tensor(std::string_view name) const;

  const Gguf& file_;
  std::string_view architecture_;
  std::span<const Override> overrides_;
  std::set<std::string, std::less<>> asked_keys_, asked_tensors_;
};

}  // namespace fth
