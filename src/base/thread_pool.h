#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/function_ref.h"

namespace witan {

// A fixed team of threads for loops inside one step. The calling thread is member 0 and works too, so a pool of one
// thread starts none. Workers sleep between loops after a short spin. A loop waits for its items, never for a thread:
// a worker that the operating system keeps from running costs only the item that it holds.
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
  // Items that no thread has claimed. Whoever lowers it holds an item of the loop in progress, which cannot end before
  // that item has, so a thread that arrives late, even from an earlier loop, does no harm: body_ and num_items_ are
  // read after the claim.
  std::atomic<int64_t> num_unclaimed_{0};
  std::atomic<int64_t> num_unfinished_{0};
  int64_t num_items_ = 0;
  const FunctionRef<void(int64_t, int)>* body_ = nullptr;
  std::atomic<bool> stopping_{false};
};

}  // namespace witan
