#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/function_ref.h"

namespace witan::test {

// `action` must throw an Error of this code whose message has all fragments.
inline void expect_error(FunctionRef<void()> action, ErrorCode code, const std::vector<std::string>& fragments) {
  try {
    action();
    ADD_FAILURE() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    for (const std::string& fragment : fragments) EXPECT_THAT(error.what(), testing::HasSubstr(fragment));
  }
}

}  // namespace witan::test
