// Gguf on files that are right: metadata of every type, tensors, views, mapping, real files.

#include "core/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <limits>
#include <type_traits>

#include "tests/model/files.h"
#include "tests/model/gguf_writer.h"
#include "tests/model/tiny_models.h"

namespace fth::test {
namespace {

using ::testing::HasSubstr;

constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, which old headers lack

TEST(Gguf, ReadsEveryMetadataType) {
  GgufWriter w;
  w.key("a.u8", MetaType::u8, encoded<uint8_t>(200)).key("a.i8", MetaType::i8, encoded<int8_t>(-100));
  w.u16("a.u16", 65535).key("a.i16", MetaType::i16, encoded<int16_t>(-30000));
  w.u32("a.u32", 4000000000u).i32("a.i32", -2000000000).u64("a.u64", ~0ull).key("a.i64", MetaType::i64, encoded<int64_t>(INT64_MIN));
  w.f32("a.f32", 0.5f).f64("a.f64", 1e300).boolean("a.yes", true).boolean("a.no", false).text("a.text", "h\xc3\xa9llo").text("a.empty", "");
  w.array<int32_t>("a.ints", MetaType::i32, {-1, 2, 3}).texts("a.texts", {"x", "", "\xff\xfe"}).array<float>("a.none", MetaType::f32, {});
  for (const uint32_t version : {2u, 3u}) {
    w.version = version;
    const Bytes file = w.bytes();
    auto g = Gguf::parse(file, "mem");
    ASSERT_TRUE(g) << g.error().message;
    EXPECT_EQ(g->version(), version);
    EXPECT_EQ(g->alignment(), 32u);
    EXPECT_EQ(g->file_bytes(), file.size());
    EXPECT_EQ(g->metadata().size(), 17u);
    EXPECT_EQ(g->metadata()[0].key, "a.u8");
    EXPECT_EQ(g->integer("a.u8"), 200);
    EXPECT_EQ(g->integer("a.i8"), -100);
    EXPECT_EQ(g->integer("a.u16"), 65535);
    EXPECT_EQ(g->integer("a.i16"), -30000);
    EXPECT_EQ(g->integer("a.u32"), 4000000000);
    EXPECT_EQ(g->integer("a.i32"), -2000000000);
    EXPECT_EQ(g->integer("a.i64"), INT64_MIN);
    EXPECT_EQ(g->number("a.f32"), 0.5);
    EXPECT_EQ(g->number("a.f64"), 1e300);
    EXPECT_EQ(g->number("a.i32"), -2e9);
    EXPECT_EQ(g->number("a.u64"), 18446744073709551615.0);
    EXPECT_EQ(g->boolean("a.yes"), true);
    EXPECT_EQ(g->boolean("a.no"), false);
    EXPECT_EQ(g->string("a.text"), "h\xc3\xa9llo");
    EXPECT_EQ(g->string("a.empty"), "");
    const MetaArray& ints = **g->array("a.ints");
    EXPECT_EQ(ints.count, 3u);
    EXPECT_EQ(ints.bytes.size(), 12u);
    EXPECT_EQ(ints.integer(0), -1);
    EXPECT_EQ(ints.number(2), 3.0);
    EXPECT_THAT((*g->array("a.texts"))->strings, ::testing::ElementsAre("x", "", "\xff\xfe"));
    EXPECT_EQ((*g->array("a.none"))->count, 0u);
  }
}

TEST(Gguf, TypedAccessSaysWhatIsWrong) {
  GgufWriter w;
  w.u64("big", ~0ull).f32("half", 0.5f).text("text", "t").array<uint8_t>("flags", MetaType::boolean, {0, 1, 2}).texts("texts", {"a"});
  w.array<uint64_t>("huge", MetaType::u64, {1, ~0ull}).array<double>("reals", MetaType::f64, {2.5});
  const Bytes file = w.bytes();
  auto g = Gguf::parse(file, "mem");
  ASSERT_TRUE(g) << g.error().message;
  const auto expect = [](const auto& result, Code code, const char* part) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, code);
    EXPECT_THAT(result.error().message, HasSubstr(part));
  };
  expect(g->integer("none"), Code::not_found, "key 'none' is missing");
  expect(g->number("none"), Code::not_found, "'none'");
  expect(g->boolean("none"), Code::not_found, "'none'");
  expect(g->string("none"), Code::not_found, "'none'");
  expect(g->array("none"), Code::not_found, "'none'");
  expect(g->integer("big"), Code::data_loss, "18446744073709551615");
  expect(g->integer("half"), Code::data_loss, "not an integer");
  expect(g->number("text"), Code::data_loss, "not a number");
  expect(g->boolean("half"), Code::data_loss, "not a bool");
  expect(g->string("half"), Code::data_loss, "not a string");
  expect(g->array("half"), Code::data_loss, "not an array");
  expect((*g->array("flags"))->integer(2), Code::data_loss, "bool of value 2");
  expect((*g->array("flags"))->integer(3), Code::out_of_range, "3 of 3");
  expect((*g->array("texts"))->integer(0), Code::data_loss, "not an integer");
  expect((*g->array("texts"))->number(0), Code::data_loss, "not a number");
  expect((*g->array("huge"))->integer(1), Code::data_loss, "2^63");
  expect((*g->array("reals"))->integer(0), Code::data_loss, "not an integer");
  EXPECT_EQ((*g->array("flags"))->integer(1), 1);
  EXPECT_EQ((*g->array("reals"))->number(0), 2.5);
  EXPECT_EQ((*g->array("huge"))->number(1), 18446744073709551615.0);
}

template <class T>
void expect_elements(MetaType type) {
  const std::vector<T> values{std::numeric_limits<T>::lowest(), T{1}, std::numeric_limits<T>::max()};
  GgufWriter w;
  w.array<T>("a", type, values);
  const Bytes file = w.bytes();
  auto g = Gguf::parse(file, "mem");
  ASSERT_TRUE(g) << g.error().message;
  const MetaArray& array = **g->array("a");
  EXPECT_EQ(array.type, type);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(array.number(i), static_cast<double>(values[i]));
    if (std::is_integral_v<T> && i < 2) {
      EXPECT_EQ(array.integer(i), static_cast<int64_t>(values[i]));
    }
  }
}

TEST(Gguf, ArrayElementsOfEveryNumberType) {
  expect_elements<uint8_t>(MetaType::u8);
  expect_elements<int8_t>(MetaType::i8);
  expect_elements<uint16_t>(MetaType::u16);
  expect_elements<int16_t>(MetaType::i16);
  expect_elements<uint32_t>(MetaType::u32);
  expect_elements<int32_t>(MetaType::i32);
  expect_elements<uint64_t>(MetaType::u64);
  expect_elements<int64_t>(MetaType::i64);
  expect_elements<float>(MetaType::f32);
  expect_elements<double>(MetaType::f64);
}

TEST(Gguf, TensorsAreViewsInFileOrder) {
  GgufWriter w;
  w.alignment = 64;
  w.u32("general.alignment", 64);
  w.tensor("q", GgmlType::q4_0, {64, 3, 2}, weights(GgmlType::q4_0, 384));
  w.tensor("b", GgmlType::bf16, {5}, weights(GgmlType::bf16, 5)).tensor("k", GgmlType::q6_k, {512, 2}, weights(GgmlType::q6_k, 1024));
  w.tensor("i", GgmlType::i32, {3, 1, 1, 2}, Bytes(24));
  const Bytes file = w.bytes();
  auto g = Gguf::parse(file, "mem");
  ASSERT_TRUE(g) << g.error().message;
  EXPECT_EQ(g->alignment(), 64u);
  ASSERT_EQ(g->tensors().size(), 4u);
  const TensorInfo* q = g->tensor("q");
  ASSERT_NE(q, nullptr);
  EXPECT_EQ(q, &g->tensors()[0]);
  EXPECT_EQ(q->rank, 3u);
  EXPECT_EQ(q->dims, (std::array<int64_t, 4>{2, 3, 64, 0}));  // slowest first
  EXPECT_EQ(q->bytes, 384u / 32 * 18);
  for (const TensorInfo& t : g->tensors()) {
    EXPECT_EQ(t.data, file.data() + t.offset);
    const Bytes& written = w.at(t.name).bytes;
    EXPECT_EQ(t.bytes, written.size());
    EXPECT_EQ(std::memcmp(t.data, written.data(), written.size()), 0) << t.name;
    EXPECT_EQ(t.offset % 64, 0u);
  }
  EXPECT_EQ(g->tensor("k")->bytes, 840u);
  EXPECT_EQ(g->tensor("i")->dtype, DType::i32);
  EXPECT_EQ(g->tensor("nope"), nullptr);
  EXPECT_EQ(g->find("nope"), nullptr);
}

TEST(Gguf, GapsBetweenTensorsAreAllowed) {
  GgufWriter w;
  w.tensor("b", GgmlType::f32, {8}, Bytes(32)).tensor("a", GgmlType::f32, {8}, Bytes(96));
  w.tensors[0].offset = 64;
  w.tensors[1].offset = 0;
  const Bytes file = w.bytes();
  auto g = Gguf::parse(file, "mem");
  ASSERT_TRUE(g) << g.error().message;
  EXPECT_GT(g->tensor("b")->offset, g->tensor("a")->offset);
}

TEST(Gguf, OpensAFileAndPrefaultsIt) {
  const TempDir dir;
  const GgufWriter w = tiny_smallthinker();
  w.write(dir / "m.gguf");
  auto g = Gguf::open(dir / "m.gguf");
  ASSERT_TRUE(g) << g.error().message;
  Gguf moved = std::move(*g);
  EXPECT_EQ(moved.parts().size(), 1u);
  EXPECT_EQ(moved.file_bytes(), w.bytes().size());
  EXPECT_EQ(std::memcmp(moved.tensor("output.weight")->data, w.tensors[2].bytes.data(), w.tensors[2].bytes.size()), 0);
  std::pair<uint64_t, uint64_t> last{};
  EXPECT_TRUE(moved.prefault(
      [](void* self, uint64_t done, uint64_t total) {
        *static_cast<std::pair<uint64_t, uint64_t>*>(self) = {done, total};
      },
      &last));
  EXPECT_EQ(last.first, moved.file_bytes());
  EXPECT_EQ(last.second, moved.file_bytes());
  EXPECT_TRUE(moved.prefault(nullptr, nullptr));
}

TEST(Gguf, PrefaultOfACutFileIsAnError) {
  void* const page = ::mmap(nullptr, 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  const bool says = ::madvise(page, 1, kPopulateRead) == 0;
  ::munmap(page, 1);
  if (!says) GTEST_SKIP() << "madvise() here has no MADV_POPULATE_READ (Linux 5.14)";
  const TempDir dir;
  tiny_smallthinker().write(dir / "m.gguf");
  auto g = Gguf::open(dir / "m.gguf");
  ASSERT_TRUE(g) << g.error().message;
  ASSERT_GT(g->file_bytes(), static_cast<uint64_t>(::sysconf(_SC_PAGESIZE))) << "a page has to be lost";
  std::filesystem::resize_file(dir / "m.gguf", 100);
  const auto cut = g->prefault(nullptr, nullptr);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, Code::data_loss);
  EXPECT_THAT(cut.error().message, HasSubstr("m.gguf: was cut while it was read: 100 bytes now, " + std::to_string(g->file_bytes())));
}

TEST(Gguf, RefusesWhatIsNotAFile) {
  const TempDir dir;
  auto g = Gguf::open(dir / "none.gguf");
  ASSERT_FALSE(g);
  EXPECT_EQ(g.error().code, Code::not_found);
  EXPECT_THAT(g.error().message, HasSubstr("none.gguf"));
  g = Gguf::open(dir.path());
  ASSERT_FALSE(g);
  EXPECT_EQ(g.error().code, Code::failed_precondition);
  EXPECT_THAT(g.error().message, HasSubstr("a folder"));
  g = Gguf::open("/dev/null");
  ASSERT_FALSE(g);
  EXPECT_EQ(g.error().code, Code::failed_precondition);
  std::ofstream(dir / "empty.gguf").close();
  g = Gguf::open(dir / "empty.gguf");
  ASSERT_FALSE(g);
  EXPECT_EQ(g.error().code, Code::data_loss);
  EXPECT_THAT(g.error().message, HasSubstr("the file is empty"));
}

// A real vocabulary's directory: 151936 tokens and as many merges, in views.
TEST(Gguf, ABigVocabularyIsReadInMilliseconds) {
  GgufWriter w;
  std::vector<std::string> tokens, merges;
  for (int i = 0; i < 151936; ++i) tokens.push_back("token" + std::to_string(i)), merges.push_back("tok en" + std::to_string(i));
  w.texts("tokenizer.ggml.tokens", tokens).texts("tokenizer.ggml.merges", merges);
  const Bytes file = w.bytes();
  const auto start = std::chrono::steady_clock::now();
  auto g = Gguf::parse(file, "mem");
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  ASSERT_TRUE(g) << g.error().message;
  EXPECT_EQ((*g->array("tokenizer.ggml.tokens"))->strings[151935], "token151935");
  EXPECT_LT(ms, 1000) << "about 10 ms in a release build; sanitizers and a busy machine are slower";
}

TEST(Gguf, OpensTheReferenceFiles) {
  const std::filesystem::path folder = reference_folder() / "models";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no reference models at " << folder;
  int n = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".gguf") continue;
    auto g = Gguf::open(entry.path());
    ASSERT_TRUE(g) << g.error().message;
    EXPECT_EQ(g->string("general.architecture"), "smallthinker");
    ++n;
  }
  EXPECT_GT(n, 0);
}

}  // namespace
}  // namespace fth::test
