#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <concepts>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/function_ref.h"

namespace witan::test {

// Expects that `run` throws Error with this code and a message that contains all parts.
inline void expect_error(ErrorCode code, const std::vector<std::string>& parts, FunctionRef<void()> run) {
  try {
    run();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    for (const std::string& part : parts) EXPECT_THAT(error.what(), testing::HasSubstr(part));
    return;
  }
  ADD_FAILURE() << "no error, expected one with: " << testing::PrintToString(parts);
}

// A template, so that a list in braces is never taken for one string.
template <std::convertible_to<std::string> Part>
void expect_error(ErrorCode code, const Part& part, FunctionRef<void()> run) {
  expect_error(code, std::vector<std::string>{part}, run);
}

}  // namespace witan::test
