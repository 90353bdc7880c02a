#include "json.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <utility>

#include "livereel/error.h"

namespace livereel {
namespace {

constexpr std::size_t kShown = 60;  // characters of a name that a message repeats

[[noreturn]] void refuse(std::string_view name, const std::string& wanted) {
  throw Error(Status::kPackage, std::string(name.substr(0, kShown)) + " must be " + wanted);
}

void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  const auto rest = [&](int shift) { put(0x80U | ((code >> shift) & 0x3FU)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0U | (code >> 6));
    rest(0);
  } else if (code < 0x10000) {
    put(0xE0U | (code >> 12));
    rest(6);
    rest(0);
  } else {
    put(0xF0U | (code >> 18));
    rest(12);
    rest(6);
    rest(0);
  }
}

}  // namespace

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json document() {
    Json json = value(0);
    skip();
    if (at_ != text_.size()) fail("nothing more was wanted");
    return json;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw Error(Status::kPackage,
                "not JSON, or damaged: " + std::string(what) + " at byte " + std::to_string(at_));
  }

  void skip() { at_ = std::min(text_.size(), text_.find_first_not_of(" \t\r\n", at_)); }

  bool take(std::string_view token) {
    skip();
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }

  void want(std::string_view token, const char* what) {
    if (!take(token)) fail(what);
  }

  Json value(int depth) {
    if (depth > Json::kMaxDepth) fail("too many levels");
    if (++values_ > Json::kMaxValues) fail("too many values");
    Json json;
    if (take("{")) {
      json.value_ = object(depth);
    } else if (take("[")) {
      json.value_ = array(depth);
    } else if (take("\"")) {
      json.value_ = string();
    } else if (take("true")) {
      json.value_ = true;
    } else if (take("false")) {
      json.value_ = false;
    } else if (!take("null")) {
      number(json);
    }
    return json;
  }

  Json::Object object(int depth) {
    Json::Object members;
    if (take("}")) return members;
    do {
      want("\"", "a key was wanted");
      std::string key = string();
      want(":", "a colon was wanted");
      if (!members.emplace(std::move(key), value(depth + 1)).second) fail("a key stands twice");
    } while (take(","));
    want("}", "a comma or a brace was wanted");
    return members;
  }

  Json::Array array(int depth) {
    Json::Array items;
    if (take("]")) return items;
    do {
      items.push_back(value(depth + 1));
    } while (take(","));
    want("]", "a comma or a bracket was wanted");
    return items;
  }

  // The rest of a string behind its first quote.
  std::string string() {
    std::string out;
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character stands in a string");
      if (c == '\\') {
        escape(out);
      } else {
        out.push_back(c);
      }
    }
    fail("a string does not end");
  }

  void escape(std::string& out) {
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (at_ == text_.size()) fail("a string does not end");
    const char c = text_[at_++];
    if (c == 'u') {
      append_utf8(out, code_point());
      return;
    }
    const std::size_t i = kNames.find(c);
    if (i == std::string_view::npos) fail("an unknown escape stands in a string");
    out.push_back(kMeanings[i]);
  }

  std::uint32_t code_point() {
    const std::uint32_t high = hex4();
    if (high < 0xD800 || high > 0xDFFF) return high;
    if (high > 0xDBFF || text_.substr(at_, 2) != "\\u") fail("half a surrogate pair");
    at_ += 2;
    const std::uint32_t low = hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }

  std::uint32_t hex4() {
    std::uint32_t code = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const char* const end = digits.data() + digits.size();
    if (digits.size() < 4 || std::from_chars(digits.data(), end, code, 16).ptr != end) {
      fail("four hexadecimal digits were wanted");
    }
    at_ += 4;
    return code;
  }

  void number(Json& json) {
    const std::size_t length =
        std::min(text_.size(), text_.find_first_not_of("+-.0123456789eE", at_)) - at_;
    const std::string_view token = text_.substr(at_, length);
    const char* const end = token.data() + token.size();
    const std::size_t digits = token.starts_with('-') ? 1 : 0;
    const bool padded = token.size() > digits + 1 && token[digits] == '0' &&
                        token[digits + 1] >= '0' && token[digits + 1] <= '9';
    std::int64_t whole = 0;
    double real = 0;
    if (padded) fail("a number begins with zero");
    if (const auto read = std::from_chars(token.data(), end, whole);
        read.ptr == end && read.ec == std::errc()) {
      json.value_ = whole;
    } else if (const auto wide = std::from_chars(token.data(), end, real);
               wide.ptr == end && wide.ec == std::errc()) {
      json.value_ = real;
    } else {
      fail("a value was wanted");
    }
    at_ += length;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::size_t values_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

bool Json::truth(std::string_view name) const {
  if (const auto* held = std::get_if<bool>(&value_)) return *held;
  refuse(name, "true or false");
}

const std::string& Json::text(std::string_view name) const {
  if (const auto* held = std::get_if<std::string>(&value_)) return *held;
  refuse(name, "text");
}

double Json::number(std::string_view name) const {
  if (const auto* held = std::get_if<std::int64_t>(&value_)) return static_cast<double>(*held);
  if (const auto* held = std::get_if<double>(&value_)) return *held;
  refuse(name, "a number");
}

std::int64_t Json::whole(std::string_view name, std::int64_t low, std::int64_t high) const {
  const auto* held = std::get_if<std::int64_t>(&value_);
  if (held != nullptr && *held >= low && *held <= high) return *held;
  refuse(name, "a whole number from " + std::to_string(low) + " to " + std::to_string(high));
}

const Json::Array& Json::array(std::string_view name) const {
  if (const auto* held = std::get_if<Array>(&value_)) return *held;
  refuse(name, "a list");
}

const Json::Object& Json::object(std::string_view name) const {
  if (const auto* held = std::get_if<Object>(&value_)) return *held;
  refuse(name, "an object");
}

const Json& Json::at(std::string_view key) const {
  if (const Json* member = find(key)) return *member;
  throw Error(Status::kPackage, "the key " + std::string(key) + " is missing");
}

const Json* Json::find(std::string_view key) const {
  const auto* members = std::get_if<Object>(&value_);
  if (members == nullptr) return nullptr;
  const auto member = members->find(key);
  return member == members->end() ? nullptr : &member->second;
}

}  // namespace livereel
