// The safetensors reader: round trips, and every way in which a file can be wrong.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "../check.h"
#include "refused.h"
#include "safetensors.h"

namespace {

using Bytes = std::vector<std::byte>;
using livereel::refused;
using livereel::Status;

Bytes file_of(const std::string& header, std::size_t data) {
  Bytes bytes(8 + header.size() + data);
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<std::byte>(header.size() >> (8 * i));
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  return bytes;
}

bool bad(const Bytes& bytes) {
  return refused(Status::kPackage, [&] { return livereel::read_safetensors(bytes); });
}

// A header of one tensor, padded so that its bytes begin at a multiple of eight.
Bytes one(const std::string& dtype, const std::string& shape, const std::string& offsets,
          std::size_t data) {
  std::string header = R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape +
                       R"(,"data_offsets":)" + offsets + "}}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return file_of(header, data);
}

}  // namespace

int main() {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  livereel::Safetensors content;
  content.tensors["a\"b"] = {"F32", {2, 3}, std::as_bytes(std::span(values))};
  content.tensors["empty"] = {"I64", {0, 4}, {}};
  content.metadata["k"] = "v\n\\";
  const Bytes bytes = livereel::write_safetensors(content);
  const livereel::Safetensors read = livereel::read_safetensors(bytes);
  CHECK(read.metadata == content.metadata && read.tensors.size() == 2);
  const livereel::TensorView& tensor = read.at("a\"b");
  CHECK(tensor.dtype == "F32" && (tensor.shape == std::vector<std::int64_t>{2, 3}));
  CHECK(std::ranges::equal(tensor.data, content.tensors["a\"b"].data));
  CHECK(read.at("empty").data.empty());
  CHECK(refused(Status::kPackage, [&] { return read.at("c"); }));

  // Tensors may lie at any address, also by what was written before them.
  const double half = 0.5;
  livereel::Safetensors odd;
  odd.tensors["a"] = {"F32", {3}, std::as_bytes(std::span(values).first(3))};
  odd.tensors["b"] = {"F64", {}, std::as_bytes(std::span(&half, 1))};
  Bytes moved = livereel::write_safetensors(odd);
  moved.insert(moved.begin(), std::byte{0});
  const livereel::Safetensors back = livereel::read_safetensors(std::span(moved).subspan(1));
  CHECK(std::ranges::equal(back.at("b").data, odd.tensors["b"].data));

  // Cut anywhere, it is refused.
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    CHECK(bad(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(i))));
  }
  CHECK(!bad(one("F32", "[2]", "[0,8]", 8)) && !bad(one("F32", "[]", "[4,8]", 8)));
  CHECK(bad(one("F99", "[2]", "[0,8]", 8)));
  CHECK(bad(one("F32", "[2]", "[0,7]", 8)) && bad(one("F32", "[3]", "[0,8]", 8)));
  CHECK(bad(one("F32", "[2]", "[8,0]", 8)) && bad(one("F32", "[2]", "[8,16]", 8)));
  CHECK(bad(one("F32", "[2]", "[-8,0]", 8)) && bad(one("F32", "[2]", "[0]", 8)));
  CHECK(bad(one("F32", "[-1]", "[0,4]", 8)) && bad(one("F32", "2", "[0,8]", 8)));
  CHECK(bad(one("F32", "[4294967296,4294967296]", "[0,0]", 8)));
  CHECK(bad(one("F32", "[4294967296,0,4294967296]", "[0,0]", 8)));
  CHECK(bad(one("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]", 8)));
  CHECK(bad(file_of(R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                    R"("y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                    8)));
  CHECK(bad(file_of("[]", 0)) && bad(file_of(R"({"__metadata__":{"k":1}})", 0)));
  Bytes huge = file_of("{}", 0);
  std::fill_n(huge.begin(), 8, std::byte{0xff});
  CHECK(bad(huge) && bad({}));
  return 0;
}
