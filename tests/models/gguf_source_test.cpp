#include "models/gguf_source.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "base/error.h"
#include "io/gguf_parts.h"
#include "support/expect_error.h"
#include "support/goldens.h"

namespace witan {
namespace {

std::vector<std::byte> bytes_of(const TensorSource& source) {
  const TensorShape& tensor = source.tensor;
  const int64_t row_bytes = quant_type(tensor.dtype).row_bytes(tensor.shape.back());
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
  std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes));
  std::vector<std::byte> scratch;
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(bytes.data() + row * row_bytes, source.row(row, scratch), static_cast<size_t>(row_bytes));
  }
  return bytes;
}

// The metadata as a file would have it.
std::string with_metadata(const ModelSource& source) {
  std::string file = "GGUF";
  const auto append = [&file](auto value) { file.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  append(uint32_t{3});
  append(uint64_t{0});
  append(source.metadata.num_entries());
  return file + source.metadata.encoded();
}

struct Conversion {
  const char* directory;  // of a golden
  const char* gguf;       // the same model, converted by llama.cpp's tools
};

class Convertible : public testing::TestWithParam<Conversion> {
 protected:
  ThreadPool threads_{2};
};

TEST_P(Convertible, HasTheTensorsOfTheConvertedFileBitForBit) {
  WITAN_GOLDEN_OR_SKIP(directory, std::string(GetParam().directory) + "/hf");
  WITAN_GOLDEN_OR_SKIP(file, std::string(GetParam().directory) + "/" + GetParam().gguf);
  const ModelSource source = open_model_source(directory, threads_);
  const GgufPart expected(file);
  std::map<std::string_view, const GgufTensor*> tensors;
  for (const GgufTensor& tensor : expected.gguf.tensors) tensors[tensor.name] = &tensor;
  for (const TensorSource& tensor : source.tensors) {
    const auto found = tensors.find(tensor.tensor.name);
    ASSERT_NE(found, tensors.end()) << tensor.tensor.name;
    EXPECT_EQ(tensor.tensor.shape, found->second->shape) << tensor.tensor.name;
    ASSERT_EQ(tensor.tensor.dtype, found->second->dtype) << tensor.tensor.name;
    const std::vector<std::byte> bytes = bytes_of(tensor);
    ASSERT_EQ(bytes.size(), found->second->data.size());
    EXPECT_EQ(std::memcmp(bytes.data(), found->second->data.data(), bytes.size()), 0) << tensor.tensor.name;
    tensors.erase(found);
  }
  for (const auto& [name, tensor] : tensors) ADD_FAILURE() << name << " is missing";
}

TEST_P(Convertible, HasTheSettingsOfTheConvertedFile) {
  WITAN_GOLDEN_OR_SKIP(directory, std::string(GetParam().directory) + "/hf");
  WITAN_GOLDEN_OR_SKIP(file, std::string(GetParam().directory) + "/" + GetParam().gguf);
  const std::string text = with_metadata(open_model_source(directory, threads_));
  const GgufFile made = parse_gguf(std::as_bytes(std::span(text)), "made");
  const GgufPart expected(file);
  const std::string prefix = std::string(expected.gguf.find("general.architecture")->strings[0]) + ".";
  int num_settings = 0;
  for (const auto& [key, value] : expected.gguf.metadata) {
    if (!key.starts_with(prefix) || !made.find(key)) continue;
    ++num_settings;
    const GgufValue& found = *made.find(key);
    EXPECT_EQ(found.strings, value.strings) << key;
    ASSERT_EQ(found.type, value.type) << key;
    if (value.type == GgufType::kFloat32) {
      float a = 0;
      float b = 0;
      std::memcpy(&a, found.bytes.data(), sizeof(a));
      std::memcpy(&b, value.bytes.data(), sizeof(b));
      EXPECT_FLOAT_EQ(a, b) << key;
    } else if (!value.bytes.empty()) {
      EXPECT_EQ(std::memcmp(found.bytes.data(), value.bytes.data(), value.bytes.size()), 0) << key;
    }
  }
  EXPECT_GE(num_settings, 9);
}

INSTANTIATE_TEST_SUITE_P(Goldens, Convertible,
                         testing::Values(Conversion{"mixtral", "model.gguf"}, Conversion{"qwen2moe", "model.gguf"},
                                         Conversion{"qwen3moe", "model.gguf"}, Conversion{"olmoe", "model.gguf"},
                                         Conversion{"deepseek2-v2lite", "model_legacy.gguf"},
                                         Conversion{"glm4moe", "model.gguf"}, Conversion{"llama-dense", "model.gguf"},
                                         Conversion{"qwen3-dense", "model.gguf"}),
                         [](const auto& conversion) {
                           std::string name = conversion.param.directory;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(GgufSource, WhatGgufFilesCannotSayIsRefused) {
  ThreadPool threads(1);
  const std::pair<const char*, const char*> cases[] = {
      {"switch-capacity/hf", "there are no GGUF files of Switch Transformer"},
      {"gpt-oss/hf", "that GGUF files of gpt-oss lack"},
      {"qwen2moe-mixed/hf", "which layers are dense"}};
  for (const auto& [golden, part] : cases) {
    WITAN_GOLDEN_OR_SKIP(directory, golden);
    test::expect_error(ErrorCode::kUnsupported, std::vector<std::string>{directory, "cannot be converted", part},
                       [&] { open_model_source(directory, threads); });
  }
}

}  // namespace
}  // namespace witan
