// Memory in files: it keeps what is written, and says what is wrong.
#include "kv/block_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <filesystem>

#include "support/expect_error.h"

namespace witan {
namespace {

using test::expect_error;

TEST(BlockFile, BytesAreZeroAndStayWhereTheyAre) {
  BlockFile file(std::filesystem::temp_directory_path());
  EXPECT_EQ(file.num_bytes(), 0);
  std::byte* first = file.extend(5000);
  EXPECT_GE(file.num_bytes(), 5000);
  for (int i = 0; i < 5000; ++i) ASSERT_EQ(first[i], std::byte{0});
  std::memset(first, 7, 5000);
  std::byte* second = file.extend(100);
  std::memset(second, 9, 100);
  file.leave_memory();
  for (int i = 0; i < 5000; ++i) ASSERT_EQ(first[i], std::byte{7});
  for (int i = 0; i < 100; ++i) ASSERT_EQ(second[i], std::byte{9});
}

TEST(BlockFile, LeavesNoFileBehind) {
  const std::filesystem::path directory = std::filesystem::temp_directory_path() / "witan-block-file-test";
  std::filesystem::create_directory(directory);
  {
    BlockFile file(directory);
    file.extend(1 << 20);
    EXPECT_TRUE(std::filesystem::is_empty(directory)) << "nor while it is used";
  }
  EXPECT_TRUE(std::filesystem::remove(directory));
}

TEST(BlockFile, ADirectoryThatIsNotThereIsNamed) {
  expect_error(ErrorCode::kIo, "/no/such/place: no file for KV entries", [] { BlockFile file("/no/such/place"); });
}

// A limit on the size of files stands for a disk without room.
TEST(BlockFile, AFullDiskIsAnErrorAndTheFileStaysAsItWas) {
  BlockFile file(std::filesystem::temp_directory_path());
  std::byte* first = file.extend(4096);
  std::memset(first, 7, 4096);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = before;
  limit.rlim_cur = 1 << 16;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  expect_error(ErrorCode::kIo, "no room for 1048576 bytes of KV entries, beside 4096", [&] { file.extend(1 << 20); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(file.num_bytes(), 4096);
  EXPECT_EQ(first[4095], std::byte{7});
  EXPECT_EQ(file.extend(1 << 20)[(1 << 20) - 1], std::byte{0});
}

}  // namespace
}  // namespace witan
