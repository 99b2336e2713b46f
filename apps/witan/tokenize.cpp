#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>

#include "base/error.h"
#include "commands.h"
#include "engine/loaded_model.h"
#include "files.h"
#include "model_flags.h"

namespace witan {
namespace {

using nlohmann::json;

struct TokenizeFlags {
  std::string model_path;
  std::optional<std::string> text;
  std::optional<std::string> text_path;
  std::optional<std::string> jsonl_path;
  std::optional<std::string> ids_path;
  bool no_special = false;
  bool parse_special = false;
  bool ids_only = false;
};

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

void print_tokens(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool ids_only) {
  if (ids_only) {
    print_stdout("{}\n", fmt::join(ids, " "));
    return;
  }
  for (const TokenId id : ids) print_stdout("{:>8}  {}\n", id, dump(json(tokenizer.token_piece(id))));
}

// One {"text", "add_special", "parse_special"} a line, in; one {"ids", "text"} a line, out.
void tokenize_jsonl(const Tokenizer& tokenizer, const std::string& path) {
  std::istringstream lines(read_text_file(path));
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const json request = json::parse(line, nullptr, false);
    if (!request.is_object() || !request.contains("text") || !request["text"].is_string()) {
      fail(ErrorCode::kInvalidArgument, "{}: line {}: expected a JSON object with a string \"text\"", path, number);
    }
    const auto flag = [&](const char* name) {
      if (!request.contains(name)) return false;
      if (!request[name].is_boolean()) {
        fail(ErrorCode::kInvalidArgument, "{}: line {}: \"{}\" is not true or false", path, number, name);
      }
      return request[name].get<bool>();
    };
    const std::vector<TokenId> ids = tokenizer.encode(request["text"].get_ref<const std::string&>(),
                                                      flag("add_special") ? AddSpecial::kYes : AddSpecial::kNo,
                                                      flag("parse_special") ? ParseSpecial::kYes : ParseSpecial::kNo);
    const ShowSpecial show = flag("parse_special") ? ShowSpecial::kYes : ShowSpecial::kNo;
    print_stdout("{}\n", dump({{"ids", ids}, {"text", decode(tokenizer, ids, show)}}));
  }
}

void run_tokenize(const TokenizeFlags& flags) {
  const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(flags.model_path);
  const std::unique_ptr<Tokenizer> tokenizer = checkpoint->load_tokenizer();
  if (tokenizer == nullptr) fail(ErrorCode::kUnsupported, "{}: the model has no tokenizer", flags.model_path);
  if (flags.jsonl_path) {
    tokenize_jsonl(*tokenizer, *flags.jsonl_path);
  } else if (flags.ids_path) {
    const std::vector<TokenId> ids = read_token_file(*flags.ids_path);
    check_token_ids(ids, tokenizer->vocab_size());
    const std::string text = decode(*tokenizer, ids, flags.no_special ? ShowSpecial::kNo : ShowSpecial::kYes);
    write_stdout(text + "\n");
  } else {
    const std::string text = flags.text ? *flags.text : read_text_file(*flags.text_path);
    print_tokens(*tokenizer,
                 tokenizer->encode(text, flags.no_special ? AddSpecial::kNo : AddSpecial::kYes,
                                   flags.parse_special ? ParseSpecial::kYes : ParseSpecial::kNo),
                 flags.ids_only);
  }
}

}  // namespace

void add_tokenize_command(CLI::App& app) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* command = app.add_subcommand("tokenize", "Token ids and pieces of a text, and back");
  add_model_flag(*command, flags->model_path);
  const auto add_input = [&](const char* name, std::optional<std::string>& value, const char* type, const char* help) {
    return command->add_option(name, value, help)->type_name(type)->group("Input (one of these)");
  };
  const std::vector<CLI::Option*> inputs = {
      add_input("-p,--prompt", flags->text, "TEXT", "Text"),
      add_input("-f,--file", flags->text_path, "FILE", "File of text; -: standard input"),
      add_input("--ids", flags->ids_path, "FILE", "File of token ids separated by white space, to turn into text"),
      add_input("--jsonl", flags->jsonl_path, "FILE",
                "File of {\"text\", \"add_special\", \"parse_special\"} lines, where the latter two may be left out "
                "and are then false; writes {\"ids\", \"text\"} lines, text decoded again")};
  command->add_flag("--no-special", flags->no_special, "Do not add BOS or EOS; leave control tokens out of text");
  command->add_flag("--parse-special", flags->parse_special, "Text such as <|im_end|> becomes the control token");
  command->add_flag("--ids-only", flags->ids_only, "Print ids on one line, without pieces");
  command->callback([flags, inputs] {
    if (std::ranges::count_if(inputs, [](const CLI::Option* input) { return input->count() > 0; }) != 1) {
      throw CLI::RequiredError("Exactly one of --prompt, --file, --ids and --jsonl");
    }
    run_tokenize(*flags);
  });
}

}  // namespace witan
