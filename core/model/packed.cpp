// Reads the experts of packed models; the writer is core/model/pack.cpp.
#include "core/model/packed.h"

#include <algorithm>
#include <cstring>

#include "core/model/arch/decoder.h"
#include "core/model/interleaved.h"
#include "core/model/model_reader.h"

namespace fth {
namespace {

Result<const MetaArray*> array_of(const ModelReader& reader, std::string_view key, MetaType type, uint64_t count) {
  FTH_ASSIGN_OR_RETURN(const MetaArray* array, reader.file().array(key));
  if (array->type != type || array->count != count)
    return reader.bad("key ", in_quotes(key), " has ", array->count, " elements or another type than a packed model's; needed are ", count);
  return array;
}

}  // namespace

Result<void> read_packed_experts(ModelReader& reader, Model& model, int64_t i) {
  Config& c = model.config;
  Layer& layer = model.layers[static_cast<size_t>(i)];
  FTH_ASSIGN_OR_RETURN(const int64_t version, reader.file().integer(kPackedVersion));
  if (version < 1 || version > kPackedFormat)
    return reader.unsupported("key ", in_quotes(kPackedVersion), " is ", version,
                              "; this program reads versions 1 and 2: pack the model again");
  const auto layers = static_cast<uint64_t>(c.n_layer), at = static_cast<uint64_t>(i);
  FTH_ASSIGN_OR_RETURN(const MetaArray* types, array_of(reader, kPackedTypes, MetaType::string, 3 * layers));
  FTH_ASSIGN_OR_RETURN(const MetaArray* downs, array_of(reader, kPackedDown, MetaType::string, layers));
  FTH_ASSIGN_OR_RETURN(const MetaArray* sums, array_of(reader, kPackedXxh3, MetaType::u64, layers * static_cast<uint64_t>(c.n_expert)));

  const auto layout = std::find(std::begin(kDownLayoutNames), std::end(kDownLayoutNames), downs->strings[at]);
  if (layout == std::end(kDownLayoutNames))
    return reader.bad("key ", in_quotes(kPackedDown), " is ", in_quotes(downs->strings[at]), " for layer ", i,
                      "; it must be row_major, by_neuron or neuron_major");
  layer.down_layout = static_cast<DownLayout>(layout - std::begin(kDownLayoutNames));

  bool gate_interleaved = false;
  if (version >= 2) {
    FTH_ASSIGN_OR_RETURN(const MetaArray* gates, array_of(reader, kPackedGate, MetaType::string, layers));
    const auto order = std::find(std::begin(kGateOrderNames), std::end(kGateOrderNames), gates->strings[at]);
    if (order == std::end(kGateOrderNames))
      return reader.bad("key ", in_quotes(kPackedGate), " is ", in_quotes(gates->strings[at]), " for layer ", i,
                        "; it must be row_major or interleaved");
    gate_interleaved = order != std::begin(kGateOrderNames);
  }

  Weight* const parts[] = {&layer.gate, &layer.up, &layer.down};
  constexpr std::string_view kNames[] = {"gate", "up", "down"};
  for (uint64_t p = 0; p < 3; ++p) {
    Weight& w = *parts[p];
    const std::string_view stated = types->strings[3 * at + p];
    const auto type = dtype_from_name(stated);
    if (!type || *type == DType::i32)
      return reader.bad("key ", in_quotes(kPackedTypes), " is ", in_quotes(stated), " for ", kNames[p], " of layer ", i,
                        "; it must be a weight type");
    w.dtype = *type;
    w.experts = c.n_expert;
    const bool across = p == 2 && layer.down_layout != DownLayout::by_neuron;
    w.rows = across ? c.n_embd : c.n_ff;
    w.cols = across ? c.n_ff : c.n_embd;
    if (w.cols % traits(w.dtype).block != 0)
      return reader.bad(kNames[p], " of layer ", i, " has rows of ", w.cols, " values; ", stated, " needs a multiple of ",
                        traits(w.dtype).block);
    w.bytes = static_cast<uint64_t>(c.n_expert) * static_cast<uint64_t>(w.rows) * row_bytes(w.dtype, w.cols);
  }
  if (layer.down_layout == DownLayout::neuron_major &&
      ((layer.down.dtype != DType::q4_0 && layer.down.dtype != DType::q8_0) || c.n_embd % 32 != 0))
    return reader.bad("layer ", i, " has a neuron-major down of ", name(layer.down.dtype), " [", c.n_embd, ", ", c.n_ff,
                      "]; it must be q4_0 or q8_0 with multiples of 32");

  if (gate_interleaved) {
    if (const Result<> possible = check_interleaved(layer.gate.dtype, layer.gate.rows, layer.gate.cols); !possible)
      return reader.bad("key ", in_quotes(kPackedGate), " is \"interleaved\" for layer ", i, ": ", possible.error().message);
    layer.gate.interleaved = layer.gate.interleaved_in_file = true;
  }

  const SlabLayout slab = slab_layout(layer.gate.expert_bytes(), layer.up.expert_bytes(), layer.down.expert_bytes());
  const std::string tensor_name = block_name(i, kPackedSlab);
  const TensorInfo* t = reader.find_tensor(tensor_name);
  if (t == nullptr) return reader.bad("tensor ", in_quotes(tensor_name), " is missing from a packed model");
  if (t->dtype != DType::i32 || t->bytes != slab.bytes * static_cast<uint64_t>(c.n_expert) || t->offset % kSlabAlignment != 0)
    return reader.bad("tensor ", in_quotes(tensor_name), " has ", t->bytes, " bytes at offset ", t->offset, "; needed are ", c.n_expert,
                      " slabs of ", slab.bytes, " bytes, aligned to ", kSlabAlignment);
  const uint64_t places[] = {0, slab.up, slab.down};
  for (uint64_t p = 0; p < 3; ++p) {
    Weight& w = *parts[p];
    w.name = message(tensor_name, ":", kNames[p]);
    w.data = t->data + places[p];
    w.stride = slab.bytes;
    w.file = t->file;
    w.offset = t->offset + places[p];
  }
  layer.xxh3.resize(static_cast<size_t>(c.n_expert));
  for (uint64_t e = 0; e < layer.xxh3.size(); ++e) {
    // The array's elements are u64 in the file's bytes; integer() would refuse those above INT64_MAX.
    std::memcpy(&layer.xxh3[e], sums->bytes.data() + (at * layer.xxh3.size() + e) * sizeof(uint64_t), sizeof(uint64_t));
  }
  c.packed = static_cast<int32_t>(version);
  return {};
}

}  // namespace fth
