#include "progress_bar.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace witan {

ProgressBar::ProgressBar(std::string title)
    : title_(std::move(title)), enabled_(isatty(STDERR_FILENO) != 0), start_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() { wipe(); }

void ProgressBar::wipe() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
  last_percent_ = -1;
}

void ProgressBar::update(int64_t done, int64_t total) {
  if (!enabled_ || total <= 0) return;
  done = std::min(done, total);
  const int64_t percent = 100 * done / total;
  const bool slow = std::chrono::steady_clock::now() - start_ > std::chrono::seconds(1);
  if (!slow || percent == last_percent_) return;
  last_percent_ = percent;
  drawn_ = true;
  constexpr int64_t kWidth = 40;
  const std::string bar(static_cast<size_t>(kWidth * done / total), '#');
  std::fputs(fmt::format("\r{} [{:<40}] {:3} %", title_, bar, percent).c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace witan
