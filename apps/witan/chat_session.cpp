#include "chat_session.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "answer_reader.h"
#include "base/error.h"
#include "engine/prompt_text.h"
#include "generation.h"
#include "text/chat_template.h"

namespace witan {
namespace {

using jinja::Value;
using nlohmann::ordered_json;

// The key under which templates look for the reasoning of earlier answers.
const char* reasoning_key(ReasoningFormat format) {
  return format == ReasoningFormat::kHarmony ? "thinking" : "reasoning_content";
}

std::string text_at(const jinja::DictObject& message, const char* key) {
  const Value* value = message.find(std::string_view(key));
  return value != nullptr && value->is_string() ? value->as_string()->text : std::string();
}

}  // namespace

ChatSession::ChatSession(Engine& engine, const ChatTemplate& chat_template, const GenerationFlags& generation,
                         Value extra)
    : engine_(engine),
      template_(chat_template),
      generation_(generation),
      extra_(std::move(extra)),
      format_(AnswerSplitter::format_of(chat_template.source())) {
  if (engine.tokenizer() == nullptr) {
    fail(ErrorCode::kUnsupported, "{}: the model has no tokenizer; it takes token ids only",
         engine.checkpoint().path());
  }
}

void ChatSession::clear() {
  const bool has_system = !messages_.empty() && messages_.front().role == "system";
  messages_.erase(messages_.begin() + (has_system ? 1 : 0), messages_.end());
}

void ChatSession::set_system(const std::string& text) {
  if (!messages_.empty() && messages_.front().role == "system") messages_.erase(messages_.begin());
  if (!text.empty()) messages_.insert(messages_.begin(), {"system", text, ""});
}

std::string ChatSession::to_json() const {
  ordered_json list = ordered_json::array();
  for (const ChatMessage& message : messages_) {
    ordered_json item = {{"role", message.role}, {"content", message.content}};
    if (!message.reasoning.empty()) item[reasoning_key(format_)] = message.reasoning;
    list.push_back(std::move(item));
  }
  return ordered_json{{"messages", std::move(list)}}.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

void ChatSession::load_json(std::string_view json, const std::string& source) {
  const ChatInput input = parse_chat_input(json, source);
  std::vector<ChatMessage> messages;
  for (const Value& item : input.messages.as_sequence()->items) {
    const jinja::DictObject& message = *item.as_dict();
    ChatMessage& added = messages.emplace_back();
    for (auto [key, text] : {std::pair("role", &added.role), std::pair("content", &added.content)}) {
      const Value* value = message.find(std::string_view(key));
      if (value == nullptr || !value->is_string()) {
        fail(ErrorCode::kInvalidArgument, "{}: messages[{}]: expected a string \"{}\"", source, messages.size() - 1,
             key);
      }
      *text = value->as_string()->text;
    }
    added.reasoning = text_at(message, "reasoning_content");
    if (added.reasoning.empty()) added.reasoning = text_at(message, "thinking");
  }
  messages_ = std::move(messages);
}

std::string ChatSession::render() const {
  std::vector<Value> list;
  for (const ChatMessage& message : messages_) {
    std::vector<std::pair<std::string, Value>> entries = {{"role", Value::string(message.role)},
                                                          {"content", Value::string(message.content)}};
    if (!message.reasoning.empty()) entries.emplace_back(reasoning_key(format_), Value::string(message.reasoning));
    list.push_back(Value::dict(entries));
  }
  ChatInput input;
  input.messages = Value::list(std::move(list));
  input.extra = extra_;
  return template_.render(input);
}

// Where the prompt goes on from the last one and its answer, those keep the tokens they have, as long as a control
// token separates them from the rest: then encoding the rest alone is the same as encoding it behind them.
std::vector<TokenId> ChatSession::tokens_of(const std::string& prompt) const {
  const Tokenizer& tokenizer = *engine_.tokenizer();
  if (known_text_.empty() || !prompt.starts_with(known_text_)) return encode_prompt(tokenizer, prompt);
  const auto is_control = [&](TokenId token) { return tokenizer.token_kind(token) == TokenKind::kControl; };
  const TokenId last = known_tokens_.back();
  const bool ended = is_control(last);
  const std::string rest = (ended ? tokenizer.token_piece(last) : std::string()) + prompt.substr(known_text_.size());
  const std::vector<TokenId> more = tokenizer.encode(rest, AddSpecial::kNo, ParseSpecial::kYes);
  if (more.empty() || !is_control(more.front())) return encode_prompt(tokenizer, prompt);
  std::vector<TokenId> tokens = known_tokens_;
  tokens.insert(tokens.end(), more.begin() + (ended ? 1 : 0), more.end());
  return tokens;
}

GenerationRequest ChatSession::request_for(std::vector<TokenId> prompt) const {
  const int32_t context = engine_.options().context_length;
  if (std::ssize(prompt) >= context) {
    fail(ErrorCode::kInvalidArgument,
         "the conversation has {} tokens with this message, the context {}: the message is not sent, and nothing is "
         "lost; /clear begins anew, /save FILE keeps the conversation, --context N makes room for more",
         prompt.size(), context);
  }
  GenerationRequest request = generation_.finished(std::move(prompt));
  if (generation_.kv_pin_system) pin_system(request);
  return request;
}

void ChatSession::pin_system(GenerationRequest& request) const {
  if (messages_.empty() || messages_.front().role != "system") return;
  std::string_view text = messages_.front().content;  // templates may drop the space around it
  constexpr std::string_view kSpace = " \t\r\n";
  text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
  text = text.substr(0, text.find_last_not_of(kSpace) + 1);
  if (text.empty()) return;
  const std::vector<KvSpan> spans = PromptText(*engine_.tokenizer(), request.prompt).find(text);
  if (spans.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--kv-pin-system: the system message is not in the prompt as it was given: the template makes another text of "
         "it");
  }
  // It may be a part of the template's own text too: which is which, the text does not say.
  request.kv_pinned.insert(request.kv_pinned.end(), spans.begin(), spans.end());
}

ChatSession::Answer ChatSession::ask(const std::string& text, FunctionRef<void(const AnswerPiece&)> on_piece) {
  const std::vector<ChatMessage> before = messages_;
  messages_.push_back({"user", text, ""});
  try {
    const std::string prompt = render();
    GenerationRequest request = request_for(tokens_of(prompt));
    std::vector<TokenId> tokens = request.prompt;
    const Tokenizer& tokenizer = *engine_.tokenizer();
    Detokenizer raw(tokenizer, ShowSpecial::kYes, DecodeFrom::kContinuation);
    AnswerReader reader(tokenizer, format_, prompt, !request.stop_strings.empty());
    std::string raw_text;
    ChatMessage answer{"assistant", "", ""};
    Answer result;
    std::string error;
    const auto on_output = [&](const GenerationOutput& output) {
      if (output.token) {
        tokens.push_back(output.token->token);
        raw_text += raw.push(output.token->token);
      }
      for (const AnswerPiece& piece : reader.push(output)) {
        (piece.part == AnswerPart::kReasoning ? answer.reasoning : answer.content) += piece.text;
        on_piece(piece);
      }
      if (!output.finish) return;
      result.finish = *output.finish;
      result.usage = output.usage;
      error = output.error;
    };
    const RequestId id = engine_.submit(request, on_output);
    run_to_end(engine_, {id}, [] {});
    if (result.finish == FinishReason::kError) fail(ErrorCode::kInvalidArgument, "{}", error);
    result.context_full =
        result.finish == FinishReason::kLength && std::ssize(tokens) >= engine_.options().context_length;
    known_text_ = prompt + raw_text;
    known_tokens_ = std::move(tokens);
    messages_.push_back(std::move(answer));
    return result;
  } catch (...) {
    messages_ = before;
    throw;
  }
}

}  // namespace witan
