#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"
#include "engine/engine.h"
#include "sampling_flags.h"
#include "text/answer_splitter.h"

namespace witan {

struct ChatMessage {
  std::string role;
  std::string content;
  std::string reasoning;  // of an assistant's message
};

// A conversation with a model. Every turn renders the whole conversation anew; what the KV cache still holds of its
// beginning is not computed again.
class ChatSession {
 public:
  // `generation` has the model's defaults in it. The references have to outlive the session. Throws
  // Error(kUnsupported) when the model has no tokenizer.
  ChatSession(Engine& engine, const ChatTemplate& chat_template, const GenerationFlags& generation, jinja::Value extra);

  const std::vector<ChatMessage>& messages() const { return messages_; }

  // Forgets all but the system message.
  void clear();
  // Replaces the system message; an empty one removes it.
  void set_system(const std::string& text);
  // The conversation as a JSON object that render and load read.
  std::string to_json() const;
  // Replaces the conversation. Throws Error(kInvalidArgument), naming `source`, and changes nothing then.
  void load_json(std::string_view json, const std::string& source);

  struct Answer {
    FinishReason finish = FinishReason::kStop;
    bool context_full = false;  // kLength, because the context ended
    GenerationUsage usage;
  };
  // Asks, and adds question and answer to the conversation; the answer's pieces go to on_piece as they come. An answer
  // that Ctrl-C ends stays as far as it came. When this throws, the conversation is as before:
  // Error(kInvalidArgument) from the template, or when the conversation does not fit the context.
  Answer ask(const std::string& text, FunctionRef<void(const AnswerPiece&)> on_piece);

 private:
  std::string render() const;
  std::vector<TokenId> tokens_of(const std::string& prompt) const;
  GenerationRequest request_for(std::vector<TokenId> prompt) const;
  void pin_system(GenerationRequest& request) const;

  Engine& engine_;
  const ChatTemplate& template_;
  const GenerationFlags& generation_;
  jinja::Value extra_;
  ReasoningFormat format_;
  std::vector<ChatMessage> messages_;
  // The last prompt and what the model added, as text and as tokens: encoding that text again could cut it otherwise.
  std::string known_text_;
  std::vector<TokenId> known_tokens_;
};

}  // namespace witan
