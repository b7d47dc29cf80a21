// A closed loop of random reads for each depth and length.
#include "core/experts/measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>

#include "core/base/bytes.h"
#include "core/experts/block_reader.h"
#include "core/experts/slot_memory.h"

namespace fth {
namespace {

constexpr uint32_t kDepths[] = {1, 2, 4, 8, 16};
constexpr uint64_t kLengths[] = {256 * kKiB, kMiB};
constexpr double kRows = static_cast<double>(std::size(kDepths) * std::size(kLengths));
constexpr double kClose = 0.95;

Result<ReadSpeed> measure_row(const FileSet& files, BlockReader* reader, std::span<std::byte> memory, uint32_t depth, uint64_t length,
                              double seconds, uint64_t* random) {
  using Clock = std::chrono::steady_clock;
  const uint64_t blocks = files.bytes(0) / kBlock;
  const uint64_t bytes = std::min(length, blocks * kBlock);
  const auto read = [&](uint32_t place) {
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    const uint64_t first = (*random >> 33) % (blocks - bytes / kBlock + 1);
    return BlockReader::Read{0, first * kBlock, static_cast<uint32_t>(bytes), memory.data() + place * length, place};
  };
  std::vector<BlockReader::Done> done;
  std::vector<BlockReader::Read> next;
  const auto begin = Clock::now();
  for (uint32_t i = 0; i < depth; ++i) next.push_back(read(i));
  uint64_t total = 0, in_flight = depth;
  double passed = 0;
  std::string error;
  reader->submit(next);
  while (in_flight > 0) {
    done.clear();
    next.clear();
    reader->collect(&done, true);
    passed = std::chrono::duration<double>(Clock::now() - begin).count();
    for (const auto& d : done) {
      --in_flight;
      if (d.count <= 0) error = d.count == 0 ? "the file ends" : std::strerror(static_cast<int>(-d.count));
      if (d.count > 0) total += static_cast<uint64_t>(d.count);
      if (passed < seconds && error.empty()) next.push_back(read(static_cast<uint32_t>(d.tag)));
    }
    in_flight += next.size();
    if (!next.empty()) reader->submit(next);
  }
  if (!error.empty()) return fail(Code::unavailable, files.path(0).string() + ": " + error);
  return ReadSpeed{depth, bytes, static_cast<double>(total) / std::max(passed, 1e-9)};
}

}  // namespace

Result<ReadMeasurement> measure_reads(const std::filesystem::path& path, const std::string& reader_name, double seconds) {
  FTH_ASSIGN_OR_RETURN(const FileSet files, FileSet::open({&path, 1}, true));
  if (files.bytes(0) < kBlock)
    return fail(Code::data_loss, path.string() + " has " + std::to_string(files.bytes(0)) + " bytes: too short to measure");
  const uint32_t deepest = *std::max_element(std::begin(kDepths), std::end(kDepths));
  FTH_ASSIGN_OR_RETURN(const SlotMemory memory, SlotMemory::allocate(deepest * kLengths[1], true));
  FTH_ASSIGN_OR_RETURN(const auto reader, open_reader(reader_name, files, memory.bytes(), deepest));
  ReadMeasurement m{reader->name() + (files.direct() ? ", O_DIRECT" : ", buffered"), files.direct(), {}, 0, 0, {}};
  uint64_t random = 1;
  for (const uint64_t length : kLengths) {
    for (const uint32_t depth : kDepths) {
      FTH_ASSIGN_OR_RETURN(const ReadSpeed row, measure_row(files, reader.get(), memory.bytes(), depth, length, seconds / kRows, &random));
      m.rows.push_back(row);
    }
  }
  const auto fastest =
      *std::max_element(m.rows.begin(), m.rows.end(), [](const auto& a, const auto& b) { return a.bytes_per_s < b.bytes_per_s; });
  std::vector<double> speeds;
  for (const ReadSpeed& r : m.rows) speeds.push_back(r.bytes_per_s);
  std::sort(speeds.rbegin(), speeds.rend());
  m.steady_bytes_per_s = speeds[2];
  for (const ReadSpeed& r : m.rows) {
    if (r.queue_depth != 1 || r.request_bytes != m.rows.back().request_bytes || r.bytes_per_s <= 0) continue;
    const auto bytes = static_cast<double>(r.request_bytes);
    m.wait_s = std::max(0.0, bytes / r.bytes_per_s - bytes / m.steady_bytes_per_s);
  }
  m.best = fastest;
  for (const ReadSpeed& r : m.rows)
    if (r.bytes_per_s >= kClose * fastest.bytes_per_s && r.queue_depth * r.request_bytes < m.best.queue_depth * m.best.request_bytes)
      m.best = r;
  return m;
}

}  // namespace fth
