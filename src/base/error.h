#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace witan {

enum class ErrorCode {
  kInvalidArgument,  // a request, flag or parameter that cannot be honoured
  kBadFile,          // a file that contradicts its format, its own header or what the model needs
  kUnsupported,      // well-formed, but something Witan does not have
  kIo,               // the operating system refused (missing file, no permission, full disk)
  kOutOfMemory,      // the memory budget does not suffice; the message has the numbers
};

// Thrown for everything that input can cause: files, requests, flags, environment. The message names what was wrong,
// what was expected and what was found, so that a front end can show it unchanged.
// Bugs are not errors: they abort through WITAN_CHECK. "No room right now" inside the engine is a return value.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace witan
