#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <csignal>
#include <thread>
#include <vector>

namespace witan {
namespace {

TEST(ThreadPoolTest, EveryItemRunsExactlyOnce) {
  for (int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    for (int64_t num_items : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(num_items);
      pool.parallel_for(num_items, [&](int64_t item, int thread) {
        EXPECT_LT(thread, num_threads);
        runs[item].fetch_add(1);
      });
      for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPoolTest, WritesOfAllThreadsAreVisibleAfterTheLoop) {
  ThreadPool pool(4);
  std::vector<int64_t> values(257);
  for (int64_t round = 0; round < 2000; ++round) {
    pool.parallel_for(std::ssize(values), [&](int64_t item, int) { values[item] += item; });
  }
  for (int64_t item = 0; item < std::ssize(values); ++item) EXPECT_EQ(values[item], 2000 * item);
}

TEST(ThreadPoolTest, SeveralThreadsTakePart) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  // Each of the two items waits for the other: this ends only if two threads run them at once.
  pool.parallel_for(2, [&](int64_t, int) {
    arrived.fetch_add(1);
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

std::atomic<bool> is_held{false};
std::atomic<bool> is_released{false};

void hold_thread(int) {
  is_held = true;
  while (!is_released) {
  }
}

// As on a busy machine, where the operating system may leave a worker waiting for a processor for milliseconds.
TEST(ThreadPoolTest, ALoopEndsWithoutAWorkerThatIsKeptFromRunning) {
  ThreadPool pool(2);
  pthread_t worker{};
  std::atomic<int> arrived{0};
  pool.parallel_for(2, [&](int64_t, int thread) {
    if (thread == 1) worker = pthread_self();
    arrived.fetch_add(1);
    while (arrived.load() < 2) std::this_thread::yield();
  });
  auto* const old_handler = std::signal(SIGUSR1, hold_thread);
  ASSERT_EQ(pthread_kill(worker, SIGUSR1), 0);
  while (!is_held) std::this_thread::yield();
  std::vector<int> threads(100, -1);
  for (int round = 0; round < 3; ++round) {
    pool.parallel_for(std::ssize(threads), [&](int64_t item, int thread) { threads[item] = thread; });
  }
  EXPECT_EQ(threads, std::vector<int>(100, 0));
  is_released = true;
  std::signal(SIGUSR1, old_handler);
}

}  // namespace
}  // namespace witan
