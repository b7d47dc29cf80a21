// Encodes what gguf_part.cpp parses.
#include "core/model/gguf_writer.h"

#include <algorithm>
#include <cstring>

#include "core/base/bytes.h"
#include "core/model/gguf_part.h"

namespace fth {
namespace {

using Bytes = std::vector<std::byte>;

void put_raw(Bytes& out, std::span<const std::byte> bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }
template <class T>
void put(Bytes& out, T value) {
  put_raw(out, std::as_bytes(std::span(&value, 1)));
}
void put_text(Bytes& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  put_raw(out, std::as_bytes(std::span(text)));
}

void put_value(Bytes& out, const MetaValue& kv) {
  switch (kv.type) {
    case MetaType::u8: return put(out, static_cast<uint8_t>(std::get<uint64_t>(kv.value)));
    case MetaType::u16: return put(out, static_cast<uint16_t>(std::get<uint64_t>(kv.value)));
    case MetaType::u32: return put(out, static_cast<uint32_t>(std::get<uint64_t>(kv.value)));
    case MetaType::u64: return put(out, std::get<uint64_t>(kv.value));
    case MetaType::i8: return put(out, static_cast<int8_t>(std::get<int64_t>(kv.value)));
    case MetaType::i16: return put(out, static_cast<int16_t>(std::get<int64_t>(kv.value)));
    case MetaType::i32: return put(out, static_cast<int32_t>(std::get<int64_t>(kv.value)));
    case MetaType::i64: return put(out, std::get<int64_t>(kv.value));
    case MetaType::f32: return put(out, static_cast<float>(std::get<double>(kv.value)));
    case MetaType::f64: return put(out, std::get<double>(kv.value));
    case MetaType::boolean: return put(out, static_cast<uint8_t>(std::get<bool>(kv.value)));
    case MetaType::string: return put_text(out, std::get<std::string_view>(kv.value));
    case MetaType::array: break;
  }
  const MetaArray& array = std::get<MetaArray>(kv.value);
  put(out, static_cast<uint32_t>(array.type));
  put(out, array.count);
  if (array.type != MetaType::string) return put_raw(out, array.bytes);
  for (const std::string_view text : array.strings) put_text(out, text);
}

}  // namespace

void GgufWriter::key(const MetaValue& kv) {
  put_text(keys_, kv.key);
  put(keys_, static_cast<uint32_t>(kv.type));
  put_value(keys_, kv);
  ++n_keys_;
}

void GgufWriter::tensor(std::string_view name, DType type, std::span<const int64_t> dims, uint64_t bytes) {
  put_text(tensors_, name);
  put(tensors_, static_cast<uint32_t>(dims.size()));
  for (size_t i = dims.size(); i > 0; --i) put(tensors_, static_cast<uint64_t>(dims[i - 1]));
  put(tensors_, ggml_number(type));
  put(tensors_, next_);
  offsets_.push_back(next_);
  next_ = align_up(next_ + bytes, alignment_);
}

GgufHead GgufWriter::finish() const {
  GgufHead head;
  put_raw(head.bytes, std::as_bytes(std::span(std::string_view("GGUF"))));
  put<uint32_t>(head.bytes, 3);
  put<uint64_t>(head.bytes, offsets_.size());
  put(head.bytes, n_keys_);
  put_raw(head.bytes, keys_);
  put_raw(head.bytes, tensors_);
  const uint64_t start = align_up(head.bytes.size(), alignment_);
  for (const uint64_t offset : offsets_) head.offsets.push_back(start + offset);
  head.file_bytes = start + next_;
  return head;
}

}  // namespace fth
