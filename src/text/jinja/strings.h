#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace witan::jinja {

// Python's str, over valid UTF-8: characters are code points.

size_t num_characters(std::string_view text);
// Where each character begins, and the end.
std::vector<size_t> character_starts(std::string_view text);

std::string html_escaped(std::string_view text);

std::string upper_case(std::string_view text);
std::string lower_case(std::string_view text);
std::string capitalized(std::string_view text);    // "hello World" -> "Hello world"
std::string title_case(std::string_view text);     // str.title(): a capital behind everything that is no letter
std::string filter_title(std::string_view text);   // Jinja's title: a capital behind space and opening brackets
bool is_cased(std::string_view text, bool upper);  // has letters with case, and all of them are of this one

enum class Side : uint8_t { kLeft, kRight, kBoth };
// Without the characters of `set` at its ends; white space where `set` is nullptr.
std::string_view stripped(std::string_view text, const std::string_view* set, Side side);

// At runs of white space, without empty parts; at most max_splits cuts where that is not negative.
std::vector<std::string> split_at_space(std::string_view text, int64_t max_splits);
std::vector<std::string> split(std::string_view text, std::string_view separator, int64_t max_splits);
std::vector<std::string> split_from_end(std::string_view text, std::string_view separator, int64_t max_splits);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

// The first `count` occurrences, all where that is negative. An empty `from` matches between all characters.
std::string replaced(std::string_view text, std::string_view from, std::string_view to, int64_t count);
// An upper limit of that result's size; SIZE_MAX where it has no size.
size_t replaced_bytes(std::string_view text, std::string_view from, std::string_view to);

}  // namespace witan::jinja
