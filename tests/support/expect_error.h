#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace witan::test {

// Expects that `run` throws Error with this code and a message that contains `part`.
template <typename Run>
void expect_error(ErrorCode code, const std::string& part, Run&& run) {
  try {
    run();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    EXPECT_THAT(error.what(), testing::HasSubstr(part));
    return;
  }
  ADD_FAILURE() << "no error, expected one with: " << part;
}

}  // namespace witan::test
