#include "text/regex.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "support/expect_error.h"

namespace witan {
namespace {

// Matches in brackets: "a[b]c".
std::string show(std::string_view pattern, std::string_view text) {
  const Regex regex(pattern, "test");
  RegexWorkspace workspace(text.size());
  std::string shown;
  size_t at = 0;
  regex.for_each_match(text, workspace, [&](size_t begin, size_t end) {
    shown.append(text.substr(at, begin - at)).append("[").append(text.substr(begin, end - begin)).append("]");
    at = end;
  });
  return shown.append(text.substr(at));
}

TEST(Regex, ReadsPatternsAsModelFilesMeanThem) {
  struct Case {
    const char* pattern;
    const char* text;
    const char* shown;
  };
  const Case cases[] = {
      {R"(\p{L}+)", "né 我7", "[né] [我]7"},
      {R"((?i:'s|'re))", "we'RE it'S", "we['RE] it['S]"},
      {R"(\s+(?!\S))", "a   b ", "a[  ] b[ ]"},
      {R"( ?[^\s]++x)", "a --x", "a --x"},
      {R"( ?[^\sx]++x)", "a --x", "a[ --x]"},
      {R"(\s+$)", "a  \nb ", "a[  ]\nb[ ]"},  // $ matches at line ends
      {R"(^\w)", "ab\ncd", "[a]b\n[c]d"},
      {R"(.+)", "ab\ncd", "[ab]\n[cd]"},
      {R"(\s)", "a\u00A0b\u3000\u180E", "a[\u00A0]b[\u3000]\u180E"},
      {R"([^\s\S]|[\S]+)", "a\tb", "[a]\t[b]"},
      {R"(\d)", "a7\u0663½", "a[7][\u0663]½"},
      {R"(\p{Han}+)", "我ー々", "[我]ー[々]"},  // the script, not its extensions
      {R"(\p{^Han}+)", "我ab", "我[ab]"},
      {R"([[:alpha:]&]+)", "a&b&&", "[a&b&&]"},
      {R"([]x]+)", "a]x", "a[]x]"},
      {R"(x*)", "axb", "[]a[x]b[]"},
      {R"((?=b))", "abb", "a[]b[]b"},
      {"", "é", "[]é[]"},
  };
  for (const Case& c : cases) EXPECT_EQ(show(c.pattern, c.text), c.shown) << c.pattern;
}

TEST(Regex, FindsMatchesFarApart) {
  const std::string gap(1000, 'a'), umlauts = [] {
    std::string s;
    for (int i = 0; i < 500; ++i) s += "ä";
    return s;
  }();
  EXPECT_EQ(show("x", gap + "x" + umlauts + "x"), gap + "[x]" + umlauts + "[x]");
  EXPECT_EQ(show("$", umlauts), umlauts + "[]");
}

TEST(Regex, RefusesWhatWouldBeReadDifferently) {
  for (const char* pattern :
       {R"([\p{L}&&[^\p{Han}]]+)", "[a[bc]]", "(*LIMIT_MATCH=9)a", "(?m:a)", "(?s)a", R"(\h)", R"(\Qa.b\E)"}) {
    test::expect_error(ErrorCode::kUnsupported, "place", [&] { Regex(pattern, "place"); });
  }
  for (const char* pattern : {"(", "[", "a{2,1}", R"(\p{Nonsense})", R"(\C)", "*"}) {
    test::expect_error(ErrorCode::kBadFile, "place", [&] { Regex(pattern, "place"); });
  }
  test::expect_error(ErrorCode::kUnsupported, "100000 bytes", [&] { Regex(std::string(100000, 'a'), "place"); });
}

TEST(Regex, HostilePatternsEndInAnError) {
  const std::string a(5000, 'a');
  for (const char* pattern : {"(a+)+[xy]", "(a|aa)+[xy]", "(a*)*[xy]", "(a|a)*[xy]", "(a+)*a*a*a*[xy]"}) {
    test::expect_error(ErrorCode::kInvalidArgument, "place", [&] {
      RegexWorkspace workspace(a.size());
      Regex(pattern, "place").for_each_match(a, workspace, [](size_t, size_t) {});
    });
  }
}

TEST(Regex, DeepBacktrackingOfAHarmlessPatternSucceeds) {
  const std::string text(500'000, 'a');
  EXPECT_EQ(show("(?:aa|a)+", text), "[" + text + "]");
}

TEST(Regex, ManyThreadsMatchWithOnePattern) {
  const Regex regex(R"(\p{L}+)", "test");
  std::vector<std::thread> threads;
  std::vector<int> counts(4);
  for (int& count : counts) {
    threads.emplace_back([&regex, &count] {
      for (int i = 0; i < 1000; ++i) {
        RegexWorkspace workspace(5);
        regex.for_each_match("a b c", workspace, [&](size_t, size_t) { ++count; });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : counts) EXPECT_EQ(count, 3000);
}

TEST(Regex, EscapedTextMatchesItself) {
  const std::string text = "a.*+?()[]{}|\\^$#-/ \n_7é\u2581";
  EXPECT_EQ(show(escape_regex(text), "x" + text + "y"), "x[" + text + "]y");
}

}  // namespace
}  // namespace witan
