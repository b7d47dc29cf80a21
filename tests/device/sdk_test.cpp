// The sdk: the guard, the options, and the checks of a segment that came over the boundary.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>

#include "plugins/sdk/backend.h"
#include "tests/device/segment_maker.h"
#include "tests/device/test_backend.h"

namespace fth::sdk {
namespace {

using test::TestSegment;
using ::testing::HasSubstr;

TEST(Guard, WritesTheErrorOnlyOnFailure) {
  fth_error e{};
  std::snprintf(e.message, sizeof e.message, "untouched");
  EXPECT_EQ(guard(&e, []() -> Result<> { return {}; }), FTH_OK);
  EXPECT_STREQ(e.message, "untouched");
  EXPECT_EQ(guard(&e, []() -> Result<> { return fail(Code::data_loss, "bits"); }), FTH_DATA_LOSS);
  EXPECT_STREQ(e.message, "bits");
  EXPECT_EQ(guard(nullptr, []() -> Result<> { return fail(Code::not_found, "x"); }), FTH_NOT_FOUND);
}

TEST(Guard, TurnsExceptionsIntoCodes) {
  fth_error e{};
  EXPECT_EQ(guard(&e, []() -> Result<> { throw std::bad_alloc(); }), FTH_RESOURCE_EXHAUSTED);
  EXPECT_STREQ(e.message, "out of memory");
  EXPECT_EQ(guard(&e, []() -> Result<> { throw std::runtime_error("boom"); }), FTH_INTERNAL);
  EXPECT_STREQ(e.message, "boom");
  EXPECT_EQ(guard(&e, []() -> Result<> { throw 7; }), FTH_INTERNAL);
  EXPECT_STREQ(e.message, "unknown exception");
}

TEST(Guard, CutsLongMessagesAtAWholeCharacter) {
  fth_error e{};
  set_message(&e, std::string(300, 'x'));
  EXPECT_EQ(std::string(e.message), std::string(255, 'x'));
  set_message(&e, std::string(254, 'x') + "\u00e9\u00e9");  // the character would straddle byte 255
  EXPECT_EQ(std::string(e.message), std::string(254, 'x'));
}

TEST(Options, TakesKnownKeysAndRefusesOthers) {
  auto o = Options::parse("isa=avx2,threads=2");
  ASSERT_TRUE(o);
  EXPECT_EQ(o->take("isa"), "avx2");
  EXPECT_EQ(o->take("isa"), std::nullopt);
  const Result<> left = o->check_all_taken();
  ASSERT_FALSE(left);
  EXPECT_EQ(left.error().code, Code::invalid_argument);
  EXPECT_THAT(left.error().message, HasSubstr("'threads' is not known; known: isa"));
  EXPECT_EQ(o->take("threads"), "2");
  EXPECT_TRUE(o->check_all_taken());
}

TEST(Options, Texts) {
  EXPECT_TRUE(Options::parse(nullptr));
  EXPECT_TRUE(Options::parse(""));
  EXPECT_EQ(Options::parse("a=")->take("a"), "");
  EXPECT_EQ(Options::parse("a=b=c")->take("a"), "b=c");
  for (const char* bad : {"a", "=b", "a=1,,b=2", "a=1,a=2", ","}) {
    const auto o = Options::parse(bad);
    ASSERT_FALSE(o) << bad;
    EXPECT_EQ(o.error().code, Code::invalid_argument);
  }
}

TEST(TensorBytes, CountsBlocksAndNoticesOverflow) {
  fth_tensor t{};
  t.rank = 2;
  t.dims[0] = 3;
  t.dims[1] = 64;
  EXPECT_EQ(tensor_bytes(t), 3u * 64 * 4);
  t.dtype = FTH_DTYPE_Q4_0;
  EXPECT_EQ(tensor_bytes(t), 3u * 2 * 18);
  t.dims[1] = 65;
  EXPECT_EQ(tensor_bytes(t), std::nullopt);
  t.dims[1] = 0;
  EXPECT_EQ(tensor_bytes(t), std::nullopt);
  t = {};
  t.rank = 4;
  for (int64_t& d : t.dims) d = int64_t{1} << 20;
  EXPECT_EQ(tensor_bytes(t), std::nullopt);
  t = {};
  t.role = FTH_ROLE_SLOTS;
  t.rank = 3;
  t.dims[0] = 5, t.dims[1] = 2, t.dims[2] = 4;
  EXPECT_EQ(tensor_bytes(t), 160u);
  EXPECT_EQ(binding_bytes(t), 32u);
}

TEST(SegmentView, CountsBindingsInTensorOrder) {
  TestSegment s;
  const uint16_t x = s.tensor(FTH_ROLE_INPUT, {1, 32});
  const uint16_t w = s.tensor(FTH_ROLE_WEIGHT, {64, 32}, FTH_DTYPE_Q4_0);
  const uint16_t slots = s.tensor(FTH_ROLE_SLOTS, {6, 64, 32});
  const uint16_t state = s.tensor(FTH_ROLE_STATE, {16, 64});
  const uint16_t temp = s.tensor(FTH_ROLE_TEMP, {1, 64});
  const uint16_t y = s.tensor(FTH_ROLE_OUTPUT, {1, 64});
  s.op(FTH_OP_MATMUL, {x, w, FTH_NO_TENSOR}, {temp});
  s.op(FTH_OP_ADD, {temp, temp}, {y});
  s.op(FTH_OP_EXPERTS, {x, slots, state}, {y});
  const fth_segment raw = s.view();
  const auto v = SegmentView::make(&raw);
  ASSERT_TRUE(v) << v.error().message;
  EXPECT_EQ(v->n_weights(), 1u);
  EXPECT_EQ(v->n_bindings(), 1u + 6 + 1 + 1);
  EXPECT_EQ(v->in(v->ops()[0], 2), nullptr);
  EXPECT_EQ(v->in(v->ops()[0], 3), nullptr);
  EXPECT_EQ(v->in(v->ops()[0], 1)->dtype, FTH_DTYPE_Q4_0);
  const SegmentCopy copy(*v);
  EXPECT_EQ(copy.tensors.size(), 6u);
  EXPECT_EQ(copy.name, "test");
}

struct BadCase {
  const char* what;
  void (*spoil)(TestSegment&);
  Code code;
  const char* message;
};

class BadSegment : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadSegment, IsRefusedWithTheNumbers) {
  TestSegment s = TestSegment::add(2, 4);
  GetParam().spoil(s);
  const fth_segment raw = s.view();
  const auto v = SegmentView::make(&raw);
  ASSERT_FALSE(v);
  EXPECT_EQ(v.error().code, GetParam().code) << v.error().message;
  EXPECT_THAT(v.error().message, HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Sdk, BadSegment,
    ::testing::Values(
        BadCase{"struct_size", [](TestSegment& s) { s.struct_size = 8; }, Code::invalid_argument, "struct_size 8, need"},
        BadCase{"scalars", [](TestSegment& s) { s.n_scalars = 2; }, Code::invalid_argument, "n_scalars is 2, need 3"},
        BadCase{"many_tensors", [](TestSegment& s) { s.tensors.resize(5000, s.tensors[0]); }, Code::invalid_argument, "5000 tensors"},
        BadCase{"many_ops", [](TestSegment& s) { s.ops.resize(5000, s.ops[0]); }, Code::invalid_argument, "5000 ops"},
        BadCase{"dtype", [](TestSegment& s) { s.tensors[1].dtype = 99; }, Code::unimplemented, "tensor 1: dtype 99"},
        BadCase{"role", [](TestSegment& s) { s.tensors[1].role = 6; }, Code::unimplemented, "tensor 1: role 6"},
        BadCase{"layout", [](TestSegment& s) { s.tensors[0].layout = 3; }, Code::unimplemented, "layout 3"},
        BadCase{"rank_0", [](TestSegment& s) { s.tensors[0].rank = 0; }, Code::invalid_argument, "rank 0"},
        BadCase{"rank_5", [](TestSegment& s) { s.tensors[0].rank = 5; }, Code::invalid_argument, "rank 5"},
        BadCase{"slots_rank", [](TestSegment& s) { s.tensors[0].role = FTH_ROLE_SLOTS, s.tensors[0].rank = 1; }, Code::invalid_argument,
                "slots, need 2"},
        BadCase{"negative", [](TestSegment& s) { s.tensors[0].dims[1] = -4; }, Code::invalid_argument, "f32 [2, -4]"},
        BadCase{"overflow", [](TestSegment& s) { s.tensors[0].dims[0] = std::numeric_limits<int64_t>::max(); }, Code::invalid_argument,
                "overflow"},
        BadCase{"block", [](TestSegment& s) { s.tensors[0].dtype = FTH_DTYPE_Q8_0; }, Code::invalid_argument, "q8_0 [2, 4]"},
        BadCase{"many_slots", [](TestSegment& s) { s.tensors[0].role = FTH_ROLE_SLOTS, s.tensors[0].dims[0] = 70000; },
                Code::invalid_argument, "70000 slots"},
        BadCase{"kind", [](TestSegment& s) { s.ops[0].kind = 77; }, Code::unimplemented, "op 0 (unknown): kind 77"},
        BadCase{"n_in", [](TestSegment& s) { s.ops[0].n_in = 9; }, Code::invalid_argument, "9 inputs"},
        BadCase{"n_out", [](TestSegment& s) { s.ops[0].n_out = 0; }, Code::invalid_argument, "0 outputs"},
        BadCase{"in_range", [](TestSegment& s) { s.ops[0].in[1] = 3; }, Code::invalid_argument, "op 0 (add): input 1 is tensor 3 of 3"},
        BadCase{"out_range", [](TestSegment& s) { s.ops[0].out[0] = FTH_NO_TENSOR; }, Code::invalid_argument,
                "output 0 is tensor 65535 of 3"},
        BadCase{"writes_input", [](TestSegment& s) { s.ops[0].out[0] = 0; }, Code::invalid_argument,
                "writes tensor 0, whose role is input"},
        BadCase{"reads_unwritten", [](TestSegment& s) { s.tensors[0].role = FTH_ROLE_TEMP; }, Code::invalid_argument,
                "reads tensor 0 (temp) before"}),
    [](const auto& test) { return test.param.what; });

TEST(SegmentView, NullPointers) {
  EXPECT_FALSE(SegmentView::make(nullptr));
  const TestSegment s = TestSegment::add(2, 4);
  fth_segment raw = s.view();
  raw.name = nullptr;
  EXPECT_TRUE(SegmentView::make(&raw));
  raw.ops = nullptr;
  EXPECT_FALSE(SegmentView::make(&raw));
}

// The table, called as a host calls it: with the smaller structs of an older one, and with null out parameters.
class TableTest : public ::testing::Test {
 protected:
  using Backend = test::AddBackend<test::DefaultConfig>;
  static void log(void*, int32_t, const char*) {}
  static void serial(void*, uint32_t n, void (*body)(void*, uint32_t), void* arg) {
    for (uint32_t i = 0; i < n; ++i) body(arg, i);
  }
  fth_host host_{sizeof(fth_host), 1, nullptr, log, serial};
  const fth_backend* api_ = query<Backend>(FTH_ABI_MAJOR, &host_);
  fth_error e_{};
};

TEST_F(TableTest, ServesItsOwnMajorOnly) {
  ASSERT_NE(api_, nullptr);
  EXPECT_EQ(query<Backend>(FTH_ABI_MAJOR + 1, &host_), nullptr);
  EXPECT_EQ(query<Backend>(0, &host_), nullptr);
  EXPECT_EQ(query<Backend>(FTH_ABI_MAJOR, nullptr), nullptr);
  fth_host small = host_;
  small.struct_size = 8;
  EXPECT_EQ(query<Backend>(FTH_ABI_MAJOR, &small), nullptr);
  EXPECT_THAT(api_->build, HasSubstr(FTH_SDK_VERSION));
}

TEST_F(TableTest, WritesNoMoreThanTheCallerKnows) {
  fth_device* d = nullptr;
  ASSERT_EQ(api_->open(0, nullptr, &d, &e_), FTH_OK) << e_.message;
  fth_device_info info;
  std::memset(&info, 0xee, sizeof info);
  info.struct_size = offsetof(fth_device_info, description);
  ASSERT_EQ(api_->info(d, &info, &e_), FTH_OK);
  EXPECT_STREQ(info.name, "add:0");
  EXPECT_EQ(info.struct_size, offsetof(fth_device_info, description));
  EXPECT_EQ(static_cast<unsigned char>(info.description[0]), 0xee);
  struct {
    fth_device_info base;
    uint64_t appended;
  } later{};
  later.base.struct_size = sizeof later;
  ASSERT_EQ(api_->info(d, &later.base, &e_), FTH_OK);
  EXPECT_EQ(later.base.struct_size, sizeof(fth_device_info));
  info.struct_size = 0;
  EXPECT_EQ(api_->info(d, &info, &e_), FTH_INVALID_ARGUMENT);
  api_->close(d);
}

TEST_F(TableTest, OutParametersStayAsTheyWereOnFailure) {
  auto* const sentinel = reinterpret_cast<fth_device*>(this);
  fth_device* d = sentinel;
  EXPECT_EQ(api_->open(0, "speed=9", &d, &e_), FTH_INVALID_ARGUMENT);
  EXPECT_EQ(d, sentinel);
  EXPECT_STREQ(e_.message, "option 'speed' is not known; known: isa");
  EXPECT_EQ(api_->open(0, "isa=avx9", &d, &e_), FTH_INVALID_ARGUMENT);
  EXPECT_EQ(api_->open(0, nullptr, nullptr, &e_), FTH_INVALID_ARGUMENT);
  EXPECT_EQ(api_->device_count(nullptr, &e_), FTH_INVALID_ARGUMENT);
}

TEST_F(TableTest, CompileChecksTheNumberOfWeights) {
  fth_device* d = nullptr;
  ASSERT_EQ(api_->open(0, "isa=generic", &d, &e_), FTH_OK);
  const TestSegment s = TestSegment::add(2, 4);
  const fth_segment raw = s.view();
  fth_executable* x = nullptr;
  const fth_binding extra{};
  EXPECT_EQ(api_->compile(d, &raw, &extra, 1, &x, &e_), FTH_INVALID_ARGUMENT);
  EXPECT_THAT(e_.message, HasSubstr("1 weight bindings, the segment has 0"));
  EXPECT_EQ(x, nullptr);
  api_->close(d);
}

}  // namespace
}  // namespace fth::sdk
