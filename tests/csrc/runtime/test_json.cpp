// The JSON reader: what it takes, and what it refuses.
#include <cstdint>
#include <limits>
#include <string>

#include "../check.h"
#include "json.h"
#include "refused.h"

namespace {

using livereel::Json;
using livereel::refused;
using livereel::Status;

bool bad(const std::string& text) {
  return refused(Status::kPackage, [&] { return Json::parse(text); });
}

std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace

int main() {
  const Json json = Json::parse(
      R"( {"a": [1, -2.5, 3e2, true, null], "b": {"c": "x\n\u00e9\ud83d\ude00\/"}, "d": 0} )");
  const Json::Array& a = json.at("a").array("a");
  CHECK(a.size() == 5);
  CHECK(a[0].whole("a", 0, 1) == 1 && a[0].number("a") == 1.0);
  CHECK(a[1].number("a") == -2.5 && a[2].number("a") == 300.0);
  CHECK(json.at("b").at("c").text("c") == "x\n\xc3\xa9\xf0\x9f\x98\x80/");
  CHECK(a[3].truth("a"));
  CHECK(json.find("e") == nullptr && a[0].find("e") == nullptr);
  const auto most = std::numeric_limits<std::int64_t>::max();
  CHECK(Json::parse("9223372036854775807").whole("n", 0, most) == most);

  CHECK(refused(Status::kPackage, [&] { return json.at("e"); }));
  CHECK(refused(Status::kPackage, [&] { return json.at("a").text("a"); }));
  CHECK(refused(Status::kPackage, [&] { return a[0].truth("a"); }));
  CHECK(refused(Status::kPackage, [&] { return a[1].whole("a", -9, 9); }));
  CHECK(refused(Status::kPackage, [&] { return a[0].whole("a", 2, 9); }));
  CHECK(refused(Status::kPackage, [&] { return a[3].number("a"); }));
  CHECK(refused(Status::kPackage, [&] { return a[3].array("a"); }));
  CHECK(refused(Status::kPackage, [&] { return a[3].object("a"); }));

  for (const char* text : {"",
                           " ",
                           "{",
                           "[",
                           "[1,",
                           "[1,]",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "{a:1}",
                           "01",
                           "-",
                           "-01",
                           "+1",
                           "1.2.3",
                           "1e999",
                           "nul",
                           "tru",
                           "1 2",
                           "\"",
                           "\"\\",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u12g4\"",
                           "\"\\ud800\"",
                           "\"\\ud800\\u0041\"",
                           "\"\\udc00\"",
                           "\"\n\"",
                           "{\"a\":1,\"a\":2}",
                           "NaN",
                           "Infinity",
                           "0x10"}) {
    CHECK(bad(text));
  }
  CHECK(bad(std::string("1\0", 2)));
  CHECK(!bad(nested(Json::kMaxDepth)) && bad(nested(100'000)));
  std::string many = "[0";
  for (std::size_t i = 0; i < Json::kMaxValues; ++i) many += ",0";
  CHECK(bad(many + "]"));
  return 0;
}
