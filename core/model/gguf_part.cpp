// Parses the bytes of one GGUF file. The rule throughout: nothing is allocated, skipped or multiplied by a number from the file before that number has
// been compared with the bytes that remain.

#include "core/model/gguf_part.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>

#include "core/base/bytes.h"
#include "core/model/message.h"

namespace fth {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF data is used in place, as little-endian");

// Far above any model that exists; they bound memory on files of many gigabytes.
constexpr uint64_t kMaxKeys = 1u << 16;
constexpr uint64_t kMaxTensors = 1u << 20;
constexpr uint64_t kMaxStrings = 1u << 24;  // in all arrays of a file
constexpr uint64_t kMaxKeyBytes = 65535;    // the GGUF specification's own limit
constexpr uint64_t kMaxNameBytes = 255;
constexpr uint32_t kMaxRank = 4;
// Below 8, f32 data could start at an odd address.
constexpr uint64_t kMinAlignment = 8, kMaxAlignment = 1u << 24;

// Smallest encodings: a key of one byte with a one-byte value; a tensor of one byte's name and one dimension.
constexpr uint64_t kLeastKeyBytes = 8 + 1 + 4 + 1, kLeastTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

struct GgmlType {
  std::string_view name;      // empty: a number that was never given out, or was withdrawn
  std::optional<DType> here;  // what the kernels know
};
constexpr GgmlType kGgmlTypes[] = {
    {"F32", DType::f32},   {"F16", DType::f16}, {"Q4_0", DType::q4_0}, {"Q4_1", DType::q4_1}, {"Q4_2", {}},
    {"Q4_3", {}},          {"Q5_0", {}},        {"Q5_1", {}},          {"Q8_0", DType::q8_0}, {"Q8_1", {}},
    {"Q2_K", {}},          {"Q3_K", {}},        {"Q4_K", DType::q4_k}, {"Q5_K", {}},          {"Q6_K", DType::q6_k},
    {"Q8_K", {}},          {"IQ2_XXS", {}},     {"IQ2_XS", {}},        {"IQ3_XXS", {}},       {"IQ1_S", {}},
    {"IQ4_NL", {}},        {"IQ3_S", {}},       {"IQ2_S", {}},         {"IQ4_XS", {}},        {"I8", {}},
    {"I16", {}},           {"I32", DType::i32}, {"I64", {}},           {"F64", {}},           {"IQ1_M", {}},
    {"BF16", DType::bf16}, {"Q4_0_4_4", {}},    {"Q4_0_4_8", {}},      {"Q4_0_8_8", {}},      {"TQ1_0", {}},
    {"TQ2_0", {}},         {"IQ4_NL_4_4", {}},  {"IQ4_NL_4_8", {}},    {"IQ4_NL_8_8", {}},    {"MXFP4", {}},
    {"NVFP4", {}},
};
constexpr std::string_view kSupported = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q6_K, Q4_K, I32";

constexpr std::string_view kMetaTypeNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                               "bool", "string", "array", "u64", "i64", "f64"};
constexpr uint64_t kMetaTypeBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

// Valid UTF-8 (no overlong forms, no surrogates) without control characters.
bool is_plain_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at])); };
    const uint32_t lead = byte(i);
    if (lead < 0x20 || lead == 0x7f) return false;
    const size_t more = lead < 0x80 ? 0 : lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4 || more >= text.size() - i) return false;
    uint32_t point = more == 0 ? lead : lead & (0x3fu >> more);
    for (size_t k = 1; k <= more; ++k) {
      if ((byte(i + k) & 0xc0) != 0x80) return false;
      point = point << 6 | (byte(i + k) & 0x3f);
    }
    constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (point < kLeast[more] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
    i += more + 1;
  }
  return true;
}

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, std::string_view name, uint32_t file) : bytes_(bytes), name_(name), file_(file) {}

  Result<GgufPart> run() {
    FTH_RETURN_IF_ERROR(header());
    FTH_RETURN_IF_ERROR(key_values());
    FTH_RETURN_IF_ERROR(check_keys());
    FTH_RETURN_IF_ERROR(directory());
    FTH_RETURN_IF_ERROR(place());
    return std::move(part_);
  }

 private:
  template <class... Parts>
  tl::unexpected<Error> bad(const Parts&... parts) const {
    return fail(Code::data_loss, message(name_, ": ", parts...));
  }
  template <class... Parts>
  tl::unexpected<Error> unsupported(const Parts&... parts) const {
    return fail(Code::unimplemented, message(name_, ": ", parts...));
  }
  uint64_t left() const { return bytes_.size() - at_; }

  // `what` and `subject` (a key or tensor) stand in the message: "truncated in the type of key 'a.b' at byte 40 (4 needed, 1 left)".
  tl::unexpected<Error> truncated(std::string_view what, uint64_t needed) const {
    return bad("truncated in ", what, subject_.empty() ? std::string() : " of " + subject_name(), " at byte ", at_, ": ", needed,
               " bytes needed, ", left(), " left of ", bytes_.size());
  }
  std::string subject_name() const { return message(subject_kind_, " ", in_quotes(subject_)); }

  template <class T>
  Result<T> read(std::string_view what) {
    if (left() < sizeof(T)) return truncated(what, sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  Result<std::string_view> text(std::string_view what) {
    FTH_ASSIGN_OR_RETURN(const uint64_t length, read<uint64_t>(what));
    if (length > left()) return truncated(what, length);
    const std::string_view out(reinterpret_cast<const char*>(bytes_.data() + at_), length);
    at_ += length;
    return out;
  }
  // A key or a tensor's name.
  Result<std::string_view> label(std::string_view kind, uint64_t index, uint64_t limit) {
    const std::string what = message("the name of ", kind, " ", index);
    FTH_ASSIGN_OR_RETURN(const std::string_view out, text(what));
    if (out.empty()) return bad(kind, " ", index, " has an empty name");
    if (out.size() > limit)
      return bad("the name of ", kind, " ", index, " has ", out.size(), " bytes, the limit is ", limit, ": ", in_quotes(out));
    if (!is_plain_utf8(out)) return bad("the name of ", kind, " ", index, " is not UTF-8 without control characters: ", in_quotes(out));
    return out;
  }

  Result<void> header() {
    if (bytes_.empty()) return bad("the file is empty");
    if (left() < 4) return truncated("the header", 4);
    if (std::memcmp(bytes_.data(), "GGUF", 4) != 0) return not_gguf();
    at_ = 4;
    FTH_ASSIGN_OR_RETURN(part_.version, read<uint32_t>("the header"));
    const uint32_t version = part_.version;
    if (version == 1) return unsupported("GGUF version 1; versions 2 and 3 are read. Convert the model again with a current converter");
    // A small version number in the other byte order.
    if ((version & 0xffffu) == 0 && version != 0) return unsupported("a big-endian GGUF file; only little-endian ones are read");
    if (version == 0) return bad("GGUF version 0; versions 2 and 3 are read");
    if (version > 3) return unsupported("GGUF version ", version, "; versions 2 and 3 are read");
    FTH_ASSIGN_OR_RETURN(n_tensors_, read<uint64_t>("the header"));
    FTH_ASSIGN_OR_RETURN(n_keys_, read<uint64_t>("the header"));
    const uint64_t room_tensors = left() / kLeastTensorBytes, room_keys = left() / kLeastKeyBytes;
    if (n_tensors_ > std::min(room_tensors, kMaxTensors))
      return bad("the header counts ", n_tensors_, " tensors; ", left(), " bytes hold at most ", room_tensors, ", the limit is ",
                 kMaxTensors);
    if (n_keys_ > std::min(room_keys, kMaxKeys))
      return bad("the header counts ", n_keys_, " keys; ", left(), " bytes hold at most ", room_keys, ", the limit is ", kMaxKeys);
    return {};
  }

  tl::unexpected<Error> not_gguf() const {
    const std::string_view start(reinterpret_cast<const char*>(bytes_.data()), std::min<uint64_t>(left(), 8));
    const std::string_view hint = start.starts_with("version ") ? "; this looks like a Git LFS pointer, fetch the file itself"
                                  : start.starts_with("<")      ? "; this looks like a web page, not a model"
                                                                : "";
    return bad("not a GGUF file: it starts with ", in_quotes(start.substr(0, 4)), " instead of 'GGUF'", hint);
  }

  Result<void> key_values() {
    part_.metadata.reserve(n_keys_);
    for (uint64_t i = 0; i < n_keys_; ++i) {
      subject_ = {};
      MetaValue kv;
      FTH_ASSIGN_OR_RETURN(kv.key, label("key", i, kMaxKeyBytes));
      subject_ = kv.key, subject_kind_ = "key";
      FTH_ASSIGN_OR_RETURN(kv.type, meta_type());
      if (kv.type == MetaType::array) {
        FTH_ASSIGN_OR_RETURN(kv.value, array());
      } else {
        FTH_RETURN_IF_ERROR(scalar(kv));
      }
      part_.metadata.push_back(std::move(kv));
    }
    subject_ = {};
    return {};
  }

  Result<MetaType> meta_type() {
    FTH_ASSIGN_OR_RETURN(const uint32_t type, read<uint32_t>("the type"));
    if (type >= std::size(kMetaTypeNames))
      return bad(subject_name(), " has value type ", type, "; GGUF has 0 to ", std::size(kMetaTypeNames) - 1);
    return static_cast<MetaType>(type);
  }

  template <class Stored, class Kept>
  Result<void> keep(MetaValue& kv) {
    FTH_ASSIGN_OR_RETURN(const Stored value, read<Stored>("the value"));
    kv.value = static_cast<Kept>(value);
    return {};
  }

  Result<void> scalar(MetaValue& kv) {
    switch (kv.type) {
      case MetaType::u8: return keep<uint8_t, uint64_t>(kv);
      case MetaType::u16: return keep<uint16_t, uint64_t>(kv);
      case MetaType::u32: return keep<uint32_t, uint64_t>(kv);
      case MetaType::u64: return keep<uint64_t, uint64_t>(kv);
      case MetaType::i8: return keep<int8_t, int64_t>(kv);
      case MetaType::i16: return keep<int16_t, int64_t>(kv);
      case MetaType::i32: return keep<int32_t, int64_t>(kv);
      case MetaType::i64: return keep<int64_t, int64_t>(kv);
      case MetaType::f32: return keep<float, double>(kv);
      case MetaType::f64: return keep<double, double>(kv);
      case MetaType::boolean: {
        FTH_ASSIGN_OR_RETURN(const uint8_t value, read<uint8_t>("the value"));
        if (value > 1) return bad(subject_name(), " is a bool of value ", value, "; only 0 and 1 are");
        kv.value = value == 1;
        return {};
      }
      case MetaType::string: {
        FTH_ASSIGN_OR_RETURN(kv.value, text("the value"));
        return {};
      }
      case MetaType::array: break;
    }
    return fail(Code::internal, "gguf: scalar() met an array");
  }

  Result<MetaArray> array() {
    MetaArray out;
    FTH_ASSIGN_OR_RETURN(out.type, meta_type());
    if (out.type == MetaType::array) return bad(subject_name(), " is an array of arrays; no model key is, and they are not read");
    FTH_ASSIGN_OR_RETURN(out.count, read<uint64_t>("the array's length"));
    const uint64_t start = at_;
    const bool strings = out.type == MetaType::string;
    const uint64_t least = strings ? 8 : kMetaTypeBytes[static_cast<size_t>(out.type)];
    if (out.count > left() / least)
      return bad(subject_name(), " is an array of ", out.count, " elements of at least ", least, " bytes; ", left(), " bytes are left of ",
                 bytes_.size());
    if (strings) {
      n_strings_ += out.count;
      if (n_strings_ > kMaxStrings)
        return bad(subject_name(), " brings the strings in arrays to ", n_strings_, "; the limit is ", kMaxStrings);
      out.strings.reserve(out.count);
      for (uint64_t i = 0; i < out.count; ++i) {
        FTH_ASSIGN_OR_RETURN(const std::string_view element, text("a string"));
        out.strings.push_back(element);
      }
    } else {
      at_ += out.count * least;
    }
    out.bytes = bytes_.subspan(start, at_ - start);
    return out;
  }

  Result<void> check_keys() {
    const auto key = [&](uint32_t i) { return part_.metadata[i].key; };
    part_.by_key.resize(part_.metadata.size());
    std::iota(part_.by_key.begin(), part_.by_key.end(), 0u);
    std::ranges::sort(part_.by_key, {}, key);
    const auto twice = std::ranges::adjacent_find(part_.by_key, {}, key);
    if (twice != part_.by_key.end()) return bad("key ", in_quotes(key(*twice)), " occurs twice");
    const auto at = std::ranges::lower_bound(part_.by_key, "general.alignment", {}, key);
    if (at == part_.by_key.end() || key(*at) != "general.alignment") return {};
    const MetaValue& kv = part_.metadata[*at];
    if (kv.type != MetaType::u32)
      return bad("key 'general.alignment' has type ", kMetaTypeNames[static_cast<size_t>(kv.type)], "; it must be u32");
    part_.alignment = std::get<uint64_t>(kv.value);
    if (!std::has_single_bit(part_.alignment) || part_.alignment < kMinAlignment || part_.alignment > kMaxAlignment)
      return bad("key 'general.alignment' is ", part_.alignment, "; it must be a power of two from ", kMinAlignment, " to ", kMaxAlignment);
    return {};
  }

  Result<void> directory() {
    part_.tensors.reserve(n_tensors_);
    for (uint64_t i = 0; i < n_tensors_; ++i) {
      subject_ = {};
      TensorInfo t;
      FTH_ASSIGN_OR_RETURN(t.name, label("tensor", i, kMaxNameBytes));
      subject_ = t.name, subject_kind_ = "tensor";
      FTH_RETURN_IF_ERROR(shape(t));
      FTH_ASSIGN_OR_RETURN(t.offset, read<uint64_t>("the offset"));
      t.file = file_;
      part_.tensors.push_back(t);
    }
    subject_ = {};
    return {};
  }

  Result<void> shape(TensorInfo& t) {
    FTH_ASSIGN_OR_RETURN(t.rank, read<uint32_t>("the dimensions"));
    if (t.rank < 1 || t.rank > kMaxRank) return bad(subject_name(), " has ", t.rank, " dimensions; 1 to ", kMaxRank, " are possible");
    uint64_t elements = 1;
    std::string dims;
    for (uint32_t d = 0; d < t.rank; ++d) {
      FTH_ASSIGN_OR_RETURN(const int64_t dim, read<int64_t>("the dimensions"));
      if (dim < 1) return bad(subject_name(), " has a dimension of ", dim);
      dims += message(d == 0 ? "" : " x ", dim);
      t.dims[t.rank - 1 - d] = dim;
      if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements) || elements > INT64_MAX)
        return bad(subject_name(), " of ", dims, " elements overflows 2^63");
    }
    FTH_ASSIGN_OR_RETURN(const uint32_t number, read<uint32_t>("the type"));
    if (number >= std::size(kGgmlTypes)) return bad(subject_name(), " has type ", number, ", which is no GGUF tensor type");
    const GgmlType& type = kGgmlTypes[number];
    if (!type.here) return unsupported(subject_name(), ": type ", type.name, " has no kernels here; supported: ", kSupported);
    t.dtype = *type.here;
    const uint64_t row = static_cast<uint64_t>(t.dims[t.rank - 1]);
    const DTypeTraits& layout = traits(t.dtype);
    if (row % layout.block != 0)
      return bad(subject_name(), " has rows of ", row, " values; type ", type.name, " needs a multiple of ", layout.block);
    const std::optional<uint64_t> bytes = checked_mul(elements / layout.block, layout.block_bytes);
    if (!bytes) return bad(subject_name(), " of ", dims, " values of type ", type.name, " has more than 2^64 bytes");
    t.bytes = *bytes;
    return {};
  }

  // Turns offsets from the data section into offsets from the file's start, and checks where each tensor lies.
  Result<void> place() {
    if (part_.tensors.empty()) return {};
    const uint64_t start = align_up(at_, part_.alignment);
    const uint64_t room = bytes_.size() > start ? bytes_.size() - start : 0;
    for (TensorInfo& t : part_.tensors) {
      const auto who = [&] { return message("tensor ", in_quotes(t.name)); };
      if (t.offset % part_.alignment != 0)
        return bad(who(), " starts at offset ", t.offset, ", which is not a multiple of the alignment ", part_.alignment);
      const std::optional<uint64_t> end = checked_add(t.offset, t.bytes);
      if (!end || *end > room)
        return bad(who(), " has ", t.bytes, " bytes at offset ", t.offset, "; the data section has ", room,
                   " bytes, the file is truncated or corrupt");
      t.offset += start;
      t.data = bytes_.data() + t.offset;
    }
    std::vector<uint32_t> order(part_.tensors.size());
    std::iota(order.begin(), order.end(), 0u);
    std::ranges::sort(order, {}, [&](uint32_t i) { return part_.tensors[i].offset; });
    for (size_t i = 1; i < order.size(); ++i) {
      const TensorInfo &before = part_.tensors[order[i - 1]], &after = part_.tensors[order[i]];
      if (before.offset + before.bytes > after.offset)
        return bad("tensors ", in_quotes(before.name), " and ", in_quotes(after.name), " overlap: bytes ", before.offset, " to ",
                   before.offset + before.bytes, " and from ", after.offset);
    }
    return {};
  }

  std::span<const std::byte> bytes_;
  std::string_view name_;
  uint32_t file_;
  uint64_t at_ = 0, n_tensors_ = 0, n_keys_ = 0, n_strings_ = 0;
  std::string_view subject_, subject_kind_;  // what is being read, for messages
  GgufPart part_;
};

}  // namespace

Result<GgufPart> parse_part(std::span<const std::byte> bytes, std::string_view name, uint32_t file) {
  return Parser(bytes, name, file).run();
}

uint32_t ggml_number(DType type) {
  const auto at = std::ranges::find(kGgmlTypes, std::optional(type), &GgmlType::here);
  return static_cast<uint32_t>(at - std::begin(kGgmlTypes));
}

}  // namespace fth
