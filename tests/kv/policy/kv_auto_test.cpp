#include "kv/policy/kv_auto.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace witan {
namespace {

using testing::HasSubstr;

// A prompt of 1000 tokens of which an entry takes a byte, and an answer of 100.
KvAutoRequest request(int64_t free_bytes = 1 << 20) {
  return {
      .num_prompt_tokens = 1000, .num_entries = 1100, .free_bytes = free_bytes, .bytes_for = [](int32_t num_entries) {
        return int64_t{num_entries};
      }};
}

// The same of 32 bytes an entry, and types of 16 and 8 for those before the 128 most recent.
KvAutoRequest request_with_types(int64_t free_bytes = 1 << 20) {
  const auto type = [](const char* policy, int64_t of_rounded) {
    return KvAutoTypes{
        .policy = policy, .num_recent = 128, .bytes_for = [of_rounded](int32_t num_entries, int32_t num_rounded) {
          return (num_entries - num_rounded) * 32 + num_rounded * of_rounded;
        }};
  };
  KvAutoRequest of = request(free_bytes);
  of.bytes_for = [](int32_t num_entries) { return int64_t{num_entries} * 32; };
  of.types = {type("k=int8-hadamard", 16), type("k=int4-hadamard", 8)};
  return of;
}

std::string chosen(const std::string& policy, const KvAutoRequest& of) {
  return choose_kv_policy(parse_kv_policy(policy), of).policy;
}

TEST(KvAuto, TheBudgetChoosesTheMethod) {
  EXPECT_EQ(chosen("auto,keep=0.9", request()), "keydiff,merge,keep=0.9,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.6", request()), "keydiff,merge,keep=0.6,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.5", request()), "kvzip,keep=0.5,floor=128");
  EXPECT_EQ(chosen("keep=0.4, auto", request()), "kvzip,keep=0.4,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.2", request()), "kvzip,keep=0.2,floor=128");
  EXPECT_EQ(chosen("auto,tokens=500", request()), "kvzip,tokens=500");
  EXPECT_EQ(chosen("auto,tokens=100,floor=400,every=16,sinks=2", request()),
            "keydiff,tokens=100,floor=400,every=16,sinks=2");
  EXPECT_EQ(chosen(R"({"parts": ["auto"], "keep": 0.2})", request()), "kvzip,keep=0.2,floor=128");
}

TEST(KvAuto, TheLengthOfTheAnswerHasASay) {
  KvAutoRequest of = request();
  of.num_entries = 1199;  // an answer of 200; the last token is only sampled
  EXPECT_EQ(chosen("auto,keep=0.54", of), "kvzip,keep=0.54,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.55", of), "keydiff,merge,keep=0.55,floor=128");
  of.num_entries = 1200;
  EXPECT_EQ(chosen("auto,keep=0.54", of), "keydiff,merge,keep=0.54,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.45", of), "keydiff,merge,keep=0.45,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.44", of), "kvzip,keep=0.44,floor=128");
  of.num_entries = 1100;
  of.fits_twice = false;
  EXPECT_EQ(chosen("auto,keep=0.5", of), "keydiff,merge,keep=0.5,floor=128");
}

TEST(KvAuto, EveryEntryStaysAsLongAsSomeTypeIsSmallEnough) {
  const KvAutoRequest of = request_with_types();  // of 1000 entries 864 are rounded
  EXPECT_EQ(chosen("auto,keep=0.9", of), "k=int8-hadamard");
  EXPECT_EQ(chosen("auto,tokens=568", of), "k=int8-hadamard") << "136 and 864 / 2";
  EXPECT_EQ(chosen("auto,tokens=567,sinks=2", of), "k=int4-hadamard");
  EXPECT_EQ(chosen("auto,tokens=352", of), "k=int4-hadamard") << "136 and 864 / 4";
  EXPECT_EQ(chosen("auto,keep=1", of), "");
}

TEST(KvAuto, BelowTheSmallestTypeAsManyStayAsFitRounded) {
  const KvAutoRequest of = request_with_types();
  // 128 as they are, and of the other 223 four times as many, in whole blocks.
  EXPECT_EQ(chosen("auto,tokens=351", of), "keydiff,merge,k=int4-hadamard,tokens=992");
  EXPECT_EQ(chosen("auto,keep=0.2,sinks=2,guard=0.5", of), "kvzip,sinks=2,guard=0.5,k=int4-hadamard,tokens=416");
  EXPECT_EQ(chosen("auto,keep=0.15,floor=10", of), "kvzip,k=int4-hadamard,tokens=192");
  EXPECT_EQ(chosen("auto,keep=0.1,floor=10", of), "kvzip,keep=0.1,floor=10") << "all that stays is not rounded";
  EXPECT_EQ(chosen("auto,keep=0.1", of), "kvzip,keep=0.1,floor=128");
  EXPECT_EQ(chosen("auto,tokens=40", of), "kvzip,tokens=40") << "a number of tokens is exact";
}

TEST(KvAuto, EntriesThatAreJudgedAgainStayAsTheyAre) {
  const KvAutoRequest of = request_with_types();
  EXPECT_EQ(chosen("auto,keep=0.5,every=16", of), "keydiff,merge,keep=0.5,every=16,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.5,prefill_every=256", of), "keydiff,merge,keep=0.5,prefill_every=256,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.5,generated_tokens=10", of), chosen("auto,keep=0.5,generated_tokens=10", request()));
  EXPECT_EQ(chosen("auto,every=16", request_with_types(20000)), chosen("auto,every=16", request(20000 / 32)));
}

TEST(KvAuto, TheRoomChoosesATypeBeforeAnythingIsDropped) {
  // 1100 entries, of which 960 are rounded: 35200, 19840 and 12160 bytes.
  EXPECT_EQ(chosen("auto", request_with_types(35200)), "");
  EXPECT_EQ(chosen("auto", request_with_types(35199)), "k=int8-hadamard");
  EXPECT_EQ(chosen("auto", request_with_types(19840)), "k=int8-hadamard");
  EXPECT_EQ(chosen("auto", request_with_types(19839)), "k=int4-hadamard");
  const KvAutoChoice of_share = choose_kv_policy(parse_kv_policy("auto"), request_with_types(12159));
  EXPECT_EQ(of_share.policy, "keydiff,merge,keep=0.9,floor=128,k=int4-hadamard");
  EXPECT_EQ(of_share.reason,
            "the KV cache has 12159 bytes beside other requests; every entry would take 35200, a share of 0.9 with "
            "k=int4-hadamard takes 11264");
  EXPECT_EQ(chosen("auto", request_with_types(0)), "kvzip,keep=0.5,floor=128,k=int4-hadamard");
}

TEST(KvAuto, WhatComesAfterEntriesWereRoundedLastStaysAsItIs) {
  KvAutoRequest of = request_with_types(20736);
  of.num_entries = 1128;  // rounded with 1096 tokens last: 960 of them
  EXPECT_EQ(chosen("auto", of), "k=int8-hadamard") << "168 of 32 bytes and 960 of 16";
  of.free_bytes = 20735;
  EXPECT_EQ(chosen("auto", of), "k=int4-hadamard");
}

TEST(KvAuto, WithABudgetTheRoomDoesNotMatter) {
  for (const char* policy : {"auto,keep=0.5", "auto(floor=0.9),keep=0.1", "auto,generated_tokens=10"}) {
    EXPECT_EQ(chosen(policy, request(0)), chosen(policy, request())) << policy;
  }
  EXPECT_EQ(chosen("auto,keep=1", request(0)), "");
  EXPECT_EQ(chosen("auto,tokens=1000", request(0)), "");
}

TEST(KvAuto, EveryEntryStaysWhereThereIsRoom) {
  const KvAutoChoice choice = choose_kv_policy(parse_kv_policy("auto"), request(1100));
  EXPECT_EQ(choice.policy, "");
  EXPECT_THAT(choice.reason, HasSubstr("room for every entry"));
}

TEST(KvAuto, TheLargestShareThatFitsIsChosen) {
  EXPECT_EQ(chosen("auto(floor=0.1)", request(1099)), "keydiff,merge,keep=0.9,floor=128")
      << "of the prompt, and the answer";
  EXPECT_EQ(chosen("auto(floor=0.1)", request(1000)), "keydiff,merge,keep=0.9,floor=128");
  EXPECT_EQ(chosen("auto(floor=0.1)", request(999)), "keydiff,merge,keep=0.7,floor=128");
  EXPECT_EQ(chosen("auto(floor=0.1)", request(600)), "kvzip,keep=0.5,floor=128");
  EXPECT_EQ(chosen("auto(floor=0.1)", request(599)), "kvzip,keep=0.3,floor=128");
  const KvAutoChoice choice = choose_kv_policy(parse_kv_policy("auto,every=50"), request(1000));
  EXPECT_EQ(choice.policy, "keydiff,merge,every=50,keep=0.9,floor=128");
  EXPECT_EQ(choice.reason,
            "the KV cache has 1000 bytes beside other requests; every entry would take 1100, a share of 0.9 takes 995")
      << "945 of the first 1050 tokens, and the last 50";
  KvAutoRequest of_two = request(1000);
  of_two.num_texts = 2;
  EXPECT_EQ(chosen("auto(floor=0.1)", of_two), "kvzip,keep=0.3,floor=128") << "two answers of 400";
}

TEST(KvAuto, NoShareBelowTheFloorIsChosen) {
  EXPECT_EQ(chosen("auto", request(0)), "kvzip,keep=0.5,floor=128");
  EXPECT_EQ(chosen("auto(floor=0.6)", request(0)), "keydiff,merge,keep=0.6,floor=128");
  EXPECT_EQ(chosen("auto(floor=0.6)", request(800)), "keydiff,merge,keep=0.7,floor=128");
  EXPECT_EQ(chosen("auto(floor=0.2)", request(0)), "kvzip,keep=0.2,floor=128");
  EXPECT_EQ(chosen("auto(floor=1)", request(0)), "");
  EXPECT_THAT(choose_kv_policy(parse_kv_policy("auto"), request(0)).reason, HasSubstr("and that is the floor"));
}

TEST(KvAuto, ModelsGetWhatIsPossible) {
  KvAutoRequest latents = request();
  latents.values_merge = false;
  EXPECT_EQ(chosen("auto,keep=0.6", latents), "keydiff,keep=0.6,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.1", latents), "kvzip,keep=0.1,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.1,every=8", latents), "keydiff,keep=0.1,every=8,floor=128");
  KvAutoRequest long_prompt = request();
  long_prompt.fits_twice = false;
  EXPECT_EQ(chosen("auto,keep=0.4", long_prompt), "keydiff,keep=0.4,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.3", long_prompt), "keydiff,adakv,merge,keep=0.3,floor=128");
  EXPECT_EQ(chosen("auto,keep=0.3,prefill_every=500", request()),
            "keydiff,adakv,merge,keep=0.3,prefill_every=500,floor=128")
      << "the whole prompt is never there to be read again";
  KvAutoRequest encoded = request(0);
  encoded.can_drop = false;
  const KvAutoChoice choice = choose_kv_policy(parse_kv_policy("auto"), encoded);
  EXPECT_EQ(choice.policy, "");
  EXPECT_THAT(choice.reason, HasSubstr("encoder"));
  EXPECT_THROW((void)chosen("auto,keep=0.5", encoded), Error);
}

TEST(KvAuto, WhatIsWrongIsNamed) {
  const auto error_of = [](const std::string& text) -> std::string {
    try {
      (void)parse_kv_policy(text);
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  };
  EXPECT_THAT(error_of("auto(floor=0)"), HasSubstr("auto: floor must be a number from 0.01 to 1, not '0'"));
  EXPECT_THAT(error_of("auto(keep=0.5)"), HasSubstr("auto has no argument keep; it has floor"));
  EXPECT_THAT(error_of("auto,snapkv"), HasSubstr("auto and snapkv cannot be combined"));
  EXPECT_THAT(error_of("auto,auto"), HasSubstr("cannot be combined"));
  for (const char* part :
       {"adakv", "merge", "global", "pyramidkv", "chunkkv", "criticalkv", "quest", "simlayerkv", "kivi"}) {
    EXPECT_THAT(error_of(std::string("auto,keep=0.5,") + part), HasSubstr("cannot be combined")) << part;
  }
  EXPECT_THAT(error_of("auto,keep=2"), HasSubstr("keep must be a number"));
}

}  // namespace
}  // namespace witan
