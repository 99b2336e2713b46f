#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/checkpoint.h"

namespace witan::test {

// A checkpoint made in memory: settings as numbers, tensors of zeros in F32.
class FakeCheckpoint final : public Checkpoint {
 public:
  FakeCheckpoint(CheckpointFormat format, std::string architecture)
      : format_(format), architecture_(std::move(architecture)) {}

  void set(const std::string& key, double value) { config_.numbers[key] = value; }
  void set(const std::string& key, const char* value) { config_.texts[key] = value; }
  void unset(const std::string& key) { config_.numbers.erase(key); }

  void add_tensor(std::string name, std::vector<int64_t> shape, DType dtype = DType::kF32) {
    TensorEntry entry{.name = std::move(name), .dtype = dtype, .shape = std::move(shape), .data = {}, .file = path_};
    const int64_t cols = entry.shape.back();
    const int64_t bytes = entry.num_elements() / cols * quant_type(dtype).row_bytes(cols);
    storage_.push_back(std::make_unique<std::vector<std::byte>>(bytes));
    entry.data = *storage_.back();
    tensors_.push_back(std::move(entry));
  }
  void remove_tensor(const std::string& name) {
    std::erase_if(tensors_, [&](const TensorEntry& tensor) { return tensor.name == name; });
  }

  CheckpointFormat format() const override { return format_; }
  const std::string& path() const override { return path_; }
  const std::string& architecture() const override { return architecture_; }
  const CheckpointConfig& config() const override { return config_; }
  std::span<const TensorEntry> tensors() const override { return tensors_; }
  const TensorEntry* find(std::string_view name) const override {
    for (const TensorEntry& tensor : tensors_) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  std::unique_ptr<Tokenizer> load_tokenizer() const override { return nullptr; }
  std::vector<TokenId> end_of_generation_tokens() const override { return {}; }

 private:
  struct Config final : CheckpointConfig {
    std::map<std::string, double, std::less<>> numbers;
    std::map<std::string, std::string, std::less<>> texts;

    double number(std::string_view key) const {
      const auto found = numbers.find(key);
      if (found == numbers.end()) fail(ErrorCode::kBadFile, "fake: {} is missing", key);
      return found->second;
    }
    bool has(std::string_view key) const override { return numbers.contains(key) || texts.contains(key); }
    int64_t get_int(std::string_view key) const override { return static_cast<int64_t>(number(key)); }
    double get_double(std::string_view key) const override { return number(key); }
    bool get_bool(std::string_view key) const override { return number(key) != 0.0; }
    std::string get_string(std::string_view key) const override { return texts.find(key)->second; }
    std::vector<int64_t> get_ints(std::string_view key) const override { return {get_int(key)}; }
    std::vector<std::string> get_strings(std::string_view) const override { return {}; }
  };

  CheckpointFormat format_;
  std::string architecture_;
  std::string path_ = "fake-model";
  Config config_;
  std::vector<TensorEntry> tensors_;
  std::vector<std::unique_ptr<std::vector<std::byte>>> storage_;
};

}  // namespace witan::test
