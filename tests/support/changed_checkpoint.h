#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "io/checkpoint.h"

namespace witan::test {

// A checkpoint with some settings and tensors changed: what a broken file would say.
class ChangedCheckpoint final : public Checkpoint {
 public:
  explicit ChangedCheckpoint(const std::string& path)
      : base_(Checkpoint::open(path)),
        config_(base_->config()),
        tensors_(base_->tensors().begin(), base_->tensors().end()) {}

  void set(const std::string& key, double value) { config_.numbers[key] = value; }
  void set(const std::string& key, const std::string& value) { config_.texts[key] = value; }
  void unset(const std::string& key) { config_.missing.insert(key); }
  // False when there is no such tensor.
  bool remove(std::string_view name) {
    return std::erase_if(tensors_, [&](const TensorEntry& tensor) { return tensor.name == name; }) > 0;
  }
  // Says that the tensor is one longer in its last dimension.
  bool reshape(std::string_view name) {
    const auto found = std::ranges::find(tensors_, name, &TensorEntry::name);
    if (found == tensors_.end()) return false;
    ++found->shape.back();
    return true;
  }

  CheckpointFormat format() const override { return base_->format(); }
  const std::string& path() const override { return base_->path(); }
  const std::string& architecture() const override { return base_->architecture(); }
  const CheckpointConfig& config() const override { return config_; }
  std::span<const TensorEntry> tensors() const override { return tensors_; }
  const TensorEntry* find(std::string_view name) const override {
    const auto found = std::ranges::find(tensors_, name, &TensorEntry::name);
    return found == tensors_.end() ? nullptr : &*found;
  }
  std::unique_ptr<Tokenizer> load_tokenizer() const override { return nullptr; }
  std::vector<TokenId> end_of_generation_tokens() const override { return {}; }

 private:
  struct Config final : CheckpointConfig {
    explicit Config(const CheckpointConfig& changed) : base(changed) {}

    bool has(std::string_view key) const override {
      return !missing.contains(std::string(key)) && (numbers.contains(key) || texts.contains(key) || base.has(key));
    }
    int64_t get_int(std::string_view key) const override {
      const auto found = numbers.find(key);
      return found != numbers.end() ? static_cast<int64_t>(found->second) : base.get_int(known(key));
    }
    double get_double(std::string_view key) const override {
      const auto found = numbers.find(key);
      return found != numbers.end() ? found->second : base.get_double(known(key));
    }
    bool get_bool(std::string_view key) const override { return base.get_bool(known(key)); }
    std::string get_string(std::string_view key) const override {
      const auto found = texts.find(key);
      return found != texts.end() ? found->second : base.get_string(known(key));
    }
    std::vector<int64_t> get_ints(std::string_view key) const override {
      const auto found = numbers.find(key);
      if (found != numbers.end()) return {static_cast<int64_t>(found->second)};
      return base.get_ints(known(key));
    }
    std::vector<std::string> get_strings(std::string_view key) const override {
      const auto found = texts.find(key);
      return found != texts.end() ? std::vector{found->second} : base.get_strings(known(key));
    }

    // The file's own error about a key that is not there.
    std::string known(std::string_view key) const {
      return std::string(key) + (missing.contains(std::string(key)) ? "?" : "");
    }

    const CheckpointConfig& base;
    std::map<std::string, double, std::less<>> numbers;
    std::map<std::string, std::string, std::less<>> texts;
    std::set<std::string> missing;
  };

  std::unique_ptr<Checkpoint> base_;
  Config config_;
  std::vector<TensorEntry> tensors_;
};

}  // namespace witan::test
