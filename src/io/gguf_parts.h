#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/gguf_reader.h"
#include "io/mapped_file.h"

namespace witan {

// One file of a model: the only one, or one of NAME-00001-of-00003.gguf and so on.
struct GgufPart {
  explicit GgufPart(const std::string& path) : file(path), gguf(parse_gguf(file.bytes(), file.path())) {}

  MappedFile file;
  GgufFile gguf;
};

// All parts of the model that `path` is a part of, in order. The metadata is in the first one. A file is part of a
// split model when its key split.count says so; split.no, split.count and the first part's split.tensors.count are
// checked against what is found.
// Throws Error(kIo) for a part that is missing, Error(kBadFile) for one that does not belong, and as parse_gguf.
std::vector<std::unique_ptr<GgufPart>> open_gguf_parts(const std::string& path);

}  // namespace witan
