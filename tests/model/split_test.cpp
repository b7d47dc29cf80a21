// Split models: parts found by name, checked against each other.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/model/config.h"
#include "tests/model/files.h"
#include "tests/model/tiny_models.h"

namespace fth::test {
namespace {

using ::testing::HasSubstr;

// The tiny model in three parts: keys in the first, tensors dealt out.
std::vector<GgufWriter> three_parts() {
  const GgufWriter whole = tiny_smallthinker();
  std::vector<GgufWriter> parts(3);
  parts[0].keys = whole.keys;
  for (size_t i = 0; i < whole.tensors.size(); ++i) parts[i * 3 / whole.tensors.size()].tensors.push_back(whole.tensors[i]);
  for (uint16_t no = 0; no < 3; ++no)
    parts[no].u16("split.no", no).u16("split.count", 3).i32("split.tensors.count", static_cast<int32_t>(whole.tensors.size()));
  return parts;
}

std::string part_name(int no) { return "m-0000" + std::to_string(no) + "-of-00003.gguf"; }

void write(const TempDir& dir, const std::vector<GgufWriter>& parts) {
  for (size_t i = 0; i < parts.size(); ++i) parts[i].write(dir / part_name(static_cast<int>(i) + 1));
}

void expect_error(const TempDir& dir, const std::string& opened, Code code, const std::string& says) {
  const auto g = Gguf::open(dir / opened);
  ASSERT_FALSE(g);
  EXPECT_EQ(g.error().code, code) << g.error().message;
  EXPECT_THAT(g.error().message, HasSubstr(says));
}

TEST(SplitGguf, ReadsAllParts) {
  const TempDir dir;
  const auto parts = three_parts();
  write(dir, parts);
  auto model = load_model(dir / part_name(1));
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->file.parts().size(), 3u);
  EXPECT_EQ(model->file.file_bytes(), parts[0].bytes().size() + parts[1].bytes().size() + parts[2].bytes().size());
  EXPECT_EQ(model->file.tensors().back().file, 2u);
  const GgufWriter whole = tiny_smallthinker();
  for (const auto& t : whole.tensors) {
    const TensorInfo* found = model->file.tensor(t.name);
    ASSERT_NE(found, nullptr) << t.name;
    EXPECT_EQ(std::memcmp(found->data, t.bytes.data(), t.bytes.size()), 0) << t.name;
  }
  uint64_t done = 0;
  EXPECT_TRUE(model->file.prefault([](void* self, uint64_t now, uint64_t) { *static_cast<uint64_t*>(self) = now; }, &done));
  EXPECT_EQ(done, model->file.file_bytes());
}

TEST(SplitGguf, AnotherPartNamesTheFirst) {
  const TempDir dir;
  write(dir, three_parts());
  expect_error(dir, part_name(2), Code::invalid_argument, "this is part 2 of 3; open the first one, " + (dir / part_name(1)).string());
}

TEST(SplitGguf, MissingPartIsNamed) {
  const TempDir dir;
  write(dir, three_parts());
  std::filesystem::remove(dir / part_name(3));
  expect_error(dir, part_name(1), Code::not_found, (dir / part_name(3)).string());
}

TEST(SplitGguf, ARenamedFirstPartIsRefused) {
  const TempDir dir;
  three_parts()[0].write(dir / "m.gguf");
  expect_error(dir, "m.gguf", Code::data_loss, "does not end in '-00001-of-00003.gguf'");
  three_parts()[0].write(dir / "m-00001-of-00002.gguf");
  expect_error(dir, "m-00001-of-00002.gguf", Code::data_loss, "the first of 3 parts");
  three_parts()[1].write(dir / part_name(1));
  expect_error(dir, part_name(1), Code::data_loss, "key 'split.no' is 1");
}

TEST(SplitGguf, PartsThatContradictEachOther) {
  struct Case {
    void (*change)(std::vector<GgufWriter>&);
    Code code;
    const char* says;
  };
  const Case cases[] = {
      {[](auto& p) { p[1].u16("split.no", 2); }, Code::data_loss, "split.no 2, split.count 3"},
      {[](auto& p) { p[2].u16("split.count", 4); }, Code::data_loss, "split.count 4"},
      {[](auto& p) { p[2].erase("split.no"); }, Code::data_loss, "split.no 0"},
      {[](auto& p) { p[1].i32("split.tensors.count", 7); }, Code::data_loss, "split.tensors.count 7"},
      {[](auto& p) { p[0].i32("split.tensors.count", -1); }, Code::data_loss, "key 'split.tensors.count' is -1"},
      {[](auto& p) { p[0].text("split.count", "3"); }, Code::data_loss, "key 'split.count' is not an integer"},
      {[](auto& p) { p[0].u64("split.count", ~0ull); }, Code::data_loss, "18446744073709551615"},
      {[](auto& p) { p[0].u32("split.count", 100000); }, Code::data_loss, "must be 0 to 99999"},
      {[](auto& p) { p[2].tensors.pop_back(); }, Code::data_loss, "'split.tensors.count' is 53, the 3 parts hold 52"},
      {[](auto& p) { p[2].tensors[0].name = "token_embd.weight"; }, Code::data_loss, "tensor 'token_embd.weight' occurs twice"},
      {[](auto& p) { p[2].magic = "nope"; }, Code::data_loss, "m-00003-of-00003.gguf: not a GGUF file"},
      {[](auto& p) { p[2].tensors[0].type = 23; }, Code::unimplemented, "IQ4_XS"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.says);
    const TempDir dir;
    auto parts = three_parts();
    c.change(parts);
    write(dir, parts);
    expect_error(dir, part_name(1), c.code, c.says);
  }
}

TEST(SplitGguf, OnePartOfOneIsAWholeFile) {
  const TempDir dir;
  GgufWriter w = tiny_smallthinker();
  w.u16("split.no", 0).u16("split.count", 1).i32("split.tensors.count", static_cast<int32_t>(w.tensors.size()));
  w.write(dir / "any.gguf");
  EXPECT_TRUE(Gguf::open(dir / "any.gguf"));
}

TEST(SplitGguf, ParseTakesNoParts) {
  const Bytes file = three_parts()[0].bytes();
  const auto g = Gguf::parse(file, "mem");
  ASSERT_FALSE(g);
  EXPECT_EQ(g.error().code, Code::invalid_argument);
}

}  // namespace
}  // namespace fth::test
