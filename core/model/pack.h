#pragma once
// Writes packed models (core/model/packed.h, docs/packed-models.md) and checks them. Blocking, one thread each.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/base/result.h"
#include "core/model/config.h"

namespace fth {

// automatic: neuron_major in layers whose down has that order, as the file has it in the others.
enum class PackDown { automatic, row_major, neuron_major };
// automatic: interleaved in layers whose gate has that order, row-major in the others.
enum class PackGate { automatic, row_major, interleaved };

struct PackOptions {
  std::filesystem::path in, out;    // in: a model file, packed or not, or the first part of a split one
  std::vector<Override> overrides;  // for reading `in`; they are not written
  PackDown down = PackDown::automatic;
  PackGate gate = PackGate::automatic;
  bool replace = false;                                            // an `out` that exists
  int64_t stop_after = -1;                                         // layers: end there with cancelled, as a kill would
  std::function<void(uint64_t done, uint64_t total)> on_progress;  // bytes of `out`
  std::function<void(const std::string& note)> on_note;            // that an unfinished pack is continued, or why not
  std::function<bool()> stopped;                                   // asked often; true ends with cancelled
};

struct PackReport {
  int64_t n_layer = 0, n_expert = 0;
  int64_t layers_kept = 0;                 // finished by an earlier run
  uint64_t in_bytes = 0, out_bytes = 0;    // whole files
  uint64_t written_bytes = 0;              // by this run
  uint64_t slab_bytes = 0, pad_bytes = 0;  // largest slab; what all slabs have beyond their matrices
  std::vector<DownLayout> down;            // by layer
  std::vector<bool> gate_interleaved;      // by layer
};

// Writes out.part, with out.part.state beside it to continue from, and renames it to `out` when all of it is on the disk. An unfinished pack of the same
// input and options continues after its last layer that checks out. Memory: a few slabs and the head; pages of `in` are given back as they are done.
// A packed input is written again in the orders that the options name, each expert after its checksum has been compared.
// Errors: those of load_model; invalid_argument for a model without experts or packed already as it would be written, `out` one of the files of `in`, or a
// `down` or `gate` that a layer cannot have; data_loss for a damaged expert of a packed input; failed_precondition for an `out` that exists, too little space (before anything is written), a file that cannot be written, or
// another process that packs to the same place; cancelled, with the layers that are done.
Result<PackReport> pack_model(const PackOptions& options);

struct DamagedSlab {
  int64_t layer = 0, expert = 0;
  uint64_t stated = 0, found = 0;  // xxh3
};

// Reads every slab of a packed model from its files and compares checksums; gives those that differ, in order.
// failed_precondition for a model that is not packed or not of files; data_loss for a slab that cannot be read; cancelled when stopped() says so.
Result<std::vector<DamagedSlab>> verify_packed(const Model& model,
                                               const std::function<void(uint64_t done, uint64_t total)>& on_progress = {},
                                               const std::function<bool()>& stopped = {});

}  // namespace fth
