#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "models/matrix_rows.h"

namespace witan {

// What a model's code read of a Hugging Face directory, and what GGUF files call it. The models' own code is the only
// place where both spellings stand; a converter lets it read the directory and finds the names here.
struct ConversionLog {
  using Setting = std::variant<uint32_t, float, bool, std::string>;

  struct Tensor {
    std::string gguf;  // its name in GGUF files; empty or no such name where they have nothing of the kind
    // Its rows, one part after the other: experts that GGUF files stack into one tensor have one each.
    std::vector<MatrixRows> parts;
    std::vector<int64_t> shape;  // outermost first
  };

  std::map<std::string, Setting, std::less<>> settings;  // by key, without the architecture's prefix
  std::vector<Tensor> tensors;
  // GGUF files order the rows of queries and keys so that rotated components are neighbours; these have them in halves.
  bool permutes_rotated_rows = false;
  std::string obstacle;  // why this model cannot be converted; empty: nothing found
};

}  // namespace witan
