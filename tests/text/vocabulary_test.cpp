#include "text/vocabulary.h"

#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace witan {
namespace {

TEST(Vocabulary, IdsNeverSetAreUnusedAndFoundByNoText) {
  Vocabulary vocabulary(2);
  vocabulary.set(5, "five", TokenKind::kNormal, "file");
  vocabulary.set(1, "one", TokenKind::kControl, "file");
  EXPECT_EQ(vocabulary.size(), 6);
  EXPECT_EQ(vocabulary.find("five"), 5);
  EXPECT_EQ(vocabulary.find("one"), 1);
  EXPECT_EQ(vocabulary.find(""), std::nullopt);
  EXPECT_EQ(vocabulary.kind(3), TokenKind::kUnused);
}

TEST(Vocabulary, LookupsSurviveGrowthAndMoving) {
  Vocabulary vocabulary(10000);
  for (TokenId id = 0; id < 10000; ++id) vocabulary.set(id, std::to_string(id), TokenKind::kNormal, "file");
  Vocabulary moved(0);
  moved = std::move(vocabulary);
  for (TokenId id = 0; id < 10000; ++id) ASSERT_EQ(moved.find(std::to_string(id)), id);
}

TEST(Vocabulary, ContradictionsAreRefusedByName) {
  Vocabulary vocabulary(2);
  vocabulary.set(0, "a", TokenKind::kNormal, "file");
  test::expect_error(ErrorCode::kBadFile, "\"a\" is there twice, with ids 0 and 1",
                     [&] { vocabulary.set(1, "a", TokenKind::kNormal, "file"); });
  test::expect_error(ErrorCode::kBadFile, "\"a\" and \"b\" have the same id 0",
                     [&] { vocabulary.set(0, "b", TokenKind::kNormal, "file"); });
  test::expect_error(ErrorCode::kBadFile, "id 1000000000",
                     [&] { vocabulary.set(1'000'000'000, "c", TokenKind::kNormal, "file"); });
  test::expect_error(ErrorCode::kBadFile, "id -1", [&] { vocabulary.set(-1, "c", TokenKind::kNormal, "file"); });
}

}  // namespace
}  // namespace witan
