#include "base/isa.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "base/error.h"

namespace witan {
namespace {

class IsaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* value = std::getenv("WITAN_ISA")) saved_ = value;
  }
  void TearDown() override {
    if (saved_.empty()) {
      unsetenv("WITAN_ISA");
    } else {
      setenv("WITAN_ISA", saved_.c_str(), 1);
    }
  }
  std::string saved_;
};

TEST_F(IsaTest, EnvironmentForcesAVariant) {
  setenv("WITAN_ISA", "reference", 1);
  EXPECT_EQ(select_isa(), Isa::kReference);
}

TEST_F(IsaTest, UnknownVariantIsRefusedByName) {
  setenv("WITAN_ISA", "avx9000", 1);
  try {
    select_isa();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("avx9000"), std::string::npos);
  }
}

TEST_F(IsaTest, DefaultIsTheStrongestThatTheCpuHas) {
  unsetenv("WITAN_ISA");
  const Isa best = select_isa();
  EXPECT_TRUE(cpu_supports(best));
  for (Isa isa : kAllIsas) {
    if (isa == Isa::kAvx512Bf16 && best == Isa::kAvx512Vnni) continue;  // see below
    EXPECT_TRUE(isa <= best || !cpu_supports(isa)) << isa_name(isa);
  }
}

std::string cpu_info() {
  std::stringstream info;
  info << std::ifstream("/proc/cpuinfo").rdbuf();
  return info.str();
}

TEST_F(IsaTest, PrefetchersOfIntelDoNotKeepUp) {
  EXPECT_EQ(prefetcher_keeps_up(), cpu_info().find("GenuineIntel") == std::string::npos);
}

TEST_F(IsaTest, Bf16IsMultipliedByDefaultWhereThatIsFast) {
  if (!cpu_supports(Isa::kAvx512Bf16)) GTEST_SKIP() << "needs avx512_bf16";
  const std::string info = cpu_info();
  const bool is_slow =
      info.find("GenuineIntel") != std::string::npos && info.find(" avx512_fp16 ") != std::string::npos;
  unsetenv("WITAN_ISA");
  EXPECT_EQ(select_isa(), is_slow ? Isa::kAvx512Vnni : Isa::kAvx512Bf16);
  setenv("WITAN_ISA", "avx512_bf16", 1);
  EXPECT_EQ(select_isa(), Isa::kAvx512Bf16);
}

}  // namespace
}  // namespace witan
