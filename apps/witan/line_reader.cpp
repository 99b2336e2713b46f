#include "line_reader.h"

#include <histedit.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdio>

#include "base/error.h"

namespace witan {
namespace {

// Interrupts the read and does nothing else. Installed without SA_RESTART, unlike std::signal's handlers.
class InterruptingSignal {
 public:
  InterruptingSignal() {
    struct sigaction action {};
    action.sa_handler = [](int) { pressed_ = 1; };
    pressed_ = 0;
    sigaction(SIGINT, &action, &previous_);
  }
  ~InterruptingSignal() { sigaction(SIGINT, &previous_, nullptr); }
  InterruptingSignal(const InterruptingSignal&) = delete;
  InterruptingSignal& operator=(const InterruptingSignal&) = delete;
  static bool pressed() { return pressed_ != 0; }

 private:
  static inline volatile std::sig_atomic_t pressed_ = 0;
  struct sigaction previous_ {};
};

}  // namespace

struct LineReader::Editor {
  Editor() : line(el_init("witan", stdin, stdout, stderr)), history(history_init()) {
    if (line == nullptr || history == nullptr) fail(ErrorCode::kIo, "the terminal cannot be set up");
    HistEvent event;
    ::history(history, &event, H_SETSIZE, 1000);
    ::history(history, &event, H_SETUNIQUE, 1);
    el_set(line, EL_CLIENTDATA, this);
    // The plus: through variable arguments a lambda would stay one.
    el_set(
        line, EL_PROMPT, +[](EditLine* editing) -> char* {
          void* self = nullptr;
          el_get(editing, EL_CLIENTDATA, &self);
          return static_cast<Editor*>(self)->prompt.data();
        });
    el_set(line, EL_EDITOR, "emacs");
    el_set(line, EL_HIST, ::history, history);
    el_set(line, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  }
  ~Editor() {
    history_end(history);
    el_end(line);
  }

  EditLine* line;
  History* history;
  std::string prompt;
};

LineReader::LineReader() {
  if (isatty(STDIN_FILENO) == 0) return;
  std::setlocale(LC_CTYPE, "");  // so that the editor knows what one character is
  editor_ = std::make_unique<Editor>();
}

LineReader::~LineReader() = default;

std::optional<std::string> LineReader::read(const std::string& prompt) {
  interrupted_ = false;
  if (editor_ == nullptr) {
    std::string text;
    int c = 0;
    while ((c = std::getc(stdin)) != EOF && c != '\n') text += static_cast<char>(c);
    if (c == EOF && text.empty()) {
      if (std::ferror(stdin) != 0) fail(ErrorCode::kIo, "standard input cannot be read");
      return std::nullopt;
    }
    if (text.ends_with('\r')) text.pop_back();
    return text;
  }
  editor_->prompt = prompt;
  const InterruptingSignal signal;
  int size = 0;
  const char* text = el_gets(editor_->line, &size);
  if (InterruptingSignal::pressed()) {
    el_reset(editor_->line);
    std::fputs("\n", stdout);
    interrupted_ = true;
    return "";
  }
  if (text == nullptr || size <= 0) return std::nullopt;
  std::string line(text, static_cast<size_t>(size));
  if (line.ends_with('\n')) line.pop_back();
  return line;
}

void LineReader::remember(const std::string& text) {
  if (editor_ == nullptr || text.empty()) return;
  HistEvent event;
  history(editor_->history, &event, H_ENTER, text.c_str());
}

}  // namespace witan
