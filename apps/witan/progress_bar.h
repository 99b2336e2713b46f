#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace witan {

// A progress bar on standard error for work over a second; nothing when that is no terminal.
class ProgressBar {
 public:
  explicit ProgressBar(std::string title);
  ~ProgressBar();  // wipes the bar
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void update(int64_t done, int64_t total);  // done may overshoot
  void wipe();                               // until the next update, to write other lines

 private:
  std::string title_;
  bool enabled_;
  bool drawn_ = false;
  int64_t last_percent_ = -1;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace witan
