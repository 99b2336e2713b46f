#include "text/jinja/value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "text/jinja/budget.h"
#include "text/jinja/interpreter.h"

namespace witan::jinja {
namespace {

constexpr size_t kLinearEntries = 8;  // a dict this small is faster to search than to hash
constexpr int kMaxJsonDepth = 64;

// A spelling that equal keys share; nullopt for what cannot be a key.
std::optional<std::string> canonical(const Value& key) {
  if (const StringObject* text = key.as_string()) return std::string("s").append(text->text);
  if (key.is_none()) return "n";
  if (key.is_integer()) return fmt::format("i{}", key.integer());
  if (const double* number = key.get_if<double>()) {
    if (std::abs(*number) < 0x1p53 && std::trunc(*number) == *number) {
      return fmt::format("i{}", static_cast<int64_t>(*number));
    }
    return fmt::format("f{}", *number);
  }
  return std::nullopt;
}

// Builds values while the JSON parser runs, so that keys keep their order.
class ValueBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit ValueBuilder(const std::string& source) : source_(source) {}

  Value result;

  bool null() override { return add(None{}); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(int64_t{value}); }
  bool number_unsigned(number_unsigned_t value) override {
    return value <= INT64_MAX ? add(static_cast<int64_t>(value)) : add(static_cast<double>(value));
  }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return add(value); }
  bool string(string_t& value) override { return add(Value::string(std::move(value))); }
  bool binary(binary_t& /*value*/) override { return false; }
  bool start_object(size_t /*size*/) override { return open(true); }
  bool start_array(size_t /*size*/) override { return open(false); }
  bool key(string_t& value) override {
    open_.back().keys.push_back(std::move(value));
    return true;
  }
  bool end_object() override {
    Container done = close();
    auto dict = std::make_shared<DictObject>();
    for (size_t i = 0; i < done.keys.size(); ++i) {
      dict->set(Value::string(std::move(done.keys[i])), std::move(done.values[i]));
    }
    return add(Value(std::move(dict)));
  }
  bool end_array() override { return add(Value::list(close().values)); }
  bool parse_error(size_t position, const std::string& /*last*/, const nlohmann::json::exception& /*error*/) override {
    fail(ErrorCode::kInvalidArgument, "{}: not valid JSON: error at byte {}", source_, position);
  }

 private:
  struct Container {
    bool is_object;
    std::vector<std::string> keys;
    std::vector<Value> values;
  };

  bool add(Value value) {
    if (open_.empty()) {
      result = std::move(value);
    } else {
      open_.back().values.push_back(std::move(value));
    }
    return true;
  }
  bool open(bool is_object) {
    if (std::ssize(open_) >= kMaxJsonDepth) {
      fail(ErrorCode::kInvalidArgument, "{}: JSON nested deeper than {} levels", source_, kMaxJsonDepth);
    }
    open_.push_back({is_object, {}, {}});
    return true;
  }
  Container close() {
    Container done = std::move(open_.back());
    open_.pop_back();
    return done;
  }

  const std::string& source_;
  std::vector<Container> open_;
};

}  // namespace

StringObject::~StringObject() {
  if (budget != nullptr) budget->release(held_bytes(*this));
}
SequenceObject::~SequenceObject() {
  if (budget != nullptr) budget->release(held_bytes(*this));
}
DictObject::~DictObject() {
  if (budget != nullptr) budget->release(held_bytes(*this));
}

const Value* DictObject::find(std::string_view key) const {
  if (index_.empty()) {
    for (const auto& [name, value] : entries_) {
      const StringObject* text = name.as_string();
      if (text != nullptr && text->text == key) return &value;
    }
    return nullptr;
  }
  const auto found = index_.find(std::string("s").append(key));
  return found == index_.end() ? nullptr : &entries_[found->second].second;
}

const Value* DictObject::find(const Value& key) const {
  if (const StringObject* text = key.as_string()) return find(text->text);
  const std::optional<std::string> name = canonical(key);
  if (!name) return nullptr;
  if (!index_.empty()) {
    const auto found = index_.find(*name);
    return found == index_.end() ? nullptr : &entries_[found->second].second;
  }
  for (const auto& [other, value] : entries_) {
    if (canonical(other) == name) return &value;
  }
  return nullptr;
}

bool DictObject::set(const Value& key, Value value) {
  std::optional<std::string> name = canonical(key);
  if (!name) return false;
  depth = std::max(depth, 1 + value.depth());
  if (const Value* there = find(key)) {
    const_cast<Value&>(*there) = std::move(value);  // this dict is not const
    return true;
  }
  entries_.emplace_back(key, std::move(value));
  if (index_.empty() && entries_.size() > kLinearEntries) {
    for (size_t i = 0; i < entries_.size(); ++i) index_.emplace(*canonical(entries_[i].first), i);
  } else if (!index_.empty()) {
    index_.emplace(std::move(*name), entries_.size() - 1);
  }
  return true;
}

Value Value::string(std::string text) {
  auto object = std::make_shared<StringObject>();
  object->text = std::move(text);
  return Value(Data(std::move(object)));
}

Value Value::list(std::vector<Value> items) {
  auto object = std::make_shared<SequenceObject>();
  for (const Value& item : items) object->depth = std::max(object->depth, 1 + item.depth());
  object->items = std::move(items);
  return Value(Data(std::move(object)));
}

Value Value::dict(const std::vector<std::pair<std::string, Value>>& entries) {
  auto object = std::make_shared<DictObject>();
  for (const auto& [key, value] : entries) object->set(Value::string(key), value);
  return Value(Data(std::move(object)));
}

const StringObject* Value::as_string() const {
  const auto* object = get_if<std::shared_ptr<StringObject>>();
  return object == nullptr ? nullptr : object->get();
}
SequenceObject* Value::as_sequence() const {
  const auto* object = get_if<std::shared_ptr<SequenceObject>>();
  return object == nullptr ? nullptr : object->get();
}
DictObject* Value::as_dict() const {
  const auto* object = get_if<std::shared_ptr<DictObject>>();
  return object == nullptr ? nullptr : object->get();
}

int64_t Value::integer() const {
  if (const bool* flag = get_if<bool>()) return *flag ? 1 : 0;
  return *get_if<int64_t>();
}
double Value::number() const {
  if (const double* number = get_if<double>()) return *number;
  return static_cast<double>(integer());
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_integer()) return integer() != 0;
  if (const double* number = get_if<double>()) return *number != 0.0;
  if (const StringObject* text = as_string()) return !text->text.empty();
  if (const DictObject* dict = as_dict()) return !dict->entries().empty();
  if (const SequenceObject* sequence = as_sequence()) {
    return sequence->kind == SequenceKind::kGenerator || !sequence->items.empty();
  }
  return true;
}

int Value::depth() const {
  if (const DictObject* dict = as_dict()) return dict->depth;
  if (const SequenceObject* sequence = as_sequence()) return sequence->depth;
  return 0;
}

std::string_view Value::type_name() const {
  constexpr std::string_view kSequences[] = {"list",       "tuple", "dict_keys", "dict_values",
                                             "dict_items", "range", "generator"};
  constexpr std::string_view kNames[] = {"Undefined", "NoneType", "bool",      "int",      "float", "str",
                                         "list",      "dict",     "Namespace", "function", "Macro", "LoopContext"};
  if (const SequenceObject* sequence = as_sequence()) return kSequences[static_cast<size_t>(sequence->kind)];
  return kNames[data_.index()];
}

Value parse_json(std::string_view text, const std::string& source) {
  ValueBuilder builder(source);
  try {
    nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  } catch (const nlohmann::json::exception&) {
    fail(ErrorCode::kInvalidArgument, "{}: not valid JSON", source);
  }
  return std::move(builder.result);
}

}  // namespace witan::jinja
