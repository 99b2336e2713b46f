#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "base/error.h"
#include "commands.h"
#include "engine/loaded_model.h"
#include "model_flags.h"

namespace witan {
namespace {

using nlohmann::json;

struct TokenizeFlags {
  std::string model_path;
  std::string text;
  std::string text_path;
  std::string jsonl_path;
  std::string ids_path;
  bool no_special = false;
  bool parse_special = false;
  bool ids_only = false;
};

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

void print_tokens(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool ids_only) {
  if (ids_only) {
    fmt::print("{}\n", fmt::join(ids, " "));
    return;
  }
  for (const TokenId id : ids) fmt::print("{:>8}  {}\n", id, dump(json(tokenizer.token_piece(id))));
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
    fmt::print("{}\n", dump({{"ids", ids}, {"text", decode(tokenizer, ids, show)}}));
  }
}

void run_tokenize(const TokenizeFlags& flags) {
  const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(flags.model_path);
  const std::unique_ptr<Tokenizer> tokenizer = checkpoint->load_tokenizer();
  if (tokenizer == nullptr) fail(ErrorCode::kUnsupported, "{}: the model has no tokenizer", flags.model_path);
  if (!flags.jsonl_path.empty()) {
    tokenize_jsonl(*tokenizer, flags.jsonl_path);
  } else if (!flags.ids_path.empty()) {
    const std::vector<TokenId> ids = read_token_file(flags.ids_path);
    check_token_ids(ids, tokenizer->vocab_size());
    const std::string text = decode(*tokenizer, ids, flags.no_special ? ShowSpecial::kNo : ShowSpecial::kYes);
    std::cout << text << '\n';
  } else {
    const std::string text = flags.text_path.empty() ? flags.text : read_text_file(flags.text_path);
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
  CLI::Option_group* input = command->add_option_group("Input", "One of");
  input->add_option("-p,--prompt", flags->text, "Text");
  input->add_option("-f,--file", flags->text_path, "File of text; -: standard input");
  input->add_option("--ids", flags->ids_path, "File of token ids separated by white space, to turn into text");
  input->add_option("--jsonl", flags->jsonl_path,
                    "File of {\"text\", \"add_special\", \"parse_special\"} lines (flags default to\n"
                    "false); writes {\"ids\", \"text\"} lines, text decoded again");
  input->require_option(1);
  command->add_flag("--no-special", flags->no_special, "Do not add BOS or EOS; leave control tokens out of text");
  command->add_flag("--parse-special", flags->parse_special, "Text such as <|im_end|> becomes the control token");
  command->add_flag("--ids-only", flags->ids_only, "Print ids on one line, without pieces");
  command->callback([flags] { run_tokenize(*flags); });
}

}  // namespace witan
