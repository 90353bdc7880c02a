// SHA-256 against FIPS 180's examples, whole and in parts.
#include <span>
#include <string>

#include "../check.h"
#include "sha256.h"

namespace {

std::string digest(const std::string& text, std::size_t part) {
  livereel::Sha256 sha;
  for (std::size_t i = 0; i < text.size(); i += part) {
    sha.update(std::as_bytes(std::span(text).subspan(i, std::min(part, text.size() - i))));
  }
  return sha.finish();
}

}  // namespace

int main() {
  const std::string two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  for (const std::size_t part : {1U, 3U, 55U, 56U, 63U, 64U, 65U, 1000U}) {
    CHECK(digest("", part) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(digest("abc", part) ==
          "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(digest(two, part) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(digest(std::string(1'000'000, 'a'), part) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
  return 0;
}
