#include "base/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "support/expect_error.h"

namespace witan {
namespace {

namespace fs = std::filesystem;

class AtomicFileTest : public testing::Test {
 protected:
  AtomicFileTest() : directory_(fs::temp_directory_path() / fmt::format("witan_atomic_file_{}", getpid())) {
    fs::create_directory(directory_);
  }
  ~AtomicFileTest() override { fs::remove_all(directory_); }

  std::string path() const { return directory_ / "file"; }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(directory_)) found.push_back(entry.path().filename());
    return found;
  }
  std::string content() const {
    std::ostringstream text;
    text << std::ifstream(path()).rdbuf();
    return text.str();
  }
  static void write(const AtomicFile& file, const std::string& text) {
    ASSERT_EQ(::write(file.descriptor(), text.data(), text.size()), std::ssize(text));
  }

  fs::path directory_;
};

TEST_F(AtomicFileTest, TheNameIsTakenOnCommit) {
  AtomicFile file(path());
  write(file, "new");
  EXPECT_FALSE(fs::exists(path()));
  file.commit();
  EXPECT_EQ(content(), "new");
  EXPECT_THAT(names(), testing::ElementsAre("file"));
}

TEST_F(AtomicFileTest, AFileOfThatNameIsReplacedOnlyOnCommit) {
  std::ofstream(path()) << "old";
  AtomicFile file(path());
  write(file, "new");
  EXPECT_EQ(content(), "old");
  file.commit();
  EXPECT_EQ(content(), "new");
  EXPECT_THAT(names(), testing::ElementsAre("file"));
}

TEST_F(AtomicFileTest, WithoutCommitNothingIsLeft) {
  std::ofstream(path()) << "old";
  {
    const AtomicFile file(path());
    write(file, "new");
  }
  EXPECT_EQ(content(), "old");
  EXPECT_THAT(names(), testing::ElementsAre("file"));
}

TEST_F(AtomicFileTest, AKilledProcessLeavesNothing) {
  const pid_t child = fork();
  if (child == 0) {
    const AtomicFile file(path());
    write(file, "new");
    raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_THAT(names(), testing::IsEmpty());
}

TEST_F(AtomicFileTest, TwoForOneNameDoNotMix) {
  AtomicFile first(path());
  AtomicFile second(path());
  write(first, "first");
  write(second, "second");
  second.commit();
  first.commit();
  EXPECT_EQ(content(), "first");
}

TEST_F(AtomicFileTest, ADirectoryThatIsNotThereIsNamed) {
  test::expect_error(ErrorCode::kIo, directory_ / "none" / "file: cannot be written: No such file or directory",
                     [&] { AtomicFile(directory_ / "none" / "file"); });
}

}  // namespace
}  // namespace witan
