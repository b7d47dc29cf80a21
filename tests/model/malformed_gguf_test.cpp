// Files that are wrong in one place each: the error's code and what its message says. One line per case.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/model/gguf.h"
#include "tests/model/files.h"
#include "tests/model/tiny_models.h"

namespace fth::test {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kHuge = ~0ull;

// Two keys and two tensors, nothing wrong.
GgufWriter good() {
  GgufWriter w;
  w.text("general.architecture", "smallthinker").u32("a.number", 7);
  w.tensor("one", GgmlType::f32, {8, 2}, weights(GgmlType::f32, 16)).tensor("two", GgmlType::q4_0, {32, 4}, weights(GgmlType::q4_0, 128));
  return w;
}

struct Case {
  const char* name;
  Code code;
  const char* says;
  std::function<void(GgufWriter&)> change;
};

Bytes array_header(uint32_t type, uint64_t count, size_t more = 0) {
  Bytes out;
  put(out, type);
  put(out, count);
  out.resize(out.size() + more);
  return out;
}

const Case kCases[] = {
    // Header
    {"magic", Code::data_loss, "it starts with 'GGML' instead of 'GGUF'", [](auto& w) { w.magic = "GGML"; }},
    {"lfs pointer", Code::data_loss, "Git LFS pointer", [](auto& w) { w.magic = "version https://git-lfs"; }},
    {"web page", Code::data_loss, "web page", [](auto& w) { w.magic = "<!DOCTYPE html>"; }},
    {"binary magic", Code::data_loss, "'\\x00\\x01\\xff\\x0a'", [](auto& w) { w.magic = std::string("\0\1\xff\n", 4); }},
    {"version 0", Code::data_loss, "version 0", [](auto& w) { w.version = 0; }},
    {"version 1", Code::unimplemented, "version 1; versions 2 and 3", [](auto& w) { w.version = 1; }},
    {"version 4", Code::unimplemented, "version 4; versions 2 and 3", [](auto& w) { w.version = 4; }},
    {"version huge", Code::unimplemented, "version 4294967295", [](auto& w) { w.version = 0xffffffffu; }},
    {"big-endian", Code::unimplemented, "big-endian", [](auto& w) { w.version = 0x03000000u; }},
    {"tensor count", Code::data_loss, "counts 18446744073709551615 tensors", [](auto& w) { w.n_tensors = kHuge; }},
    {"key count", Code::data_loss, "counts 18446744073709551615 keys", [](auto& w) { w.n_keys = kHuge; }},
    {"one tensor too many", Code::data_loss, "tensor 2", [](auto& w) { w.n_tensors = 3; }},
    {"one key too many", Code::data_loss, "", [](auto& w) { w.n_keys = 3; }},
    // Keys
    {"empty key", Code::data_loss, "key 1 has an empty name", [](auto& w) { w.keys[1].name = ""; }},
    {"long key", Code::data_loss, "has 70000 bytes, the limit is 65535", [](auto& w) { w.keys[1].name.assign(70000, 'x'); }},
    {"key is not UTF-8", Code::data_loss, "is not UTF-8 without control characters: 'a\\xc3('", [](auto& w) { w.keys[1].name = "a\xc3("; }},
    {"key is overlong UTF-8", Code::data_loss, "is not UTF-8", [](auto& w) { w.keys[1].name = "a\xc0\xaf"; }},
    {"key is a surrogate", Code::data_loss, "is not UTF-8", [](auto& w) { w.keys[1].name = "\xed\xa0\x80"; }},
    {"key beyond Unicode", Code::data_loss, "is not UTF-8", [](auto& w) { w.keys[1].name = "\xf4\x90\x80\x80"; }},
    {"key cut in a character", Code::data_loss, "is not UTF-8", [](auto& w) { w.keys[1].name = "a\xe2\x82"; }},
    {"key with a newline", Code::data_loss, "'a\\x0ab'", [](auto& w) { w.keys[1].name = "a\nb"; }},
    {"key with a NUL", Code::data_loss, "'a\\x00b'", [](auto& w) { w.keys[1].name = std::string("a\0b", 3); }},
    {"duplicate key", Code::data_loss, "key 'a.number' occurs twice", [](auto& w) { w.keys.push_back(w.keys[1]); }},
    {"value type 13", Code::data_loss, "key 'a.number' has value type 13", [](auto& w) { w.keys[1].type = 13; }},
    {"value type huge", Code::data_loss, "value type 4294967295", [](auto& w) { w.keys[1].type = 0xffffffffu; }},
    {"bool of 2", Code::data_loss, "key 'b' is a bool of value 2", [](auto& w) { w.key("b", MetaType::boolean, encoded<uint8_t>(2)); }},
    {"1 TB string", Code::data_loss, "truncated in the value of key 's' at byte",
     [](auto& w) { w.key("s", MetaType::string, encoded<uint64_t>(1ull << 40)); }},
    {"2^64-1 string", Code::data_loss, "18446744073709551615 bytes needed", [](auto& w) { w.key("s", MetaType::string, encoded(kHuge)); }},
    {"array of arrays", Code::data_loss, "key 'n' is an array of arrays",
     [](auto& w) { w.key("n", MetaType::array, array_header(9, 1, 64)); }},
    {"array type", Code::data_loss, "key 'n' has value type 77", [](auto& w) { w.key("n", MetaType::array, array_header(77, 1, 64)); }},
    {"array of 2^64-1 bytes", Code::data_loss, "array of 18446744073709551615",
     [](auto& w) { w.key("n", MetaType::array, array_header(0, kHuge)); }},
    {"array of 2^61 u64", Code::data_loss, "array of 2305843009213693952",
     [](auto& w) { w.key("n", MetaType::array, array_header(10, 1ull << 61)); }},
    {"array of 2^60 strings", Code::data_loss, "array of 1152921504606846976",
     [](auto& w) { w.key("n", MetaType::array, array_header(8, 1ull << 60)); }},
    {"array string too long", Code::data_loss, "truncated in a string of key 'n'",
     [](auto& w) {
       Bytes v = array_header(8, 2);
       put_text(v, "ok");
       put(v, kHuge);
       w.key("n", MetaType::array, v);
     }},
    // Alignment
    {"alignment of u64", Code::data_loss, "'general.alignment' has type u64; it must be u32",
     [](auto& w) { w.u64("general.alignment", 32); }},
    {"alignment of string", Code::data_loss, "'general.alignment' has type string", [](auto& w) { w.text("general.alignment", "32"); }},
    {"alignment 0", Code::data_loss, "'general.alignment' is 0; it must be a power of two", [](auto& w) { w.u32("general.alignment", 0); }},
    {"alignment 1", Code::data_loss, "'general.alignment' is 1;", [](auto& w) { w.u32("general.alignment", 1); }},
    {"alignment 48", Code::data_loss, "'general.alignment' is 48;", [](auto& w) { w.u32("general.alignment", 48); }},
    {"alignment 2^31", Code::data_loss, "'general.alignment' is 2147483648;", [](auto& w) { w.u32("general.alignment", 1u << 31); }},
    // Tensors
    {"no dimensions", Code::data_loss, "tensor 'one' has 0 dimensions; 1 to 4", [](auto& w) { w.tensors[0].dims = {}; }},
    {"5 dimensions", Code::data_loss, "tensor 'one' has 5 dimensions",
     [](auto& w) {
       w.tensors[0].dims = {8, 2, 1, 1, 1};
     }},
    {"zero dimension", Code::data_loss, "tensor 'one' has a dimension of 0",
     [](auto& w) {
       w.tensors[0].dims = {8, 0};
     }},
    {"negative dimension", Code::data_loss, "tensor 'one' has a dimension of -1",
     [](auto& w) {
       w.tensors[0].dims = {8, kHuge};
     }},
    {"dimension 2^63", Code::data_loss, "has a dimension of -9223372036854775808", [](auto& w) { w.tensors[0].dims = {1ull << 63}; }},
    {"product 2^64", Code::data_loss, "overflows 2^63",
     [](auto& w) {
       w.tensors[0].dims = {1ull << 32, 1ull << 32};
     }},
    {"product wraps small", Code::data_loss, "overflows 2^63",
     [](auto& w) {
       w.tensors[0].dims = {1ull << 22, 1ull << 21, 1ull << 21, 1};
     }},
    {"bytes 2^64", Code::data_loss, "more than 2^64 bytes", [](auto& w) { w.tensors[0].dims = {1ull << 62}; }},
    {"type 41", Code::data_loss, "tensor 'one' has type 41, which is no GGUF tensor type", [](auto& w) { w.tensors[0].type = 41; }},
    {"type huge", Code::data_loss, "type 4294967295", [](auto& w) { w.tensors[0].type = 0xffffffffu; }},
    {"type IQ4_XS", Code::unimplemented, "tensor 'two': type IQ4_XS has no kernels here; supported: F32,",
     [](auto& w) { w.tensors[1].type = 23; }},
    {"ragged row", Code::data_loss, "tensor 'two' has rows of 48 values; type Q4_0 needs a multiple of 32",
     [](auto& w) {
       w.tensors[1].dims = {48, 4};
     }},
    {"ragged K row", Code::data_loss, "type Q6_K needs a multiple of 256", [](auto& w) { w.tensors[1].type = 14; }},
    {"unaligned offset", Code::data_loss, "tensor 'two' starts at offset 68, which is not a multiple of the alignment 32",
     [](auto& w) { w.tensors[1].offset = 68; }},
    {"offset past the end", Code::data_loss, "tensor 'two' has 72 bytes at offset 4096; the data section has 136 bytes",
     [](auto& w) { w.tensors[1].offset = 4096; }},
    {"offset 2^64-32", Code::data_loss, "tensor 'two' has 72 bytes at offset 18446744073709551584",
     [](auto& w) { w.tensors[1].offset = kHuge - 31; }},
    {"overlap", Code::data_loss, "tensors 'one' and 'two' overlap", [](auto& w) { w.tensors[1].offset = 32; }},
    {"same place", Code::data_loss, "overlap", [](auto& w) { w.tensors[1].offset = 0; }},
    {"sum of two wraps", Code::data_loss, "tensor 'one'",
     [](auto& w) { w.tensors[0].dims = {1ull << 61}, w.tensors[1].dims = {1ull << 61}; }},
    {"duplicate tensor", Code::data_loss, "tensor 'one' occurs twice", [](auto& w) { w.tensors[1].name = "one"; }},
    {"unnamed tensor", Code::data_loss, "tensor 1 has an empty name", [](auto& w) { w.tensors[1].name = ""; }},
    {"long tensor name", Code::data_loss, "has 256 bytes, the limit is 255", [](auto& w) { w.tensors[1].name.assign(256, 'n'); }},
    {"tensor name is not UTF-8", Code::data_loss, "'\\x80'", [](auto& w) { w.tensors[1].name = "\x80"; }},
    {"data missing", Code::data_loss, "the file is truncated or corrupt", [](auto& w) { w.tensors[1].bytes.resize(71); }},
};

TEST(MalformedGguf, TheUnchangedFileIsRight) {
  const Bytes file = good().bytes();
  EXPECT_TRUE(Gguf::parse(file, "mem"));
}

TEST(MalformedGguf, EachCaseNamesItself) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    GgufWriter w = good();
    c.change(w);
    const Bytes file = w.bytes();
    const auto g = Gguf::parse(file, "mem.gguf");
    ASSERT_FALSE(g);
    EXPECT_EQ(g.error().code, c.code) << g.error().message;
    EXPECT_THAT(g.error().message, HasSubstr(c.says));
    EXPECT_THAT(g.error().message, HasSubstr("mem.gguf: "));
    EXPECT_LT(g.error().message.size(), 400u);
  }
}

TEST(MalformedGguf, KeyLengthOf2To64) {
  Bytes file;
  put_raw(file, "GGUF");
  put<uint32_t>(file, 3);
  put<uint64_t>(file, 0);
  put<uint64_t>(file, 1);
  put(file, kHuge);
  file.resize(file.size() + 64);
  const auto g = Gguf::parse(file, "mem");
  ASSERT_FALSE(g);
  EXPECT_THAT(g.error().message, HasSubstr("truncated in the name of key 0 at byte 32: 18446744073709551615 bytes needed, 64 left of 96"));
}

// Every proper prefix of a model is an error, whichever field it ends in.
TEST(MalformedGguf, TruncatedAtEveryByte) {
  TinyShape shape;
  shape.n_layer = 1;
  GgufWriter w = tiny_smallthinker(shape);
  w.texts("tokenizer.ggml.tokens", {"a", "b"}).array<float>("tokenizer.ggml.scores", MetaType::f32, {1, 2});
  const Bytes file = w.bytes();
  ASSERT_TRUE(Gguf::parse(file, "whole"));
  for (size_t n = 0; n < file.size(); ++n) {
    // An exact allocation: a sanitizer sees every read past the end.
    const Bytes prefix(file.begin(), file.begin() + static_cast<ptrdiff_t>(n));
    const auto g = Gguf::parse(prefix, "cut");
    ASSERT_FALSE(g) << "the first " << n << " of " << file.size() << " bytes";
    ASSERT_EQ(g.error().code, Code::data_loss) << g.error().message;
  }
}

// A sparse file of 1 TiB whose header promises everything: refused without reading or allocating it.
TEST(MalformedGguf, ASparseTerabyteIsRefusedQuickly) {
  const TempDir dir;
  GgufWriter w;
  w.n_keys = 1ull << 32;
  w.write(dir / "sparse.gguf");
  std::error_code error;
  std::filesystem::resize_file(dir / "sparse.gguf", 1ull << 40, error);
  if (error) GTEST_SKIP() << "no sparse files here: " << error.message();
  auto g = Gguf::open(dir / "sparse.gguf");
  ASSERT_FALSE(g);
  EXPECT_THAT(g.error().message, HasSubstr("4294967296 keys"));
  // 2^30 empty strings would fit the bytes; the limit on strings refuses them.
  w = GgufWriter();
  w.n_keys = 1;
  w.key("s", MetaType::array, array_header(8, 1ull << 30));
  w.write(dir / "strings.gguf");
  std::filesystem::resize_file(dir / "strings.gguf", 1ull << 40, error);
  ASSERT_FALSE(error);
  g = Gguf::open(dir / "strings.gguf");
  ASSERT_FALSE(g);
  EXPECT_THAT(g.error().message, HasSubstr("strings in arrays to 1073741824; the limit is 16777216"));
}

}  // namespace
}  // namespace fth::test
