// Keys and weights, asked for by the readers of architectures.

#include "core/model/model_reader.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

namespace fth {
namespace {

// The whole text as a number.
template <class T>
std::optional<T> parsed(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string shape_text(std::span<const int64_t> dims) {
  std::string out = "[";
  for (const int64_t d : dims) out += message(out.size() == 1 ? "" : ", ", d);
  return out + "]";
}

// The index of the first value whose exponent is all ones (infinity or NaN), or -1. Integers, so that the loop is one OR per value.
template <class Bits>
int64_t first_not_finite(const std::byte* data, int64_t n, Bits exponent) {
  for (int64_t i = 0; i < n; ++i) {
    Bits bits;
    std::memcpy(&bits, data + static_cast<size_t>(i) * sizeof(Bits), sizeof(Bits));
    if ((bits & exponent) == exponent) return i;
  }
  return -1;
}

tl::unexpected<Error> wrong_override(const Override& o, std::string_view wanted) {
  return fail(Code::invalid_argument, message("override ", in_quotes(o.key), " = ", in_quotes(o.value), ": it must be ", wanted));
}

}  // namespace

ModelReader::ModelReader(const Gguf& file, std::string_view architecture, std::span<const Override> overrides)
    : file_(file), architecture_(architecture), overrides_(overrides) {}

std::string ModelReader::full_key(std::string_view key) const { return message(architecture_, ".", key); }

const Override* ModelReader::overriding(std::string_view key) {
  asked_keys_.emplace(key);
  const Override* found = nullptr;
  for (const Override& o : overrides_)
    if (o.key == key) found = &o;  // the last one on the command line wins
  return found;
}

tl::unexpected<Error> ModelReader::missing_key(std::string_view key) const {
  return bad("key ", in_quotes(full_key(key)), " is missing; if you know its value, give it with --override ", key, "=VALUE");
}
tl::unexpected<Error> ModelReader::missing_tensor(std::string_view name) const { return bad("tensor ", in_quotes(name), " is missing"); }

Result<int64_t> ModelReader::in_range(std::string_view key, int64_t value, int64_t least, int64_t most, const Override* from) const {
  if (value >= least && value <= most) return value;
  if (from != nullptr) return wrong_override(*from, message(least, " to ", most));
  return bad("key ", in_quotes(full_key(key)), " is ", value, "; it must be ", least, " to ", most);
}

Result<std::optional<int64_t>> ModelReader::find_integer(std::string_view key, int64_t least, int64_t most) {
  if (const Override* o = overriding(key)) {
    const std::optional<int64_t> value = parsed<int64_t>(o->value);
    if (!value) return wrong_override(*o, "an integer");
    return in_range(key, *value, least, most, o);
  }
  const std::string full = full_key(key);
  if (file_.find(full) == nullptr) return std::nullopt;
  FTH_ASSIGN_OR_RETURN(const int64_t value, file_.integer(full));
  return in_range(key, value, least, most, nullptr);
}

Result<int64_t> ModelReader::integer(std::string_view key, int64_t least, int64_t most) {
  FTH_ASSIGN_OR_RETURN(const std::optional<int64_t> value, find_integer(key, least, most));
  if (!value) return missing_key(key);
  return *value;
}

const MetaArray* ModelReader::find_array(std::string_view key) {
  if (overriding(key) != nullptr) return nullptr;
  const MetaValue* kv = file_.find(full_key(key));
  return kv == nullptr ? nullptr : std::get_if<MetaArray>(&kv->value);
}

Result<std::optional<int64_t>> ModelReader::find_uniform(std::string_view key, int64_t n_layer, int64_t least, int64_t most) {
  const MetaArray* array = find_array(key);
  if (array == nullptr) return find_integer(key, least, most);
  const std::string full = full_key(key);
  if (array->count != static_cast<uint64_t>(n_layer))
    return bad("key ", in_quotes(full), " has ", array->count, " elements; block_count is ", n_layer);
  std::optional<int64_t> first;
  for (uint64_t i = 0; i < array->count; ++i) {
    auto value = array->integer(i);
    if (!value) return tl::unexpected<Error>(std::move(value).error().context(message(file_.name(), ": key ", in_quotes(full))));
    if (!first) first = *value;
    if (*value != *first)
      return unsupported("key ", in_quotes(full), " differs from layer to layer (", *first, " in layer 0, ", *value, " in layer ", i,
                         "); only one value for all layers is supported");
  }
  return in_range(key, *first, least, most, nullptr);
}

Result<int64_t> ModelReader::uniform(std::string_view key, int64_t n_layer, int64_t least, int64_t most) {
  FTH_ASSIGN_OR_RETURN(const std::optional<int64_t> value, find_uniform(key, n_layer, least, most));
  if (!value) return missing_key(key);
  return *value;
}

Result<std::optional<double>> ModelReader::find_positive(std::string_view key) {
  const Override* o = overriding(key);
  double value = 0;
  if (o != nullptr) {
    const std::optional<double> given = parsed<double>(o->value);
    if (!given) return wrong_override(*o, "a number");
    value = *given;
  } else {
    const std::string full = full_key(key);
    if (file_.find(full) == nullptr) return std::nullopt;
    FTH_ASSIGN_OR_RETURN(value, file_.number(full));
  }
  if (std::isfinite(value) && value > 0) return value;
  if (o != nullptr) return wrong_override(*o, "finite and above 0");
  return bad("key ", in_quotes(full_key(key)), " is ", value, "; it must be finite and above 0");
}

Result<double> ModelReader::positive(std::string_view key) {
  FTH_ASSIGN_OR_RETURN(const std::optional<double> value, find_positive(key));
  if (!value) return missing_key(key);
  return *value;
}

Result<std::optional<std::string>> ModelReader::find_text(std::string_view key) {
  if (const Override* o = overriding(key)) return o->value;
  const std::string full = full_key(key);
  const MetaValue* kv = file_.find(full);
  if (kv == nullptr) return std::nullopt;
  if (const auto* text = std::get_if<std::string_view>(&kv->value)) return std::string(*text);
  FTH_ASSIGN_OR_RETURN(const int64_t value, file_.integer(full));
  return std::to_string(value);
}

std::optional<std::string> ModelReader::setting(std::string_view key) {
  const Override* o = overriding(key);
  return o == nullptr ? std::nullopt : std::optional(o->value);
}

const TensorInfo* ModelReader::find_tensor(std::string_view name) {
  const TensorInfo* tensor = file_.tensor(name);
  if (tensor != nullptr) asked_tensors_.emplace(name);
  return tensor;
}

Result<Weight> ModelReader::checked(const TensorInfo& t, int64_t experts, int64_t rows, int64_t cols) const {
  const std::span<const int64_t> dims = std::span(t.dims).first(t.rank);
  const int64_t wanted[3] = {experts, rows, cols};
  // Compared from the last dimension; what either lacks in front is 1.
  bool same = true;
  for (size_t i = 0; i < 4; ++i) {
    const int64_t here = i < dims.size() ? dims[dims.size() - 1 - i] : 1;
    if (here != (i < 3 ? wanted[2 - i] : 1)) same = false;
  }
  if (!same) {
    const auto asked = std::span(wanted).subspan(experts != 1 ? 0 : rows != 1 ? 1 : 2);
    return bad("tensor ", in_quotes(t.name), " has the shape ", shape_text(dims), "; the model's keys ask for ", shape_text(asked));
  }
  if (t.dtype == DType::i32) return bad("tensor ", in_quotes(t.name), " is of integers; a weight cannot be");
  Weight w;
  w.name = t.name;
  w.dtype = t.dtype;
  w.experts = experts, w.rows = rows, w.cols = cols;
  w.data = t.data;
  w.bytes = t.bytes;
  w.stride = w.expert_bytes();
  w.file = t.file;
  w.offset = t.offset;
  return w;
}

Result<void> ModelReader::require_finite(const Weight& w) const {
  const int64_t n = w.experts * w.rows * w.cols;
  const int64_t at = w.dtype == DType::f32   ? first_not_finite<uint32_t>(w.data, n, 0x7f800000u)
                     : w.dtype == DType::f16 ? first_not_finite<uint16_t>(w.data, n, 0x7c00u)
                                             : first_not_finite<uint16_t>(w.data, n, 0x7f80u);
  if (at < 0) return {};
  return bad("tensor ", in_quotes(w.name), " holds a NaN or an infinity at row ", at / w.cols, ", column ", at % w.cols);
}

Result<Weight> ModelReader::stack(std::string_view name, int64_t experts, int64_t rows, int64_t cols) {
  const TensorInfo* tensor = find_tensor(name);
  if (tensor == nullptr) return missing_tensor(name);
  return checked(*tensor, experts, rows, cols);
}

Result<Weight> ModelReader::find_vector(std::string_view name, int64_t n) {
  if (find_tensor(name) == nullptr) return Weight{};
  FTH_ASSIGN_OR_RETURN(Weight w, stack(name, 1, 1, n));
  if (w.dtype != DType::f32) return unsupported("tensor ", in_quotes(name), " is ", fth::name(w.dtype), "; norms and biases must be f32");
  FTH_RETURN_IF_ERROR(require_finite(w));
  return w;
}

Result<Weight> ModelReader::vector(std::string_view name, int64_t n) {
  FTH_ASSIGN_OR_RETURN(Weight w, find_vector(name, n));
  if (!w) return missing_tensor(name);
  return w;
}

Result<Weight> ModelReader::router(std::string_view name, int64_t experts, int64_t cols) {
  FTH_ASSIGN_OR_RETURN(Weight w, matrix(name, experts, cols));
  if (w.dtype != DType::f32 && w.dtype != DType::f16 && w.dtype != DType::bf16)
    return unsupported("router ", in_quotes(name), " is ", fth::name(w.dtype), "; it must be f32, f16 or bf16");
  FTH_RETURN_IF_ERROR(require_finite(w));
  return w;
}

Weight ModelReader::rows_of(const Weight& whole, std::string_view suffix, int64_t first, int64_t count) {
  const uint64_t row = whole.bytes / static_cast<uint64_t>(whole.rows);
  Weight part = whole;
  part.name = message(whole.name, ":", suffix);
  part.rows = count;
  part.data = whole.data + row * static_cast<uint64_t>(first);
  part.offset = whole.offset + row * static_cast<uint64_t>(first);
  part.bytes = part.stride = row * static_cast<uint64_t>(count);
  return part;
}

Result<void> ModelReader::finish(std::vector<std::string>& notes) const {
  for (const Override& o : overrides_) {
    if (asked_keys_.contains(o.key)) continue;
    std::string known;
    for (const std::string& key : asked_keys_) known += message(known.empty() ? "" : ", ", key);
    return fail(Code::invalid_argument,
                message("override ", in_quotes(o.key), ": the architecture ", architecture_, " has no such key; it has ", known));
  }
  constexpr size_t kNamed = 4;
  size_t n_ignored = 0;
  std::string ignored;
  for (const TensorInfo& t : file_.tensors()) {
    if (asked_tensors_.contains(t.name)) continue;
    if (t.name.ends_with(".bias"))
      return unsupported("tensor ", in_quotes(t.name), ": the architecture ", architecture_,
                         " has no such bias here; without it the answers would be wrong");
    if (n_ignored++ < kNamed) ignored += message(ignored.empty() ? "" : ", ", in_quotes(t.name));
  }
  if (n_ignored > 0)
    notes.push_back(
        message("not used: ", n_ignored, n_ignored == 1 ? " tensor: " : " tensors: ", ignored, n_ignored > kNamed ? ", ..." : ""));
  return {};
}

}  // namespace fth
