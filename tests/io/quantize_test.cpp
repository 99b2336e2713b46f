#include "io/quantize.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "io/gguf_parts.h"
#include "support/expect_error.h"
#include "temp_dir.h"

namespace witan {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

// A model in memory: random values of one type.
class MadeSource {
 public:
  void add(const std::string& name, DType dtype, std::vector<int64_t> shape) {
    const int64_t cols = shape.back();
    const int64_t rows = std::accumulate(shape.begin(), shape.end() - 1, int64_t{1}, std::multiplies<>());
    const int64_t row_bytes = quant_type(dtype).row_bytes(cols);
    auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(rows * row_bytes));
    for (int64_t row = 0; row < rows; ++row) {
      quant_type(dtype).random(static_cast<uint64_t>(row + 7), 0.05f, bytes->data() + row * row_bytes, cols);
    }
    source.tensors.push_back(
        {.tensor = {.name = name, .dtype = dtype, .shape = std::move(shape)},
         .row = [bytes, row_bytes](int64_t row, auto&) { return bytes->data() + row * row_bytes; }});
  }

  // Row `row` of tensor `index`.
  std::vector<float> values(size_t index, int64_t row) const {
    const TensorShape& tensor = source.tensors[index].tensor;
    std::vector<float> out(static_cast<size_t>(tensor.shape.back()));
    std::vector<std::byte> scratch;
    quant_type(tensor.dtype).decode(source.tensors[index].row(row, scratch), out.data(), tensor.shape.back());
    return out;
  }

  ModelSource source;
};

class QuantizeTest : public testing::Test {
 protected:
  QuantizedModel run(const ModelSource& source, std::string_view type) {
    return quantize(source, {.file_type = find_gguf_file_type(type)}, path_, threads_);
  }

  test::TempDir folder_;
  std::string path_ = folder_.path() + "/out.gguf";
  ThreadPool threads_{3};
};

MadeSource small_model() {
  MadeSource made;
  made.source.metadata.set("general.architecture", "qwen3moe");
  made.add("token_embd.weight", DType::kBF16, {600, 512});
  made.add("blk.0.attn_norm.weight", DType::kBF16, {512});
  made.add("blk.0.attn_q.weight", DType::kF16, {512, 512});
  made.add("blk.0.ffn_up_exps.weight", DType::kQ8_0, {4, 300, 512});
  return made;
}

TEST_F(QuantizeTest, EveryRowIsEncodedFromItsOwnValues) {
  const MadeSource made = small_model();
  run(made.source, "Q5_K");
  const GgufPart written(path_);
  ASSERT_THAT(written.gguf.tensors, SizeIs(4));
  for (size_t i = 0; i < 4; ++i) {
    const GgufTensor& tensor = written.gguf.tensors[i];
    const QuantType& type = quant_type(tensor.dtype);
    EXPECT_EQ(tensor.name, made.source.tensors[i].tensor.name);
    ASSERT_EQ(tensor.shape, made.source.tensors[i].tensor.shape);
    const int64_t cols = tensor.shape.back();
    const int64_t row_bytes = type.row_bytes(cols);
    std::vector<std::byte> expected(static_cast<size_t>(row_bytes));
    for (int64_t row = 0; row < std::ssize(tensor.data) / row_bytes; ++row) {
      type.encode(made.values(i, row).data(), expected.data(), cols);
      ASSERT_EQ(std::memcmp(tensor.data.data() + row * row_bytes, expected.data(), expected.size()), 0)
          << tensor.name << ", row " << row;
    }
  }
}

TEST_F(QuantizeTest, WhatHasItsTypeAlreadyIsCopied) {
  const MadeSource made = small_model();
  const QuantizedModel model = run(made.source, "Q8_0");
  const GgufPart written(path_);
  const GgufTensor& experts = written.gguf.tensors[3];
  std::vector<std::byte> scratch;
  EXPECT_EQ(std::memcmp(experts.data.data(), made.source.tensors[3].row(0, scratch), experts.data.size()), 0);
  const QuantizedClass& sums = model.classes[static_cast<size_t>(TensorClass::kExperts)];
  EXPECT_EQ(sums.relative_error(), 0);
  EXPECT_EQ(sums.bytes_before, sums.bytes_after);
}

TEST_F(QuantizeTest, SumsAreThoseOfTheClasses) {
  const MadeSource made = small_model();
  const QuantizedModel model = run(made.source, "Q4_0");
  const QuantizedClass& attention = model.classes[static_cast<size_t>(TensorClass::kAttention)];
  EXPECT_EQ(attention.num_tensors, 1);
  EXPECT_EQ(attention.num_values, 512 * 512);
  EXPECT_EQ(attention.bytes_before, 512 * 1024);
  EXPECT_EQ(attention.bytes_after, 512 * 16 * 18);
  EXPECT_THAT(attention.types, testing::ElementsAre(DType::kQ4_0));
  double error = 0;
  double square = 0;
  const GgufPart written(path_);
  std::vector<float> after(512);
  for (int64_t row = 0; row < 512; ++row) {
    const std::vector<float> before = made.values(2, row);
    quant_type(DType::kQ4_0).decode(written.gguf.tensors[2].data.data() + row * 16 * 18, after.data(), 512);
    for (size_t k = 0; k < 512; ++k) {
      error += std::pow(static_cast<double>(after[k]) - before[k], 2);
      square += std::pow(static_cast<double>(before[k]), 2);
    }
  }
  EXPECT_NEAR(attention.relative_error(), std::sqrt(error / square), 1e-9);
  EXPECT_GT(attention.relative_error(), 0.05);
}

TEST_F(QuantizeTest, ReportsAllBytesReadAtTheEnd) {
  const MadeSource made = small_model();
  int64_t last = 0;
  int64_t total = 0;
  quantize(made.source, {.file_type = find_gguf_file_type("Q8_0")}, path_, threads_, [&](int64_t done, int64_t all) {
    EXPECT_GT(done, last);
    last = done;
    total = all;
  });
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, 600 * 1024 + 1024 + 512 * 1024 + 4 * 300 * 16 * 34);
}

TEST_F(QuantizeTest, SaysWhatWasQuantisedBefore) {
  const QuantizedModel model = run(small_model().source, "Q4_K");
  EXPECT_THAT(model.notes, testing::ElementsAre(HasSubstr("1 tensor was quantised already, as Q8_0")));
}

TEST_F(QuantizeTest, AFileIsReadBackWithItsMetadata) {
  const MadeSource made = small_model();
  run(made.source, "BF16");
  const ModelSource read = open_gguf_source(path_);
  const std::string again = folder_.path() + "/again.gguf";
  quantize(read, {.file_type = find_gguf_file_type("Q4_K_M")}, again, threads_);
  const GgufPart written(again);
  EXPECT_EQ(written.gguf.find("general.architecture")->strings[0], "qwen3moe");
  uint32_t id = 0;
  std::memcpy(&id, written.gguf.find("general.file_type")->bytes.data(), sizeof(id));
  EXPECT_EQ(id, 15u);
  EXPECT_EQ(written.gguf.metadata.size(), 3u);  // with general.quantization_version
}

TEST_F(QuantizeTest, ATypeThatIsNotWrittenIsRefusedBeforeAFileIsMade) {
  TypeChoice choice{.file_type = find_gguf_file_type("Q8_0"), .experts = DType::kIQ4_XS};
  test::expect_error(ErrorCode::kInvalidArgument, std::vector<std::string>{"blk.0.ffn_up_exps.weight", "IQ4_XS"},
                     [&] { quantize(small_model().source, choice, path_, threads_); });
  choice.experts = DType::kF8_E4M3;
  test::expect_error(ErrorCode::kInvalidArgument, "F8_E4M3",
                     [&] { quantize(small_model().source, choice, path_, threads_); });
  EXPECT_FALSE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace witan
