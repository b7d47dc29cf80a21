// Byte-pair merging; see bpe.h.

#include "core/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <string>

#include "core/model/gguf.h"
#include "core/model/message.h"
#include "core/text/hash.h"
#include "core/text/vocabulary.h"

namespace fth {
namespace {

constexpr std::string_view kMerges = "tokenizer.ggml.merges";
// Up to here a scan for the lowest rank beats the heap; nearly all pieces of real text are this short.
constexpr size_t kShort = 32;

}  // namespace

Result<MergeTable> MergeTable::read(const Gguf& file, const Vocabulary& vocabulary) {
  if (file.find(kMerges) == nullptr) return fail(Code::data_loss, message(kMerges, " is missing"));
  FTH_ASSIGN_OR_RETURN(const MetaArray* array, file.array(kMerges));
  const std::vector<std::string_view>& merges = array->strings;
  // A writer without merges may give its empty array any element type.
  if (array->type != MetaType::string && array->count > 0) return fail(Code::data_loss, message(kMerges, " is not an array of strings"));
  if (merges.size() >= kNone.rank) return fail(Code::data_loss, message(kMerges, " has ", merges.size(), " entries; ranks are 32-bit"));

  MergeTable table;
  table.slots_.resize(std::bit_ceil(merges.size() + merges.size() / 2 + 1));
  table.seed_ = table_seed(table.slots_.data());
  std::string product;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string_view text = merges[rank];
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == text.size() || text.find(' ', space + 1) != std::string_view::npos)
      return fail(Code::data_loss, message(kMerges, "[", rank, "] is ", in_quotes(text), "; expected two pieces with one space between"));
    product.assign(text.substr(0, space)).append(text.substr(space + 1));
    int32_t ids[3];
    const std::string_view pieces[3] = {text.substr(0, space), text.substr(space + 1), product};
    for (size_t i = 0; i < 3; ++i) {
      ids[i] = vocabulary.find(pieces[i]);
      if (ids[i] < 0)
        return fail(Code::data_loss, message(kMerges, "[", rank, "] is ", in_quotes(text), "; ", in_quotes(pieces[i]), " is none of the ",
                                             vocabulary.size(), " tokens"));
    }
    const uint64_t pair = pair_of(ids[0], ids[1]);
    table.slot(pair) = {pair, {static_cast<uint32_t>(rank), ids[2]}};
  }
  return table;
}

MergeTable::Slot& MergeTable::slot(uint64_t pair) {
  const size_t mask = slots_.size() - 1;
  size_t at = hash(pair, seed_) & mask;
  while (slots_[at].merge.rank != kNone.rank && slots_[at].pair != pair) at = (at + 1) & mask;
  return slots_[at];
}

MergeTable::Merge MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  const size_t mask = slots_.size() - 1;
  for (size_t at = hash(pair, seed_) & mask; slots_[at].merge.rank != kNone.rank; at = (at + 1) & mask)
    if (slots_[at].pair == pair) return slots_[at].merge;
  return kNone;
}

void MergeTable::apply(std::vector<int32_t>& ids, size_t first) const {
  const size_t n = ids.size() - first;
  if (n < 2) return;
  if (n <= kShort) {
    apply_short(ids, first);
  } else {
    apply_long(ids, first);
  }
}

void MergeTable::apply_short(std::vector<int32_t>& ids, size_t first) const {
  size_t n = ids.size() - first;
  int32_t* const id = ids.data() + first;
  Merge pairs[kShort];  // pairs[i]: of id[i] and id[i + 1]
  for (size_t i = 0; i + 1 < n; ++i) pairs[i] = find(id[i], id[i + 1]);
  while (n > 1) {
    const Merge* const best = std::min_element(pairs, pairs + n - 1, [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    if (best->rank == kNone.rank) break;
    const auto at = static_cast<size_t>(best - pairs);
    id[at] = best->id;
    std::copy(id + at + 2, id + n, id + at + 1);
    std::copy(pairs + at + 1, pairs + n - 1, pairs + at);
    --n;
    if (at + 1 < n) pairs[at] = find(id[at], id[at + 1]);
    if (at > 0) pairs[at - 1] = find(id[at - 1], id[at]);
  }
  ids.resize(first + n);
}

void MergeTable::apply_long(std::vector<int32_t>& ids, size_t first) const {
  constexpr uint32_t kEnd = std::numeric_limits<uint32_t>::max();
  struct Node {
    uint32_t previous, next;
    int32_t id;
    Merge pair;  // of this node and the next
  };
  const auto n = static_cast<uint32_t>(ids.size() - first);
  std::vector<Node> nodes(n);
  std::vector<uint64_t> heap;  // rank above, position below: the lowest rank first, then the leftmost
  const auto entry = [&](uint32_t at) { return static_cast<uint64_t>(nodes[at].pair.rank) << 32 | at; };
  for (uint32_t i = 0; i < n; ++i) {
    const bool last = i + 1 == n;
    const int32_t id = ids[first + i];
    nodes[i] = {i == 0 ? kEnd : i - 1, last ? kEnd : i + 1, id, last ? kNone : find(id, ids[first + i + 1])};
    if (nodes[i].pair.rank != kNone.rank) heap.push_back(entry(i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>{});
  const auto renew = [&](uint32_t at) {
    Node& node = nodes[at];
    node.pair = node.next == kEnd ? kNone : find(node.id, nodes[node.next].id);
    if (node.pair.rank == kNone.rank) return;
    heap.push_back(entry(at));
    std::push_heap(heap.begin(), heap.end(), std::greater<>{});
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto at = static_cast<uint32_t>(top);
    Node& node = nodes[at];
    // Older entries stay in the heap; a node's rank tells whether the entry still holds.
    if (node.pair.rank != static_cast<uint32_t>(top >> 32)) continue;
    node.id = node.pair.id;
    Node& gone = nodes[node.next];
    gone.pair = kNone;
    node.next = gone.next;
    if (node.next != kEnd) nodes[node.next].previous = at;
    renew(at);
    if (node.previous != kEnd) renew(node.previous);
  }
  size_t out = first;
  for (uint32_t at = 0; at != kEnd; at = nodes[at].next) ids[out++] = nodes[at].id;
  ids.resize(out);
}

}  // namespace fth
