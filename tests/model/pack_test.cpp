// Packing: the bytes that must come of it, continuing after an end at any point, refusals, and checksums that find damage.

#include "core/model/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "core/model/gguf_writer.h"
#include "core/model/interleaved.h"
#include "tests/model/files.h"
#include "tests/model/load.h"
#include "tests/model/packed_models.h"
#include "tests/model/touch.h"

namespace fth::test {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Bytes read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  Bytes out(fs::file_size(path));
  in.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
  return out;
}
void write(const fs::path& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

struct Place {
  TempDir dir;
  fs::path in = dir / "in.gguf", out = dir / "out.gguf", part = dir / "out.gguf.part", state = dir / "out.gguf.part.state";
  std::vector<std::string> notes;

  PackOptions options() {
    PackOptions o;
    o.in = in, o.out = out;
    o.on_note = [this](const std::string& note) { notes.push_back(note); };
    return o;
  }
  PackReport pack() {
    const auto report = pack_model(options());
    EXPECT_TRUE(report) << report.error().message;
    return report ? *report : PackReport{};
  }
  void pack_layers(int64_t n) {
    PackOptions o = options();
    o.stop_after = n;
    const auto report = pack_model(o);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code, Code::cancelled) << report.error().message;
    EXPECT_FALSE(fs::exists(out));
    EXPECT_TRUE(fs::exists(part));
  }
  void expect_refused(const PackOptions& o, Code code, const std::string& says) const {
    const auto report = pack_model(o);
    ASSERT_FALSE(report) << "packs, but should say: " << says;
    EXPECT_EQ(report.error().code, code) << report.error().message;
    EXPECT_THAT(report.error().message, HasSubstr(says));
    EXPECT_FALSE(fs::exists(part));
    EXPECT_FALSE(fs::exists(state));
  }
};

constexpr uint64_t kSlab = 4096;  // of the default shape: three matrices of 1152 bytes

TinyShape shape(GgmlType matrix, uint32_t n_embd = 32, uint32_t n_ff = 64) {
  TinyShape s;
  s.matrix = matrix, s.n_embd = n_embd, s.n_ff = n_ff;
  return s;
}

TEST(Pack, GivesTheBytesOfTheFormat) {
  TinyShape transposed = shape(GgmlType::q4_0);
  transposed.down_transposed = true;
  TinyShape many = shape(GgmlType::q8_0, 64, 96);
  many.n_expert = 37, many.n_layer = 2;
  TinyShape wide = shape(GgmlType::q4_k, 256, 512);
  wide.head_dim = 64;
  const struct {
    TinyShape shape;
    PackDown asked;
    DownLayout down;
    PackGate gate = PackGate::automatic;
    bool interleaved = false;
  } cases[] = {
      {shape(GgmlType::q4_0), PackDown::automatic, DownLayout::neuron_major, PackGate::automatic, true},
      {shape(GgmlType::q4_0), PackDown::neuron_major, DownLayout::neuron_major, PackGate::interleaved, true},
      {shape(GgmlType::q4_0), PackDown::row_major, DownLayout::row_major, PackGate::automatic, true},
      {shape(GgmlType::q4_0), PackDown::automatic, DownLayout::neuron_major, PackGate::row_major, false},
      {many, PackDown::automatic, DownLayout::neuron_major, PackGate::automatic, true},
      {shape(GgmlType::f32, 24, 20), PackDown::automatic, DownLayout::row_major},
      {shape(GgmlType::f16, 24, 7), PackDown::automatic, DownLayout::row_major},
      {wide, PackDown::automatic, DownLayout::row_major},
      {transposed, PackDown::automatic, DownLayout::by_neuron, PackGate::automatic, true},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(static_cast<int>(&c - cases));
    Place p;
    tiny_smallthinker(c.shape).write(p.in);
    PackOptions o = p.options();
    o.down = c.asked;
    o.gate = c.gate;
    uint64_t last = 0;
    o.on_progress = [&](uint64_t done, uint64_t total) {
      EXPECT_GE(done, last);
      EXPECT_LE(done, total);
      last = done;
    };
    const auto report = pack_model(o);
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_EQ(read(p.out), tiny_packed(c.shape, c.down, 2, c.interleaved).bytes());
    EXPECT_EQ(report->gate_interleaved, std::vector<bool>(c.shape.n_layer, c.interleaved));
    EXPECT_EQ(last, fs::file_size(p.out));
    EXPECT_EQ(report->out_bytes, fs::file_size(p.out));
    EXPECT_EQ(report->down, std::vector<DownLayout>(c.shape.n_layer, c.down));
    EXPECT_FALSE(fs::exists(p.part));
    EXPECT_FALSE(fs::exists(p.state));
    EXPECT_THAT(p.notes, IsEmpty());
  }
}

bool same(const Weight& a, const Weight& b) {
  return a.dtype == b.dtype && a.experts == b.experts && a.rows == b.rows && a.cols == b.cols && a.bytes == b.bytes;
}

TEST(Pack, TheModelIsTheSame) {
  for (const GgmlType type : {GgmlType::q4_0, GgmlType::q8_0, GgmlType::f16}) {
    Place p;
    tiny_smallthinker(shape(type)).write(p.in);
    p.pack();
    const auto plain = load_model(p.in), packed = load_model(p.out);
    ASSERT_TRUE(plain && packed);
    EXPECT_EQ(packed->config.packed, 2);
    EXPECT_EQ(plain->config.packed, 0);
    EXPECT_EQ(packed->weight_bytes(), plain->weight_bytes());
    EXPECT_EQ(packed->bytes_per_token(), plain->bytes_per_token());
    EXPECT_EQ(packed->notes, plain->notes);
    const Config &a = plain->config, &b = packed->config;
    EXPECT_EQ(
        std::tie(a.architecture, a.name, a.n_vocab, a.n_ctx, a.n_embd, a.n_layer, a.n_head, a.n_head_kv, a.head_dim, a.n_ff, a.n_expert),
        std::tie(b.architecture, b.name, b.n_vocab, b.n_ctx, b.n_embd, b.n_layer, b.n_head, b.n_head_kv, b.head_dim, b.n_ff, b.n_expert));
    EXPECT_EQ(std::tie(a.top_k, a.rms_eps, a.rope_dims, a.rope_scale, a.rope_pairing, a.activation, a.gating),
              std::tie(b.top_k, b.rms_eps, b.rope_dims, b.rope_scale, b.rope_pairing, b.activation, b.gating));
    for (size_t i = 0; i < plain->layers.size(); ++i) {
      const Layer &l = plain->layers[i], &m = packed->layers[i];
      EXPECT_EQ(std::tie(l.rope, l.rope_base, l.window), std::tie(m.rope, m.rope_base, m.window));
      EXPECT_EQ(touch(l.router), touch(m.router));
      ASSERT_TRUE(same(l.gate, m.gate) && same(l.up, m.up) && same(l.down, m.down));
      EXPECT_EQ(m.gate.offset % kSlabAlignment, 0u);
      EXPECT_EQ(m.gate.stride % kSlabAlignment, 0u);
      const bool by_neuron = type != GgmlType::f16;
      ASSERT_EQ(m.down_layout, by_neuron ? DownLayout::neuron_major : DownLayout::row_major);
      const bool panels = type != GgmlType::f16;
      ASSERT_EQ(std::pair(m.gate.interleaved, m.gate.interleaved_in_file), std::pair(panels, panels));
      const size_t n = l.down.expert_bytes();
      for (size_t e = 0; e < static_cast<size_t>(a.n_expert); ++e) {
        Bytes gate(m.gate.data + e * m.gate.stride, m.gate.data + e * m.gate.stride + m.gate.expert_bytes());
        if (panels) {
          ASSERT_TRUE(from_interleaved(m.gate.dtype, m.gate.rows, m.gate.cols, m.gate.data + e * m.gate.stride, gate.data()));
        }
        EXPECT_EQ(std::memcmp(l.gate.data + e * l.gate.stride, gate.data(), l.gate.expert_bytes()), 0);
        EXPECT_EQ(std::memcmp(l.up.data + e * l.up.stride, m.up.data + e * m.up.stride, l.up.expert_bytes()), 0);
        Bytes back(m.down.data + e * m.down.stride, m.down.data + e * m.down.stride + n);
        if (by_neuron) {
          ASSERT_TRUE(from_neuron_major(m.down.dtype, m.down.rows, m.down.cols, m.down.data + e * m.down.stride, back.data()));
        }
        EXPECT_EQ(std::memcmp(l.down.data + e * l.down.stride, back.data(), n), 0);
      }
    }
  }
}

TEST(Pack, OneFileComesOfASplitModel) {
  Place p;
  const GgufWriter whole = tiny_smallthinker();
  for (uint16_t no = 0; no < 2; ++no) {
    GgufWriter part;
    if (no == 0) part.keys = whole.keys;
    for (size_t i = 0; i < whole.tensors.size(); ++i)
      if (i * 2 / whole.tensors.size() == no) part.tensors.push_back(whole.tensors[i]);
    part.u16("split.no", no).u16("split.count", 2).i32("split.tensors.count", static_cast<int32_t>(whole.tensors.size()));
    part.write(p.dir / ("m-0000" + std::to_string(no + 1) + "-of-00002.gguf"));
  }
  p.in = p.dir / "m-00001-of-00002.gguf";
  p.pack();
  EXPECT_EQ(read(p.out), tiny_packed({}, DownLayout::neuron_major).bytes());
  PackOptions onto = p.options();
  onto.out = p.dir / "m-00002-of-00002.gguf";
  onto.replace = true;
  p.expect_refused(onto, Code::invalid_argument, "over the input");
}

TEST(Pack, ContinuesAfterTheLastFinishedLayer) {
  const Bytes expected = tiny_packed({}, DownLayout::neuron_major).bytes();
  for (const int64_t n : {0, 1, 3, 4, 5}) {
    SCOPED_TRACE(n);
    Place p;
    tiny_smallthinker().write(p.in);
    p.pack_layers(n);
    p.notes.clear();
    const PackReport report = p.pack();
    EXPECT_EQ(report.layers_kept, n);
    EXPECT_LT(report.written_bytes, expected.size() * (n == 0 ? 2 : 1));
    EXPECT_THAT(p.notes, ElementsAre(HasSubstr(std::to_string(n) + " of 5 layers are done")));
    EXPECT_EQ(read(p.out), expected);
    EXPECT_FALSE(fs::exists(p.part));
    EXPECT_FALSE(fs::exists(p.state));
  }
}

TEST(Pack, StopsWhenAskedAndContinues) {
  Place p;
  tiny_smallthinker().write(p.in);
  int runs = 0, asked = 0;
  for (; runs < 20; ++runs) {
    PackOptions o = p.options();
    int left = 12;  // more than the dense tensors ask, less than the whole
    o.stopped = [&] { return ++asked, left-- == 0; };
    left += runs == 0 ? 60 : 0;
    const auto report = pack_model(o);
    if (report) break;
    ASSERT_EQ(report.error().code, Code::cancelled);
  }
  EXPECT_GT(asked, 0);
  EXPECT_LT(runs, 20);
  EXPECT_EQ(read(p.out), tiny_packed({}, DownLayout::neuron_major).bytes());
}

// In place: a key that is written again goes to the end.
void rename(GgufWriter& w) {
  for (auto& key : w.keys)
    if (key.name == "general.name") put_text(key.value = {}, "another");
}

// What an unfinished pack can look like by the time it is continued, and how many layers are still good.
TEST(Pack, BelievesAnUnfinishedPackOnlyWhereItChecksOut) {
  const struct {
    const char* name;
    void (*harm)(Place&);
    int64_t kept;
    const char* says;
  } cases[] = {
      {"nothing", [](Place&) {}, 3, "3 of 5"},
      {"torn record", [](Place& p) { fs::resize_file(p.state, fs::file_size(p.state) - 5); }, 2, "2 of 5"},
      {"only the identity's start", [](Place& p) { fs::resize_file(p.state, 10); }, 0, "another input"},
      {"empty journal", [](Place& p) { fs::resize_file(p.state, 0); }, 0, ""},
      {"no journal", [](Place& p) { fs::remove(p.state); }, 0, ""},
      {"no file", [](Place& p) { fs::remove(p.part); }, 0, "missing"},
      {"short file", [](Place& p) { fs::resize_file(p.part, fs::file_size(p.part) - 1); }, 0, "missing"},
      {"junk journal", [](Place& p) { write(p.state, Bytes(5000, std::byte{0x20})); }, 0, "another input"},
      {"a changed record",
       [](Place& p) {
         Bytes b = read(p.state);
         const std::string_view text(reinterpret_cast<const char*>(b.data()), b.size());
         b[text.find("layer 1 ") + 9] ^= std::byte{1};
         write(p.state, b);
       },
       1, "1 of 5"},
      {"a changed slab",
       [](Place& p) {
         Bytes b = read(p.part);
         b[b.size() - 4 * 4 * kSlab + 20] ^= std::byte{1};  // layer 1; 4 slabs a layer
         write(p.part, b);
       },
       1, "layer 1"},
      {"a changed dense tensor",
       [](Place& p) {
         Bytes b = read(p.part);
         b[b.size() - 20 * kSlab - 4096] ^= std::byte{1};  // the last one's first byte
         write(p.part, b);
       },
       0, "in front of its layers"},
      {"newer input", [](Place& p) { fs::last_write_time(p.in, fs::last_write_time(p.in) + std::chrono::seconds(2)); }, 0, "another input"},
      {"another input",
       [](Place& p) {
         GgufWriter w = tiny_smallthinker();
         rename(w);
         w.write(p.in);
       },
       0, "another input"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Place p;
    tiny_smallthinker().write(p.in);
    p.pack_layers(3);
    p.notes.clear();
    c.harm(p);
    const PackReport report = p.pack();
    EXPECT_EQ(report.layers_kept, c.kept);
    if (*c.says == '\0') {
      EXPECT_THAT(p.notes, IsEmpty());
    } else {
      ASSERT_FALSE(p.notes.empty());
      EXPECT_THAT(p.notes.front(), HasSubstr(c.says));
    }
    GgufWriter expected = tiny_packed({}, DownLayout::neuron_major);
    if (std::string_view(c.name) == "another input") rename(expected);
    EXPECT_EQ(read(p.out), expected.bytes());
  }
}

TEST(Pack, OtherOptionsBeginAnew) {
  Place p;
  tiny_smallthinker().write(p.in);
  p.pack_layers(3);
  PackOptions o = p.options();
  o.down = PackDown::row_major;
  const auto report = pack_model(o);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->layers_kept, 0);
  EXPECT_EQ(read(p.out), tiny_packed({}, DownLayout::row_major).bytes());
}

TEST(Pack, RefusesBeforeItWrites) {
  Place p;
  tiny_llama().write(p.in);
  p.expect_refused(p.options(), Code::invalid_argument, "no experts");
  tiny_packed({}, DownLayout::neuron_major).write(p.in);
  p.expect_refused(p.options(), Code::invalid_argument, "packed already");
  tiny_smallthinker().write(p.in);
  PackOptions o = p.options();
  o.out = p.dir.path() / "." / "in.gguf";
  o.replace = true;
  p.expect_refused(o, Code::invalid_argument, "over the input");
  fs::create_hard_link(p.in, p.dir / "linked.gguf");
  o.out = p.dir / "linked.gguf";
  p.expect_refused(o, Code::invalid_argument, "over the input");
  fs::create_hard_link(p.in, p.dir / "trap.gguf.part");
  o.out = p.dir / "trap.gguf";
  p.expect_refused(o, Code::invalid_argument, "over the input");
  o.out = p.dir.path();
  p.expect_refused(o, Code::failed_precondition, "no regular file");
  o.out = p.dir / "missing/out.gguf";
  p.expect_refused(o, Code::failed_precondition, "missing");
  o = p.options();
  o.in = p.dir / "nothing.gguf";
  p.expect_refused(o, Code::not_found, "nothing.gguf");
  EXPECT_EQ(read(p.in), tiny_smallthinker().bytes());

  write(p.out, Bytes(3));
  p.expect_refused(p.options(), Code::failed_precondition, "--force");
  EXPECT_EQ(read(p.out), Bytes(3));
  o = p.options();
  o.replace = true;
  ASSERT_TRUE(pack_model(o));
  EXPECT_EQ(read(p.out), tiny_packed({}, DownLayout::neuron_major).bytes());
}

TEST(Pack, RefusesAnOrderThatALayerCannotHave) {
  Place p;
  PackOptions o = p.options();
  o.down = PackDown::neuron_major;
  tiny_smallthinker(shape(GgmlType::f16)).write(p.in);
  p.expect_refused(o, Code::invalid_argument, "layer 0: neuron-major: f16");
  TinyShape transposed = shape(GgmlType::q4_0);
  transposed.down_transposed = true;
  tiny_smallthinker(transposed).write(p.in);
  p.expect_refused(o, Code::invalid_argument, "by neuron");
  o.down = PackDown::row_major;
  p.expect_refused(o, Code::invalid_argument, "by neuron");
  o = p.options();
  o.gate = PackGate::interleaved;
  tiny_smallthinker(shape(GgmlType::f16)).write(p.in);
  p.expect_refused(o, Code::invalid_argument, "layer 0: gate: interleaved rows: f16");
}

TEST(Pack, PackedAgainInTheNewestFormatOrInOtherOrders) {
  const Bytes newest = tiny_packed({}, DownLayout::neuron_major).bytes(), rows = tiny_packed({}, DownLayout::row_major, 2, false).bytes();
  for (const DownLayout down : {DownLayout::row_major, DownLayout::neuron_major})
    for (const auto& [version, interleaved] : {std::pair(1u, false), std::pair(2u, false), std::pair(2u, true)}) {
      SCOPED_TRACE(version);
      if (interleaved && down == DownLayout::neuron_major) continue;  // refused, see above
      Place p;
      tiny_packed({}, down, version, interleaved).write(p.in);
      p.pack();
      EXPECT_EQ(read(p.out), newest);
    }
  Place p;
  tiny_packed({}, DownLayout::neuron_major).write(p.in);
  PackOptions o = p.options();
  o.down = PackDown::row_major;
  o.gate = PackGate::row_major;
  ASSERT_TRUE(pack_model(o));
  EXPECT_EQ(read(p.out), rows);

  // A new checksum over damaged weights would hide them.
  Place q;
  Bytes damaged = tiny_packed({}, DownLayout::neuron_major, 1).bytes();
  damaged[damaged.size() - 8 * kSlab + 5] ^= std::byte{1};  // layer 3, expert 0
  write(q.in, damaged);
  const auto report = pack_model(q.options());
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::data_loss) << report.error().message;
  EXPECT_THAT(report.error().message, HasSubstr("expert 0 of layer 3 is damaged"));
  EXPECT_FALSE(fs::exists(q.out));
}

TEST(Pack, SaysBeforehandThatTheDiskIsTooSmall) {
  Place p;
  GgufWriter w = tiny_smallthinker();
  const uint64_t free = fs::space(p.dir.path()).available, bytes = (free / 4096 + 4096) * 4096;
  w.tensors.push_back({"large.weight", {bytes / 4}, static_cast<uint32_t>(GgmlType::i32), {}});
  w.write(p.in);
  std::error_code error;
  fs::resize_file(p.in, fs::file_size(p.in) + bytes + 4096, error);  // a hole
  if (error) GTEST_SKIP() << "no sparse file of " << bytes << " bytes here: " << error.message();
  p.expect_refused(p.options(), Code::failed_precondition, "are free");
}

TEST(Pack, OneProcessAtATime) {
  Place p;
  tiny_smallthinker().write(p.in);
  Result<PackReport> second = PackReport{};
  PackOptions o = p.options();
  o.on_progress = [&](uint64_t, uint64_t) {
    if (second) second = pack_model(p.options());
  };
  ASSERT_TRUE(pack_model(o));
  ASSERT_FALSE(second);
  EXPECT_THAT(second.error().message, HasSubstr("another process"));
  EXPECT_EQ(read(p.out), tiny_packed({}, DownLayout::neuron_major).bytes());
}

TEST(Verify, NamesTheDamagedSlabs) {
  Place p;
  tiny_smallthinker().write(p.in);
  p.pack();
  {
    const auto model = load_model(p.out);
    const auto damaged = verify_packed(*model);
    ASSERT_TRUE(damaged) << damaged.error().message;
    EXPECT_THAT(*damaged, IsEmpty());
    const auto stopped = verify_packed(*model, {}, [] { return true; });
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, Code::cancelled);
  }
  const uint64_t slabs = fs::file_size(p.out) - 20 * kSlab;
  Bytes bytes = read(p.out);
  bytes[slabs + (4 * 2 + 3) * kSlab + 1] ^= std::byte{1};                                             // a bit of gate
  bytes[slabs + (4 * 4 + 0) * kSlab + slab_layout(1152, 1152, 1152).down + 1151] ^= std::byte{0x80};  // the last of down
  bytes[slabs + kSlab - 1] ^= std::byte{1};                                                           // padding, which counts for nothing
  write(p.out, bytes);
  const auto model = load_model(p.out);
  ASSERT_TRUE(model) << model.error().message;
  const auto damaged = verify_packed(*model);
  ASSERT_TRUE(damaged) << damaged.error().message;
  ASSERT_EQ(damaged->size(), 2u);
  EXPECT_EQ(std::pair((*damaged)[0].layer, (*damaged)[0].expert), std::pair(int64_t{2}, int64_t{3}));
  EXPECT_EQ(std::pair((*damaged)[1].layer, (*damaged)[1].expert), std::pair(int64_t{4}, int64_t{0}));

  fs::resize_file(p.out, slabs + 9 * kSlab + 100);
  const auto cut = verify_packed(*model);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, Code::data_loss);
  EXPECT_THAT(cut.error().message, HasSubstr("layer 2, expert 1"));
  const auto plain = load_model(p.in);
  EXPECT_EQ(verify_packed(*plain).error().code, Code::failed_precondition);
}

TEST(PackedModel, MalformedOnesAreRefused) {
  const auto changed = [](auto change) {
    GgufWriter w = tiny_packed({}, DownLayout::neuron_major);
    change(w);
    return w;
  };
  const auto refused = [&](Code code, const std::string& says, auto change) {
    SCOPED_TRACE(says);
    expect_refused(changed(change), code, says);
  };
  ASSERT_TRUE(load(changed([](GgufWriter&) {})).model);
  const auto all = [](const char* word, size_t n) { return std::vector<std::string>(n, word); };
  const std::vector<uint64_t> sums(20);
  refused(Code::unimplemented, "is 3; this program reads versions 1 and 2", [](GgufWriter& w) { w.u32(kPackedVersion, 3); });
  refused(Code::unimplemented, "is 0; this program", [](GgufWriter& w) { w.u32(kPackedVersion, 0); });
  refused(Code::data_loss, "not an integer", [](GgufWriter& w) { w.text(kPackedVersion, "1"); });
  refused(Code::data_loss, "has 14 elements", [&](GgufWriter& w) { w.texts(kPackedTypes, all("q4_0", 14)); });
  refused(Code::data_loss, "has 4 elements", [&](GgufWriter& w) { w.texts(kPackedDown, all("row_major", 4)); });
  refused(Code::data_loss, "has 19 elements",
          [&](GgufWriter& w) { w.array<uint64_t>(kPackedXxh3, MetaType::u64, std::vector<uint64_t>(19)); });
  refused(Code::data_loss, "another type", [&](GgufWriter& w) { w.array<uint64_t>(kPackedXxh3, MetaType::i64, sums); });
  refused(Code::data_loss, "another type", [&](GgufWriter& w) { w.array<uint32_t>(kPackedDown, MetaType::u32, {0, 0, 0, 0, 0}); });
  refused(Code::data_loss, "not an array", [](GgufWriter& w) { w.text(kPackedDown, "row_major"); });
  for (const std::string_view key : {kPackedTypes, kPackedDown, kPackedGate, kPackedXxh3})
    refused(Code::not_found, "is missing", [&](GgufWriter& w) { w.erase(key); });
  refused(Code::data_loss, "is 'sideways' for layer 0", [&](GgufWriter& w) { w.texts(kPackedDown, all("sideways", 5)); });
  refused(Code::data_loss, "has 4 elements", [&](GgufWriter& w) { w.texts(kPackedGate, all("row_major", 4)); });
  refused(Code::data_loss, "another type", [&](GgufWriter& w) { w.array<uint32_t>(kPackedGate, MetaType::u32, {0, 0, 0, 0, 0}); });
  refused(Code::data_loss, "is 'upright' for layer 2", [&](GgufWriter& w) {
    w.texts(kPackedGate, {"row_major", "interleaved", "upright", "row_major", "row_major"});
  });
  refused(Code::data_loss, "is \"interleaved\" for layer 0: interleaved rows: f16", [&](GgufWriter& w) {
    w.texts(kPackedTypes, all("f16", 15));
    w.texts(kPackedDown, all("row_major", 5));
  });
  TinyShape odd = shape(GgmlType::q4_0, 32, 24);
  odd.down_transposed = true;
  GgufWriter no_panels = tiny_packed(odd, DownLayout::by_neuron);
  ASSERT_TRUE(load(no_panels).model);
  no_panels.texts(kPackedGate, all("interleaved", 5));
  expect_refused(no_panels, Code::data_loss, "a matrix of 24 rows");
  // Version 1 has no such key: what one of that name says is nobody's order.
  GgufWriter first = tiny_packed({}, DownLayout::neuron_major, 1);
  first.texts(kPackedGate, all("interleaved", 5));
  const auto read_first = load(first);
  ASSERT_TRUE(read_first.model);
  EXPECT_EQ(read_first.model->config.packed, 1);
  EXPECT_FALSE(read_first.model->layers[0].gate.interleaved);
  refused(Code::data_loss, "is 'q5_0' for gate", [&](GgufWriter& w) { w.texts(kPackedTypes, all("q5_0", 15)); });
  refused(Code::data_loss, "is 'i32' for gate", [&](GgufWriter& w) { w.texts(kPackedTypes, all("i32", 15)); });
  refused(Code::data_loss, "needs a multiple of 256", [&](GgufWriter& w) { w.texts(kPackedTypes, all("q4_k", 15)); });
  refused(Code::data_loss, "must be q4_0 or q8_0", [&](GgufWriter& w) { w.texts(kPackedTypes, all("f16", 15)); });
  refused(Code::data_loss, "'blk.3.ffn_experts.slab' is missing", [](GgufWriter& w) { w.erase_tensor("blk.3.ffn_experts.slab"); });
  refused(Code::data_loss, "4 slabs of 4096 bytes", [](GgufWriter& w) {  // a slab too short
    auto& t = w.at("blk.0.ffn_experts.slab");
    t.dims[0] /= 2;
    t.bytes.resize(t.bytes.size() / 2);
  });
  refused(Code::data_loss, "aligned to 4096", [](GgufWriter& w) {  // 4096-byte slabs at odd places
    w.alignment = 32;
    w.u32("general.alignment", 32);
  });
  refused(Code::data_loss, "the file is truncated", [](GgufWriter& w) { w.tensors.back().bytes.resize(4096); });
  refused(Code::data_loss, "4 slabs of", [](GgufWriter& w) {  // an expert too many
    w.u32("smallthinker.expert_count", 4).u32("smallthinker.expert_feed_forward_length", 128);
  });
}

TEST(Writer, WritesWhatTheParserReads) {
  test::GgufWriter w = tiny_llama();
  w.u16("u16", 65535).i32("i32", -5).u64("u64", ~uint64_t{0}).f32("f32", 0.1f).f64("f64", 0.1).boolean("yes", true).text("text", "\xff\n");
  w.key("u8", MetaType::u8, encoded<uint8_t>(200)).key("i8", MetaType::i8, encoded<int8_t>(-100));
  w.key("i16", MetaType::i16, encoded<int16_t>(-30000)).key("i64", MetaType::i64, encoded<int64_t>(std::numeric_limits<int64_t>::min()));
  w.texts("texts", {"a", "", "\xf0"}).texts("no texts", {});
  w.array<uint8_t>("bools", MetaType::boolean, {1, 0, 1}).array<double>("f64s", MetaType::f64, {1, -2});
  w.array<int16_t>("i16s", MetaType::i16, {-1, 2, 3}).array<float>("f32s", MetaType::f32, {}).array<uint64_t>("u64s", MetaType::u64, {9});
  for (const auto type : {GgmlType::f16, GgmlType::bf16, GgmlType::q8_0, GgmlType::q4_1, GgmlType::q4_k, GgmlType::q6_k})
    tiny_matrix(w, "t" + std::to_string(static_cast<int>(type)), type, {256, 3, 2});
  const Bytes bytes = w.bytes();
  const auto file = Gguf::parse(bytes, "mem");
  ASSERT_TRUE(file) << file.error().message;
  fth::GgufWriter ours(32);
  for (const MetaValue& kv : file->metadata()) ours.key(kv);
  for (const TensorInfo& t : file->tensors()) ours.tensor(t.name, t.dtype, std::span(t.dims).first(t.rank), t.bytes);
  const GgufHead head = ours.finish();
  ASSERT_LE(head.bytes.size(), bytes.size());
  EXPECT_EQ(std::memcmp(head.bytes.data(), bytes.data(), head.bytes.size()), 0);
  for (size_t i = 0; i < head.offsets.size(); ++i) EXPECT_EQ(head.offsets[i], file->tensors()[i].offset);
  EXPECT_EQ(head.file_bytes, (bytes.size() + 31) / 32 * 32);
}

}  // namespace
}  // namespace fth::test
