#pragma once

#include <cstdlib>
#include <optional>
#include <string>

#include "base/isa.h"

namespace witan::test {

// Forces a kernel variant for models opened in its scope.
class ForceIsa {
 public:
  explicit ForceIsa(Isa isa) {
    if (const char* value = std::getenv("WITAN_ISA")) saved_ = value;
    setenv("WITAN_ISA", std::string(isa_name(isa)).c_str(), 1);
  }
  ~ForceIsa() {
    if (saved_) {
      setenv("WITAN_ISA", saved_->c_str(), 1);
    } else {
      unsetenv("WITAN_ISA");
    }
  }
  ForceIsa(const ForceIsa&) = delete;
  ForceIsa& operator=(const ForceIsa&) = delete;

 private:
  std::optional<std::string> saved_;
};

}  // namespace witan::test
