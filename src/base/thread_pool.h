#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/function_ref.h"

namespace witan {

// A fixed team of threads for loops inside one step. The calling thread is member 0 and works too, so a pool of one
// thread starts none. Workers sleep between loops after a short spin.
//
// Thread safety: one parallel_for at a time, never from inside another.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body(item, thread) once for every item in [0, num_items) and returns when all calls have. Items are handed
  // out one by one in ascending order to whichever thread is free, so put the largest first. thread is in
  // [0, num_threads). body must not throw. What is written by the bodies is visible after the return.
  void parallel_for(int64_t num_items, FunctionRef<void(int64_t item, int thread)> body);

 private:
  void worker_loop(int thread);
  void run_items(int thread);

  int num_threads_;
  std::vector<std::thread> workers_;
  std::atomic<uint32_t> generation_{0};  // raised to start a loop, and to stop
  std::atomic<int32_t> num_busy_{0};     // workers that have not finished the current loop
  std::atomic<int64_t> next_item_{0};
  int64_t num_items_ = 0;
  const FunctionRef<void(int64_t, int)>* body_ = nullptr;
  bool stopping_ = false;
};

}  // namespace witan
