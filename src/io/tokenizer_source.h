#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/types.h"
#include "io/gguf_writer.h"

namespace witan {

// Sets the `tokenizer.ggml.*` keys that make the tokenizer of a Hugging Face directory, with tokens for `vocab_size`
// ids, and tokenizer.chat_template; model "none" where the directory has no tokenizer.json. `ends` are the tokens that
// end a generation. Throws as gguf_fields_from_json.
void set_directory_tokenizer(const std::string& directory, std::span<const TokenId> ends, int64_t vocab_size,
                             GgufMetadata& metadata);

// The tokenizer and chat template of a GGUF file or a Hugging Face directory, to be copied into another GGUF file.
// Nothing else of the directory need be there.
class TokenizerSource {
 public:
  // Throws Error(kIo) or Error(kBadFile) naming the file; Error(kUnsupported) when there is no tokenizer in it.
  explicit TokenizerSource(const std::string& path);
  ~TokenizerSource();

  int64_t vocab_size() const { return vocab_size_; }
  void copy_to(GgufMetadata& metadata) const;

 private:
  struct Gguf;
  std::unique_ptr<Gguf> gguf_;  // nullptr: a directory
  std::string path_;
  int64_t vocab_size_ = 0;
};

}  // namespace witan
