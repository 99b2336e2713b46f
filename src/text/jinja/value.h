#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace witan::jinja {

class Value;
class Budget;
class Interpreter;
struct Macro;

enum class Escaped : uint8_t { kNo, kYes };  // kYes: what Jinja calls Markup, the result of `safe` and `escape`

// Where a sequence comes from. They differ in how they print, whether they have a length and can be indexed, and in
// their truth: Python's generators are always true.
enum class SequenceKind : uint8_t { kList, kTuple, kKeys, kValues, kItems, kRange, kGenerator };

// The parts of a value that live on the heap. Immutable once shared, except for a generator's position. `budget` is
// told their bytes and is nullptr for those that were made outside of a rendering.
struct StringObject {
  std::string text;  // valid UTF-8
  Escaped escaped = Escaped::kNo;
  Budget* budget = nullptr;
  ~StringObject();
};

struct SequenceObject {
  std::vector<Value> items;
  SequenceKind kind = SequenceKind::kList;
  int depth = 1;         // of nesting, this one included
  size_t num_taken = 0;  // of a generator: items that were taken from it
  Budget* budget = nullptr;
  ~SequenceObject();
};

class DictObject {
 public:
  using Entry = std::pair<Value, Value>;

  DictObject() = default;
  DictObject(DictObject&&) = default;
  DictObject& operator=(DictObject&&) = delete;

  // nullptr where the key is absent. A key that cannot be one (a list) is absent.
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
  // Adds or replaces; an entry keeps its place. False when `key` cannot be one.
  bool set(const Value& key, Value value);

  const std::vector<Entry>& entries() const { return entries_; }

  int depth = 1;
  Budget* budget = nullptr;
  ~DictObject();

 private:
  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;  // by the key's canonical spelling, once there are many
};

// Mutable, and owned by the rendering that made it: what it holds may refer to itself.
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;
};

// Something that can be called: a global function, a method bound to its value.
struct Callable {
  std::string name;
  std::function<Value(Interpreter&, const Arguments&)> call;
};

// The `loop` of a for statement.
struct Loop {
  std::shared_ptr<SequenceObject> items;
  size_t index = 0;
  std::optional<std::string> changed;  // how what loop.changed() was called with last prints
};

struct Undefined {
  std::shared_ptr<const std::string> hint;  // "'x' is undefined"
  friend bool operator==(const Undefined&, const Undefined&) = default;
};
struct None {
  friend bool operator==(const None&, const None&) = default;
};

// A value in a template, with Python's types.
class Value {
 public:
  using Data = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<StringObject>,
                            std::shared_ptr<SequenceObject>, std::shared_ptr<DictObject>, Namespace*,
                            std::shared_ptr<Callable>, std::shared_ptr<Macro>, std::shared_ptr<Loop>>;

  Value() = default;  // undefined
  Value(None none) : data_(none) {}
  Value(bool value) : data_(value) {}
  Value(int value) : data_(int64_t{value}) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  explicit Value(Data data) : data_(std::move(data)) {}

  // Made outside of a rendering, and not counted by any: what a caller passes in.
  static Value string(std::string text);
  static Value list(std::vector<Value> items);
  static Value dict(const std::vector<std::pair<std::string, Value>>& entries);

  const Data& data() const { return data_; }
  template <typename T>
  const T* get_if() const {
    return std::get_if<T>(&data_);
  }

  bool is_undefined() const { return get_if<Undefined>() != nullptr; }
  bool is_none() const { return get_if<None>() != nullptr; }
  bool is_bool() const { return get_if<bool>() != nullptr; }
  bool is_string() const { return as_string() != nullptr; }
  // nullptr where the value is of another type.
  const StringObject* as_string() const;
  SequenceObject* as_sequence() const;
  DictObject* as_dict() const;
  // Numbers as Python sees them: a bool is an integer too.
  bool is_integer() const { return is_bool() || get_if<int64_t>() != nullptr; }
  bool is_number() const { return is_integer() || get_if<double>() != nullptr; }
  int64_t integer() const;  // is_integer()
  double number() const;    // is_number()

  bool truth() const;
  int depth() const;  // of nested sequences and dicts
  std::string_view type_name() const;

 private:
  Data data_;
};

// What a budget is told that an object holds: an estimate, and the same from making it to its end.
inline size_t held_bytes(const StringObject& object) { return 64 + object.text.size(); }
inline size_t held_bytes(const SequenceObject& object) { return 96 + object.items.size() * sizeof(Value); }
inline size_t held_bytes(const DictObject& object) { return 160 + object.entries().size() * 160; }

// A JSON text as a value; keys keep their order, null becomes None. Throws Error(kInvalidArgument), naming `source`,
// for what is no JSON or nests too deeply.
Value parse_json(std::string_view text, const std::string& source);

}  // namespace witan::jinja
