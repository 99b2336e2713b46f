#include "line_reader.h"

#include <fcntl.h>
#include <histedit.h>
#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cwchar>

#include "base/error.h"

namespace witan {
namespace {

volatile std::sig_atomic_t is_pressed = 0;
int pipe_ends[2] = {-1, -1};  // the handler writes to the second

// While it lives, Ctrl-C makes read_character() fail, whenever it comes and whichever thread the system tells.
class InterruptingSignal {
 public:
  InterruptingSignal() {
    if (pipe_ends[0] < 0 && pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK) != 0)
      fail(ErrorCode::kIo, "no pipe: too many open files");
    char byte;
    while (::read(pipe_ends[0], &byte, 1) == 1) {
    }
    is_pressed = 0;
    struct sigaction action {};
    action.sa_handler = [](int) {
      is_pressed = 1;
      const int error = errno;
      [[maybe_unused]] const ssize_t ignored = write(pipe_ends[1], "c", 1);  // a full pipe is as good
      errno = error;
    };
    sigaction(SIGINT, &action, &previous_);
  }
  ~InterruptingSignal() { sigaction(SIGINT, &previous_, nullptr); }
  InterruptingSignal(const InterruptingSignal&) = delete;
  InterruptingSignal& operator=(const InterruptingSignal&) = delete;

  // One character of standard input, as libedit asks for it: 1, 0 at the end, -1 for an error or Ctrl-C.
  static int read_character(EditLine*, wchar_t* character) {
    std::mbstate_t state{};
    for (;;) {
      pollfd waited[] = {{.fd = pipe_ends[0], .events = POLLIN, .revents = 0},
                         {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0}};
      if (poll(waited, 2, -1) < 0) {
        if (errno == EINTR) continue;
        return -1;
      }
      if (waited[0].revents != 0) return -1;
      char byte;
      const ssize_t count = ::read(STDIN_FILENO, &byte, 1);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return static_cast<int>(count);
      const size_t used = std::mbrtowc(character, &byte, 1, &state);
      if (used == static_cast<size_t>(-2)) continue;  // more bytes to come
      if (used == static_cast<size_t>(-1)) {          // no character: left out
        state = {};
        continue;
      }
      return 1;
    }
  }

 private:
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
    el_set(line, EL_GETCFN, &InterruptingSignal::read_character);
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
  el_set(editor_->line, EL_PREP_TERM, 1);  // before the prompt shows: a Ctrl-D of before then would be lost
  int size = 0;
  const char* text = el_gets(editor_->line, &size);
  if (is_pressed != 0) {
    tcflush(STDIN_FILENO, TCIFLUSH);  // what was typed and not read yet is of the dropped line too
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
