#include "text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "text/unicode.h"

namespace witan {

namespace {

// The largest lists in use (thousands of placeholders) hold about 100 kB; the automaton needs some 50 bytes for each.
constexpr size_t kMaxContentBytes = 1024 * 1024;

size_t index_of(ParseSpecial parse) { return parse == ParseSpecial::kYes ? 1 : 0; }

uint64_t edge_key(int32_t node, uint8_t byte) { return static_cast<uint64_t>(node) << 8 | byte; }

size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  // No character is longer than four bytes; a text of continuation bytes alone must not make this a long walk.
  while (at > 0 && text.size() - at < 4 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool is_word_at(std::string_view text, size_t at) {
  const Utf8Char c = next_utf8(text, at);
  return c.status == Utf8Status::kValid && is_word_character(c.code_point);
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  return (begin > 0 && is_word_at(text, last_character(text.substr(0, begin)))) ||
         (end < text.size() && is_word_at(text, end));
}

bool is_whitespace_at(std::string_view text, size_t at) {
  const Utf8Char c = next_utf8(text, at);
  return c.status == Utf8Status::kValid && is_whitespace(c.code_point);
}

size_t skip_whitespace_back(std::string_view text, size_t floor, size_t begin) {
  while (begin > floor) {
    const size_t at = last_character(text.substr(0, begin));
    if (at < floor || !is_whitespace_at(text, at)) break;
    begin = at;
  }
  return begin;
}

size_t skip_whitespace(std::string_view text, size_t end) {
  while (end < text.size() && is_whitespace_at(text, end)) end += next_utf8(text, end).size;
  return end;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const std::string& source) : tokens_(std::move(tokens)) {
  size_t num_bytes = 0;
  for (const AddedToken& token : tokens_) num_bytes += token.content.size();
  if (num_bytes > kMaxContentBytes) {
    fail(ErrorCode::kUnsupported, "{}: the added tokens hold {} bytes of text, the limit is {}", source, num_bytes,
         kMaxContentBytes);
  }
  nodes_.emplace_back();
  std::vector<std::vector<uint64_t>> edges_by_depth;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    int32_t node = 0;
    for (size_t depth = 0; depth < token.content.size(); ++depth) {
      const auto byte = static_cast<uint8_t>(token.content[token.content.size() - 1 - depth]);
      const auto next = static_cast<int32_t>(nodes_.size());
      if (edges_.insert(edge_key(node, byte), static_cast<uint64_t>(next))) {
        nodes_.emplace_back();
        if (edges_by_depth.size() <= depth) edges_by_depth.resize(depth + 1);
        edges_by_depth[depth].push_back(edge_key(node, byte));
      }
      node = static_cast<int32_t>(*edges_.find(edge_key(node, byte)));
    }
    nodes_[node].longest[index_of(ParseSpecial::kYes)] = static_cast<int32_t>(i);
    if (token.needs == ParseSpecial::kNo) nodes_[node].longest[index_of(ParseSpecial::kNo)] = static_cast<int32_t>(i);
  }
  link(edges_by_depth);
}

// Suffix links, breadth first: the longest proper suffix of a node's string that is a node too.
void AddedTokens::link(const std::vector<std::vector<uint64_t>>& edges_by_depth) {
  for (size_t depth = 0; depth < edges_by_depth.size(); ++depth) {
    for (const uint64_t edge : edges_by_depth[depth]) {
      const auto parent = static_cast<int32_t>(edge >> 8);
      const auto byte = static_cast<uint8_t>(edge & 0xFF);
      Node& node = nodes_[static_cast<int32_t>(*edges_.find(edge))];
      if (depth == 0) {
        root_children_[byte] = static_cast<int32_t>(*edges_.find(edge));
      } else {
        node.suffix_link = child(nodes_[parent].suffix_link, byte);
      }
      for (size_t parse = 0; parse < 2; ++parse) {
        if (node.longest[parse] < 0) node.longest[parse] = nodes_[node.suffix_link].longest[parse];
      }
    }
  }
}

// The automaton's next state.
int32_t AddedTokens::child(int32_t node, uint8_t byte) const {
  while (node != 0) {
    if (const uint64_t* next = edges_.find(edge_key(node, byte))) return static_cast<int32_t>(*next);
    node = nodes_[node].suffix_link;
  }
  return root_children_[byte];
}

// Every place where a token begins, with the longest one there, from the last to the first.
std::vector<AddedTokens::Match> AddedTokens::longest_matches(std::string_view text, ParseSpecial parse_special) const {
  std::vector<Match> matches;
  int32_t node = 0;
  for (size_t at = text.size(); at-- > 0;) {
    node = child(node, static_cast<uint8_t>(text[at]));
    const int32_t token = nodes_[node].longest[index_of(parse_special)];
    if (token >= 0) matches.push_back({at, token});
  }
  return matches;
}

void AddedTokens::split(std::string_view text, ParseSpecial parse_special,
                        FunctionRef<void(const Fragment&)> on_fragment) const {
  size_t at = 0;       // what lies before is done
  size_t blocked = 0;  // no token may begin before this: it would lie in one that was refused
  if (!tokens_.empty()) {
    const std::vector<Match> matches = longest_matches(text, parse_special);
    for (auto match = matches.rbegin(); match != matches.rend(); ++match) {
      if (match->begin < std::max(at, blocked)) continue;
      const AddedToken& token = tokens_[match->token];
      size_t begin = match->begin;
      size_t end = begin + token.content.size();
      if (token.in_word == MatchInWord::kRefused && touches_word(text, begin, end)) {
        blocked = end;
        continue;
      }
      if (token.left == SpaceAround::kTaken) begin = skip_whitespace_back(text, at, begin);
      if (token.right == SpaceAround::kTaken) end = skip_whitespace(text, end);
      if (begin > at) on_fragment({text.substr(at, begin - at), nullptr});
      on_fragment({text.substr(begin, end - begin), &token});
      at = end;
    }
  }
  if (at < text.size()) on_fragment({text.substr(at), nullptr});
}

}  // namespace witan
