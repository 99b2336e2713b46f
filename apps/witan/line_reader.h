#pragma once

#include <memory>
#include <optional>
#include <string>

namespace witan {

// Lines from a person: edited, with a history, where standard input is a terminal; as they come where it is not.
class LineReader {
 public:
  LineReader();
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  bool is_terminal() const { return editor_ != nullptr; }

  // The next line without its end; nothing at the end of input. The prompt shows on a terminal only. Ctrl-C there drops
  // the line and gives "" with interrupted() true.
  std::optional<std::string> read(const std::string& prompt);
  bool interrupted() const { return interrupted_; }
  // Into the history.
  void remember(const std::string& text);

 private:
  struct Editor;
  std::unique_ptr<Editor> editor_;
  bool interrupted_ = false;
};

}  // namespace witan
