// A reader of JSON (RFC 8259) for files that strangers may have written: depth and number of
// values are bounded, and what is not as wanted is an Error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace livereel {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;

  static constexpr int kMaxDepth = 32;
  static constexpr std::size_t kMaxValues = std::size_t{1} << 20;

  // Throws Error(kPackage) for anything but one value of at most kMaxDepth levels and kMaxValues
  // values, in which no object has a key twice.
  static Json parse(std::string_view text);

  // What the value holds; each throws Error(kPackage), which calls the value `name`, if it holds
  // something else. Whole numbers are written without fraction and exponent.
  [[nodiscard]] bool truth(std::string_view name) const;
  [[nodiscard]] const std::string& text(std::string_view name) const;
  [[nodiscard]] double number(std::string_view name) const;
  [[nodiscard]] std::int64_t whole(std::string_view name, std::int64_t low,
                                   std::int64_t high) const;
  [[nodiscard]] const Array& array(std::string_view name) const;
  [[nodiscard]] const Object& object(std::string_view name) const;

  // The member `key` of an object. `at` throws Error(kPackage) when there is none, `find` gives
  // nullptr.
  [[nodiscard]] const Json& at(std::string_view key) const;
  [[nodiscard]] const Json* find(std::string_view key) const;

 private:
  friend class JsonParser;

  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> value_;
};

}  // namespace livereel
