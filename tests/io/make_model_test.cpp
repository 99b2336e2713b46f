#include "io/make_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/byte_vocabulary.h"
#include "io/checkpoint.h"
#include "io/gguf_reader.h"
#include "support/expect_error.h"
#include "support/goldens.h"
#include "tensor/random_bits.h"

namespace witan {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// A parsed file with the bytes it points into.
struct ParsedFile {
  explicit ParsedFile(const std::string& path)
      : bytes(test::read_file(path)), gguf(parse_gguf(std::as_bytes(std::span(bytes)), path)) {}

  const GgufTensor& tensor(std::string_view name) const {
    const auto found =
        std::find_if(gguf.tensors.begin(), gguf.tensors.end(), [name](const auto& t) { return t.name == name; });
    EXPECT_NE(found, gguf.tensors.end()) << name;
    return *found;
  }

  std::string bytes;
  GgufFile gguf;
};

std::vector<float> decode(const GgufTensor& tensor) {
  int64_t num_elements = 1;
  for (const int64_t dim : tensor.shape) num_elements *= dim;
  std::vector<float> values(static_cast<size_t>(num_elements));
  quant_type(tensor.dtype).decode(tensor.data.data(), values.data(), num_elements);
  return values;
}

double root_mean_square(std::span<const float> values) {
  double sum_squares = 0;
  for (const float value : values) sum_squares += static_cast<double>(value) * value;
  return std::sqrt(sum_squares / static_cast<double>(values.size()));
}

class MakeModelTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string("make_model_") + test->name();
    std::replace(name.begin(), name.end(), '/', '_');
    directory_ = fs::path(testing::TempDir()) / name;
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    path_ = directory_ / "model.gguf";
  }
  void TearDown() override { fs::remove_all(directory_); }

  MadeModel make(std::string_view arch, std::string_view preset, const MakeModelOptions& options = {}) {
    return make_model(find_model_preset(arch, preset), options, path_, threads_);
  }

  ThreadPool threads_{2};
  fs::path directory_;
  std::string path_;
};

TEST(ModelPresets, PublishedModelsHaveTheirPublishedNumberOfParameters) {
  const std::map<std::string, int64_t> expected = {
      {"mixtral-8x7b", 46'702'792'704},
      {"qwen3-30b-a3b", 30'532'122'624},
      {"deepseek-v2-lite", 15'706'484'224},
      {"qwen1.5-moe-a2.7b", 14'315'784'192},
      {"olmoe-1b-7b", 6'919'161'856},
      {"gpt-oss-20b", 20'914'757'184},
      {"deepseek-v3", 671'026'419'200},
      // OLMoE-1B-7B has 6,919,161,856: its q and k norms are 2048 wide, ours 128, in each of 16 layers.
      {"olmoe-1b-7b-dims", 6'919'161'856 - 16 * 2 * (2048 - 128)},
  };
  std::set<std::string> seen;
  for (const ModelPreset& preset : model_presets()) {
    const auto found = expected.find(std::string(preset.name));
    if (found == expected.end()) continue;
    seen.insert(found->first);
    EXPECT_EQ(count_parameters(preset, preset.num_layers), found->second) << preset.name;
  }
  EXPECT_EQ(seen.size(), expected.size());
}

TEST(ModelPresets, UnknownNamesAreRefusedWithTheKnownOnes) {
  const struct {
    const char* arch;
    const char* name;
    const char* message;
  } cases[] = {{"mamba", "tiny", "qwen3moe"}, {"qwen3moe", "huge", "qwen3-30b-a3b"}, {"", "", "deepseek2"}};
  for (const auto& c : cases) {
    test::expect_error(ErrorCode::kInvalidArgument, {c.message}, [&] { find_model_preset(c.arch, c.name); });
  }
}

// ---- Against files that llama.cpp runs -----------------------------------------------------------------------------

struct GoldenCase {
  const char* arch;
  const char* preset;
  const char* golden;
};

class MakeModelAgainstGolden : public MakeModelTest, public testing::WithParamInterface<GoldenCase> {};

std::string describe(const GgufValue& value) {
  return std::string(gguf_type_name(value.type)) + (value.is_array ? "[]" : "");
}

TEST_P(MakeModelAgainstGolden, HasEveryKeyWithItsType) {
  WITAN_GOLDEN_OR_SKIP(golden_path, std::string(GetParam().golden) + "/model.gguf");
  make(GetParam().arch, GetParam().preset);
  const ParsedFile made(path_);
  const ParsedFile golden(golden_path);
  for (const auto& [key, value] : golden.gguf.metadata) {
    const GgufValue* found = made.gguf.find(key);
    ASSERT_NE(found, nullptr) << key;
    EXPECT_EQ(describe(*found), describe(value)) << key;
  }
}

TEST_P(MakeModelAgainstGolden, HasTheSameTensorsWithAsManyDimensions) {
  WITAN_GOLDEN_OR_SKIP(golden_path, std::string(GetParam().golden) + "/model.gguf");
  const ParsedFile golden(golden_path);
  int32_t num_layers = 0;
  while (std::any_of(golden.gguf.tensors.begin(), golden.gguf.tensors.end(), [&](const GgufTensor& tensor) {
    return tensor.name.starts_with("blk." + std::to_string(num_layers) + ".");
  })) {
    ++num_layers;
  }
  make(GetParam().arch, GetParam().preset, {.num_layers = num_layers});
  const ParsedFile made(path_);
  std::map<std::string_view, size_t> expected;
  std::map<std::string_view, size_t> found;
  for (const GgufTensor& tensor : golden.gguf.tensors) expected[tensor.name] = tensor.shape.size();
  for (const GgufTensor& tensor : made.gguf.tensors) found[tensor.name] = tensor.shape.size();
  EXPECT_EQ(found, expected);
}

INSTANTIATE_TEST_SUITE_P(
    Architectures, MakeModelAgainstGolden,
    testing::Values(GoldenCase{"llama", "tiny", "llama-dense"}, GoldenCase{"llama", "tiny-mixtral", "mixtral"},
                    GoldenCase{"qwen3", "tiny", "qwen3-dense"}, GoldenCase{"qwen3moe", "tiny", "qwen3moe"},
                    GoldenCase{"deepseek2", "tiny", "deepseek2-v2lite"},
                    GoldenCase{"deepseek2", "tiny-v3", "deepseek2-v3"}, GoldenCase{"qwen2moe", "tiny", "qwen2moe"},
                    GoldenCase{"olmoe", "tiny", "olmoe"}, GoldenCase{"glm4moe", "tiny", "glm4moe"},
                    GoldenCase{"gpt-oss", "tiny", "gpt-oss"}),
    [](const auto& golden) {
      std::string name = golden.param.golden;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

// ---- Every tiny preset in every type -------------------------------------------------------------------------------

struct TypedPreset {
  ModelPreset preset;
  DType dtype;
};

std::vector<TypedPreset> tiny_presets_in_every_type() {
  std::vector<TypedPreset> cases;
  for (const ModelPreset& preset : model_presets()) {
    if (!preset.name.starts_with("tiny")) continue;
    for (const QuantType& type : quant_types()) {
      if (type.ggml_id != kNoGgmlId) cases.push_back({preset, type.dtype});
    }
  }
  return cases;
}

class EveryTinyModel : public MakeModelTest, public testing::WithParamInterface<TypedPreset> {
 protected:
  MadeModel make_it() { return make_model(GetParam().preset, {.dtype = GetParam().dtype}, path_, threads_); }
};

TEST_P(EveryTinyModel, ReportsWhatItWrote) {
  const MadeModel made = make_it();
  const ParsedFile file(path_);
  EXPECT_EQ(made.file_bytes, static_cast<int64_t>(file.bytes.size()));
  EXPECT_EQ(made.num_tensors, static_cast<int64_t>(file.gguf.tensors.size()));
  int64_t num_parameters = 0;
  for (const GgufTensor& tensor : file.gguf.tensors) {
    int64_t count = 1;
    for (const int64_t dim : tensor.shape) count *= dim;
    num_parameters += count;
  }
  EXPECT_EQ(made.num_parameters, num_parameters);
  EXPECT_LT(made.file_bytes, 24 << 20);
}

bool is_norm(std::string_view name) { return name.find("_norm.") != std::string_view::npos; }
bool is_router(std::string_view name) {
  return name.find("ffn_gate_inp.") != std::string_view::npos || name.ends_with("ffn_gate_inp_shexp.weight");
}
bool is_small(std::string_view name) { return name.ends_with(".bias") || name.ends_with("attn_sinks.weight"); }

TEST_P(EveryTinyModel, TypesAreMixedAsDocumented) {
  const DType dtype = GetParam().dtype;
  const MadeModel made = make_it();
  const ParsedFile file(path_);
  int num_fallbacks = 0;
  for (const GgufTensor& tensor : file.gguf.tensors) {
    DType expected = dtype;
    if (is_norm(tensor.name) || is_router(tensor.name) || is_small(tensor.name)) {
      expected = DType::kF32;
    } else if (tensor.shape.back() % quant_type(dtype).block_size != 0) {
      expected = DType::kQ8_0;
      ++num_fallbacks;
    } else if (tensor.name == "output.weight" && dtype == DType::kQ4_K) {
      expected = DType::kQ6_K;
    }
    EXPECT_EQ(tensor.dtype, expected) << tensor.name;
  }
  // The keys of latent attention have short rows.
  const bool falls_back = GetParam().preset.latent_dim > 0 && quant_type(dtype).block_size == 256;
  EXPECT_EQ(num_fallbacks, falls_back ? GetParam().preset.num_layers : 0);
  ASSERT_EQ(made.notes.size(), falls_back ? 1u : 0u);
  if (falls_back) {
    EXPECT_THAT(made.notes[0], HasSubstr("attn_k_b.weight (3 tensors) is Q8_0, not "));
  }
}

TEST_P(EveryTinyModel, WeightsHaveTheDeviationsAsked) {
  make_it();
  const ParsedFile file(path_);
  for (const GgufTensor& tensor : file.gguf.tensors) {
    std::vector<float> values = decode(tensor);
    ASSERT_TRUE(std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) << tensor.name;
    if (is_norm(tensor.name)) {
      EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](float v) { return v >= 0.9f && v <= 1.1f; }));
      EXPECT_GT(*std::max_element(values.begin(), values.end()), 1.05f) << tensor.name;
      continue;
    }
    double expected = 1 / std::sqrt(static_cast<double>(tensor.shape.back()));
    if (tensor.name == "token_embd.weight" && !GetParam().preset.tied_embeddings) expected = 1;
    if (tensor.name.ends_with("attn_k_b.weight")) expected = 1 / std::sqrt(static_cast<double>(tensor.shape[1]));
    if (tensor.name.ends_with(".bias")) expected = 0.1;
    if (tensor.name.ends_with("attn_sinks.weight")) expected = 1;
    if (tensor.name == "output.weight" || tensor.name == "token_embd.weight") {  // reserved tokens' rows differ
      values.erase(values.begin(), values.begin() + kNumReservedTokens * tensor.shape.back());
    }
    // Three deviations of a mean over so many squares.
    const double tolerance = 0.03 + 3 / std::sqrt(2 * static_cast<double>(values.size()));
    EXPECT_NEAR(root_mean_square(values), expected, tolerance * expected) << tensor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, EveryTinyModel, testing::ValuesIn(tiny_presets_in_every_type()),
                         [](const auto& typed) {
                           std::string name = std::string(typed.param.preset.arch) + "_" +
                                              std::string(typed.param.preset.name) + "_" +
                                              std::string(quant_type(typed.param.dtype).name);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// ---- Weights -------------------------------------------------------------------------------------------------------

TEST_F(MakeModelTest, ProgressGrowsToTheWhole) {
  std::vector<std::pair<int64_t, int64_t>> reports;
  const MadeModel made = make_model(find_model_preset("qwen3moe", "tiny"), {}, path_, threads_,
                                    [&](int64_t done, int64_t total) { reports.emplace_back(done, total); });
  ASSERT_GT(reports.size(), 2U);
  EXPECT_TRUE(std::ranges::is_sorted(reports));
  EXPECT_EQ(reports.front().second, reports.back().second);
  EXPECT_EQ(reports.back().first, reports.back().second);
  EXPECT_LE(reports.back().second, made.file_bytes);
}

TEST_F(MakeModelTest, FileIsFixedByItsSeedWhateverTheThreads) {
  make("qwen3moe", "tiny", {.dtype = DType::kQ4_K, .seed = 5});
  const std::string first = test::read_file(path_);
  ThreadPool more(3);
  make_model(find_model_preset("qwen3moe", "tiny"), {.dtype = DType::kQ4_K, .seed = 5}, path_, more);
  EXPECT_TRUE(test::read_file(path_) == first);
  make("qwen3moe", "tiny", {.dtype = DType::kQ4_K, .seed = 6});
  EXPECT_FALSE(test::read_file(path_) == first);
}

TEST_F(MakeModelTest, NumberOfLayersChangesNoLayer) {
  make("llama", "tiny-mixtral", {.num_layers = 1, .dtype = DType::kQ8_0});
  const ParsedFile small(path_);
  make("llama", "tiny-mixtral", {.num_layers = 3, .dtype = DType::kQ8_0});
  const ParsedFile large(path_);
  EXPECT_GT(large.gguf.tensors.size(), small.gguf.tensors.size());
  for (const GgufTensor& tensor : small.gguf.tensors) {
    const auto& other = large.tensor(tensor.name).data;
    EXPECT_TRUE(std::equal(tensor.data.begin(), tensor.data.end(), other.begin(), other.end())) << tensor.name;
  }
}

TEST_F(MakeModelTest, NoTwoTensorsAndNoTwoRowsAreEqual) {
  make("qwen3moe", "tiny", {.dtype = DType::kQ8_0});
  const ParsedFile file(path_);
  std::set<std::string> rows;
  size_t num_rows = 0;
  for (const GgufTensor& tensor : file.gguf.tensors) {
    if (tensor.name == "output.weight") continue;  // has rows of zeros
    const auto row_bytes = static_cast<size_t>(quant_type(tensor.dtype).row_bytes(tensor.shape.back()));
    for (size_t begin = 0; begin < tensor.data.size(); begin += row_bytes, ++num_rows) {
      rows.emplace(reinterpret_cast<const char*>(tensor.data.data()) + begin, row_bytes);
    }
  }
  EXPECT_EQ(rows.size(), num_rows);
}

TEST_F(MakeModelTest, RoutersChooseTheirExpertsEquallyOften) {
  make("qwen3moe", "tiny");
  const ParsedFile file(path_);
  const GgufTensor& router = file.tensor("blk.1.ffn_gate_inp.weight");
  const int64_t num_experts = router.shape[0];
  const int64_t model_dim = router.shape[1];
  const std::vector<float> weights = decode(router);
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const auto row = std::span(weights).subspan(static_cast<size_t>(expert * model_dim), model_dim);
    EXPECT_NEAR(root_mean_square(row) * std::sqrt(static_cast<double>(model_dim)), 1, 1e-5) << expert;
  }

  constexpr int kNumTokens = 4000;
  constexpr int kTopK = 2;
  std::vector<int> load(static_cast<size_t>(num_experts));
  RandomBits bits(99);
  std::vector<float> x(static_cast<size_t>(model_dim));
  for (int token = 0; token < kNumTokens; ++token) {
    for (float& value : x) value = bits.next_signed_unit();
    std::vector<std::pair<double, int64_t>> scores;
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      double score = 0;
      for (int64_t i = 0; i < model_dim; ++i) score += static_cast<double>(weights[expert * model_dim + i]) * x[i];
      scores.emplace_back(-score, expert);
    }
    std::sort(scores.begin(), scores.end());
    for (int k = 0; k < kTopK; ++k) ++load[scores[k].second];
  }
  const double mean = static_cast<double>(kNumTokens) * kTopK / static_cast<double>(num_experts);
  // The rows are not exactly orthogonal, so loads differ a little beyond chance (which alone is 3 %).
  for (int64_t expert = 0; expert < num_experts; ++expert) EXPECT_NEAR(load[expert], mean, 0.2 * mean) << expert;
}

TEST_F(MakeModelTest, OutputRowsOfReservedTokensAreZeroAndOthersAreNot) {
  make("llama", "tiny", {.dtype = DType::kQ4_K});
  const ParsedFile file(path_);
  const GgufTensor& output = file.tensor("output.weight");
  const std::vector<float> values = decode(output);
  const int64_t length = output.shape[1];
  for (int64_t row = 0; row < output.shape[0]; ++row) {
    const double size = root_mean_square(std::span(values).subspan(static_cast<size_t>(row * length), length));
    if (row < kNumReservedTokens) {
      EXPECT_EQ(size, 0) << row;
    } else {
      EXPECT_GT(size, 0.01) << row;
    }
  }
}

TEST_F(MakeModelTest, TiedRowsOfReservedTokensAreSmall) {
  make("qwen3", "tiny", {.dtype = DType::kQ8_0});
  const ParsedFile file(path_);
  const GgufTensor& embeddings = file.tensor("token_embd.weight");
  const std::vector<float> values = decode(embeddings);
  const auto num_reserved = static_cast<size_t>(kNumReservedTokens * embeddings.shape[1]);
  const double reserved = root_mean_square(std::span(values).first(num_reserved));
  EXPECT_NEAR(root_mean_square(std::span(values).subspan(num_reserved)) / reserved, 8, 0.2);
}

// ---- Vocabulary ----------------------------------------------------------------------------------------------------

TEST_F(MakeModelTest, TokenizerTurnsAnyTextIntoItsBytesAndBack) {
  make("llama", "tiny");
  const auto checkpoint = Checkpoint::open(path_);
  const auto tokenizer = checkpoint->load_tokenizer();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->vocab_size(), find_model_preset("llama", "tiny").vocab_size);
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_EQ(tokenizer->eos(), 2);
  for (const std::string text : {"Hello, world", "two  spaces", "naïve 日本", "line\nbreak\ttab", "bomaki"}) {
    const std::vector<TokenId> tokens = tokenizer->encode(text, AddSpecial::kNo, ParseSpecial::kNo);
    EXPECT_EQ(decode(*tokenizer, tokens), text);
    EXPECT_EQ(tokens.size(), text.size() + 1) << "a token for each byte and the leading space";
    for (const TokenId token : tokens) EXPECT_LT(token, kNumReservedTokens);
  }
}

TEST_F(MakeModelTest, EveryTokenAboveTheReservedOnesIsADistinctPrintableWord) {
  make("deepseek2", "tiny");
  const auto tokenizer = Checkpoint::open(path_)->load_tokenizer();
  ASSERT_NE(tokenizer, nullptr);
  std::set<std::string> pieces;
  for (TokenId id = 0; id < tokenizer->vocab_size(); ++id) {
    pieces.insert(tokenizer->token_piece(id));
    if (id < kNumReservedTokens) continue;
    const std::string text = tokenizer->token_bytes(id);
    EXPECT_GE(text.size(), 4u) << id;
    EXPECT_EQ(text[0], ' ') << id;
    EXPECT_TRUE(std::all_of(text.begin() + 1, text.end(), [](char c) { return c >= 'a' && c <= 'z'; })) << text;
  }
  EXPECT_EQ(pieces.size(), static_cast<size_t>(tokenizer->vocab_size()));
}

TEST(ByteVocabulary, LargestPublishedVocabularyHasDistinctPieces) {
  GgufMetadata metadata;
  set_byte_vocabulary(metadata, 151936);
  const fs::path path = fs::path(testing::TempDir()) / "byte_vocabulary_test.gguf";
  GgufWriter(path, metadata, {}).finish();
  const ParsedFile file(path);
  const auto& pieces = file.gguf.find("tokenizer.ggml.tokens")->strings;
  EXPECT_EQ(pieces.size(), 151936u);
  EXPECT_EQ(std::set<std::string_view>(pieces.begin(), pieces.end()).size(), pieces.size());
  EXPECT_EQ(file.gguf.find("tokenizer.ggml.scores")->count, pieces.size());
  EXPECT_EQ(file.gguf.find("tokenizer.ggml.token_type")->count, pieces.size());
  fs::remove(path);
}

// ---- Errors --------------------------------------------------------------------------------------------------------

TEST_F(MakeModelTest, NumberOfLayersOutOfRangeIsRefused) {
  for (const int32_t num_layers : {-1, 1025}) {
    test::expect_error(ErrorCode::kInvalidArgument, {std::to_string(num_layers)},
                       [&] { make("llama", "tiny", {.num_layers = num_layers}); });
  }
  EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(MakeModelTest, PathThatCannotBeWrittenIsRefusedByName) {
  path_ = directory_ / "missing" / "model.gguf";
  test::expect_error(ErrorCode::kIo, {path_}, [&] { make("llama", "tiny"); });
}

}  // namespace
}  // namespace witan
