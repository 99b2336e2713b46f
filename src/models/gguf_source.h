#pragma once

#include <string>

#include "io/quantize.h"

namespace witan {

// A model to be written to a GGUF file, from a GGUF file (any part of a split one) or a Hugging Face directory.
//
// Of a directory, the names of tensors and settings in GGUF files are those that the model's own code reads them by
// (ConversionLog); rows of queries and keys are reordered for architectures whose GGUF files have them so. Multi-head
// latent attention keeps kv_b in one matrix, as files did before the absorbed form.
// Throws as Checkpoint::open and create_model; Error(kUnsupported) naming what GGUF files, or this conversion, do not
// have.
ModelSource open_model_source(const std::string& path, ThreadPool& threads);

}  // namespace witan
