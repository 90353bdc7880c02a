#include "safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "json.h"
#include "livereel/error.h"

namespace livereel {
namespace {

constexpr std::size_t kLength = 8;
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 50;
constexpr std::size_t kMaxDims = 16;

// Bytes of an item; 0 for a dtype that is not known.
std::size_t width_of(std::string_view dtype) {
  constexpr std::array<std::pair<std::string_view, std::size_t>, 11> kWidths = {{{"F64", 8},
                                                                                 {"F32", 4},
                                                                                 {"F16", 2},
                                                                                 {"BF16", 2},
                                                                                 {"I64", 8},
                                                                                 {"I32", 4},
                                                                                 {"I16", 2},
                                                                                 {"I8", 1},
                                                                                 {"U8", 1},
                                                                                 {"BOOL", 1},
                                                                                 {"U64", 8}}};
  const auto* const found =
      std::ranges::find(kWidths, dtype, &std::pair<std::string_view, std::size_t>::first);
  return found == kWidths.end() ? 0 : found->second;
}

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Status::kPackage, "no safetensors file, or a damaged one: " + why);
}

TensorView read_tensor(const std::string& name, const Json& entry,
                       std::span<const std::byte> data) {
  TensorView tensor;
  tensor.dtype = entry.at("dtype").text("dtype");
  const std::size_t width = width_of(tensor.dtype);
  if (width == 0) refuse(name + " has the unknown dtype " + tensor.dtype.substr(0, 20));
  auto bytes = static_cast<std::int64_t>(width);
  bool empty = false;
  const Json::Array& shape = entry.at("shape").array("shape");
  if (shape.size() > kMaxDims) refuse(name + " has too many dimensions");
  for (const Json& side : shape) {
    tensor.shape.push_back(side.whole("a side of a shape", 0, kMaxBytes));
    const std::int64_t wide = std::max<std::int64_t>(1, tensor.shape.back());
    if (bytes > kMaxBytes / wide) refuse(name + " is larger than any file");
    bytes *= wide;  // also behind a side of 0, since strides are counted so
    empty = empty || tensor.shape.back() == 0;
  }
  if (empty) bytes = 0;
  const Json::Array& ends = entry.at("data_offsets").array("data_offsets");
  const auto size = static_cast<std::int64_t>(data.size());
  if (ends.size() != 2) refuse(name + " must have two data_offsets");
  const std::int64_t from = ends[0].whole("data_offsets", 0, size);
  const std::int64_t to = ends[1].whole("data_offsets", from, size);
  if (to - from != bytes) refuse(name + " is not as long as its shape says");
  tensor.data = data.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(bytes));
  return tensor;
}

void check_apart(const Safetensors& content) {
  std::vector<std::span<const std::byte>> spans;
  for (const auto& [name, tensor] : content.tensors) {
    if (!tensor.data.empty()) spans.push_back(tensor.data);
  }
  std::ranges::sort(spans, {}, [](const auto& span) { return span.data(); });
  for (std::size_t i = 1; i < spans.size(); ++i) {
    if (spans[i - 1].data() + spans[i - 1].size() > spans[i].data()) {
      refuse("two tensors lie on one another");
    }
  }
}

void append_text(std::string& json, std::string_view text) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  json += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || c == '"' || c == '\\') {
      json += "\\u00";
      json += kDigits[byte >> 4U];
      json += kDigits[byte & 15U];
    } else {
      json += c;
    }
  }
  json += '"';
}

std::string header_of(const Safetensors& content) {
  std::string json = "{";
  if (!content.metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : content.metadata) {
      if (json.back() != '{') json += ',';
      append_text(json, key);
      json += ':';
      append_text(json, value);
    }
    json += '}';
  }
  std::size_t offset = 0;
  for (const auto& [name, tensor] : content.tensors) {
    if (json.size() > 1) json += ',';
    append_text(json, name);
    json += ":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[";
    for (const std::int64_t side : tensor.shape) {
      if (json.back() != '[') json += ',';
      json += std::to_string(side);
    }
    json += "],\"data_offsets\":[" + std::to_string(offset) + ",";
    offset += tensor.data.size();
    json += std::to_string(offset) + "]}";
  }
  json += '}';
  json.resize((json.size() + kLength - 1) / kLength * kLength, ' ');
  return json;
}

}  // namespace

const TensorView& Safetensors::at(std::string_view name) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) refuse("the tensor " + std::string(name) + " is missing");
  return found->second;
}

Safetensors read_safetensors(std::span<const std::byte> bytes) {
  if (bytes.size() < kLength) refuse("it is too short");
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLength; ++i) {
    length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  }
  if (length > kMaxHeader || length > bytes.size() - kLength) refuse("its header does not fit");
  const std::span<const std::byte> header = bytes.subspan(kLength, length);
  const Json json = Json::parse({reinterpret_cast<const char*>(header.data()), header.size()});
  Safetensors content;
  for (const auto& [name, entry] : json.object("the header")) {
    if (name != "__metadata__") {
      content.tensors.emplace(name, read_tensor(name, entry, bytes.subspan(kLength + length)));
      continue;
    }
    for (const auto& [key, value] : entry.object(name)) {
      content.metadata.emplace(key, value.text(key));
    }
  }
  check_apart(content);
  return content;
}

std::vector<std::byte> write_safetensors(const Safetensors& content) {
  const std::string header = header_of(content);
  std::vector<std::byte> out;
  out.reserve(kLength + header.size());
  for (std::size_t i = 0; i < kLength; ++i) {
    out.push_back(static_cast<std::byte>(header.size() >> (8 * i)));
  }
  const auto* const text = reinterpret_cast<const std::byte*>(header.data());
  out.insert(out.end(), text, text + header.size());
  for (const auto& [name, tensor] : content.tensors) {
    out.insert(out.end(), tensor.data.begin(), tensor.data.end());
  }
  return out;
}

}  // namespace livereel
