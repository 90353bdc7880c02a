#include "livereel/stream.h"

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "file.h"
#include "model.h"
#include "safetensors.h"
#include "state.h"
#include "track.h"

namespace livereel {
namespace {

// Whatever `function` throws, as an Error.
template <typename Function>
auto told(Function function) {
  const c10::InferenceMode inference;
  try {
    return function();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw Error(Status::kMemory, "there is too little memory");
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    const bool memory = what.find("allocate memory") != std::string::npos ||
                        what.find("out of memory") != std::string::npos;
    throw Error(memory ? Status::kMemory : Status::kInternal, what);
  } catch (const std::exception& error) {
    throw Error(Status::kInternal, error.what());
  }
}

}  // namespace

Embeds read_embeds(const std::filesystem::path& path) {
  const MappedFile file(path);
  try {
    const Safetensors content = read_safetensors(file.bytes());
    const TensorView& text = content.at("text");
    if (text.dtype != "F32" || text.shape.size() != 2) {
      throw Error(Status::kPackage,
                  "the tensor text must be of dtype F32 and shape [tokens, width]");
    }
    Embeds embeds{std::vector<float>(text.data.size() / sizeof(float)), text.shape[0],
                  text.shape[1]};
    if (!text.data.empty()) {
      std::memcpy(embeds.values.data(), text.data.data(), text.data.size());
    }
    return embeds;
  } catch (const Error& error) {
    throw Error(error.status(), path.string() + ": " + error.what());
  }
}

class Stream::Impl {
 public:
  Impl(const std::filesystem::path& package, const Embeds& prompt, const Options& options)
      : model_(package, options.unpack_to), state_(model_.begin(options.seed, options.steps)) {
    state_.text = text(prompt);
    prompt_ = model_.prompt(state_.text);
    negative_ = negative();
  }

  Impl(const std::filesystem::path& package, std::span<const std::byte> snapshot,
       const Options& options)
      : model_(package, options.unpack_to), state_(model_.restore(snapshot)) {
    prompt_ = model_.prompt(state_.text);
    negative_ = negative();
  }

  Chunk next() {
    const std::scoped_lock making(making_);
    std::optional<at::Tensor> wanted, track;
    {
      const std::scoped_lock queue(queue_);
      wanted = wanted_;
      track = track_;
    }
    State state = state_;
    model_.remember(state, prompt_);
    Prompt prompt = prompt_;
    if (wanted) {
      state.text = *wanted;
      prompt = model_.prompt(state.text);
    }
    if (track) model_.lead(state, *track);
    Chunk chunk;
    chunk.index = state.chunk;
    chunk.pts = state.pts;
    const at::Tensor latents = model_.sample(state, prompt, negative_);
    const at::Tensor pixels = model_.decode(state, latents);
    chunk.count = pixels.size(0);
    chunk.height = pixels.size(1);
    chunk.width = pixels.size(2);
    const auto* const data = pixels.const_data_ptr<std::uint8_t>();
    chunk.frames.assign(data, data + pixels.numel());
    state_ = std::move(state);
    prompt_ = std::move(prompt);
    const std::scoped_lock queue(queue_);
    if (wanted && wanted_ && wanted_->is_same(*wanted)) wanted_.reset();
    if (track && track_ && track_->is_same(*track)) track_.reset();
    return chunk;
  }

  void update(const Embeds& prompt) {
    at::Tensor tensor = text(prompt);
    const std::scoped_lock queue(queue_);
    wanted_ = std::move(tensor);
  }

  void control(std::span<const Position> track) {
    if (recipe().control_channels == 0) {
      throw Error(Status::kArgument, "this model follows no control");
    }
    if (std::ssize(track) > kMaxTrack) {
      throw Error(Status::kArgument, "a track has at most " + std::to_string(kMaxTrack) +
                                         " positions, got " + std::to_string(track.size()));
    }
    at::Tensor positions = at::empty({std::ssize(track), 2}, at::kDouble);
    auto* const values = positions.mutable_data_ptr<double>();
    for (std::size_t i = 0; i < track.size(); ++i) {
      const auto [x, y] = track[i];
      const bool open = std::isnan(x) && std::isnan(y);
      if (!open && !(x >= 0 && x <= 1 && y >= 0 && y <= 1)) {
        throw Error(Status::kArgument, "a position must be (x, y), each from 0 to 1, or open");
      }
      values[2 * i] = x;
      values[(2 * i) + 1] = y;
    }
    const std::scoped_lock queue(queue_);
    track_ = std::move(positions);
  }

  [[nodiscard]] std::vector<std::byte> snapshot() const {
    const std::scoped_lock making(making_);
    return save_state(state_, model_.manifest().fingerprint);
  }

  [[nodiscard]] const Recipe& recipe() const { return model_.manifest().stream; }

 private:
  [[nodiscard]] at::Tensor text(const Embeds& prompt) const {
    if (prompt.tokens < 0 || prompt.width < 0 ||
        static_cast<std::size_t>(prompt.tokens) * static_cast<std::size_t>(prompt.width) !=
            prompt.values.size()) {
      throw Error(Status::kArgument,
                  "the prompt's embedding has another length than its shape says");
    }
    return model_.text(prompt.values.data(), prompt.tokens, prompt.width);
  }

  [[nodiscard]] std::optional<Prompt> negative() const {
    const std::optional<std::filesystem::path> file = model_.negative();
    if (!file) return std::nullopt;
    return model_.prompt(text(read_embeds(*file)));
  }

  Model model_;
  State state_;
  Prompt prompt_;
  std::optional<Prompt> negative_;
  std::optional<at::Tensor> wanted_;  // a prompt that takes hold at the next chunk's edge
  std::optional<at::Tensor> track_;   // and a track
  mutable std::mutex making_;
  mutable std::mutex queue_;
};

Stream::Stream(const std::filesystem::path& package, const Embeds& prompt, const Options& options)
    : impl_(told([&] { return std::make_unique<Impl>(package, prompt, options); })) {}

Stream::Stream(const std::filesystem::path& package, std::span<const std::byte> snapshot,
               const Options& options)
    : impl_(told([&] { return std::make_unique<Impl>(package, snapshot, options); })) {}

Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;

Chunk Stream::next() {
  return told([&] { return impl_->next(); });
}

void Stream::run(const std::function<bool(const Chunk&)>& show) {
  while (show(next())) {
  }
}

void Stream::update(const Embeds& prompt) {
  told([&] { impl_->update(prompt); });
}

void Stream::control(std::span<const Position> track) {
  told([&] { impl_->control(track); });
}

std::vector<std::byte> Stream::snapshot() const {
  return told([&] { return impl_->snapshot(); });
}

double Stream::fps() const noexcept { return impl_->recipe().fps; }
std::int64_t Stream::width() const noexcept { return impl_->recipe().width; }
std::int64_t Stream::height() const noexcept { return impl_->recipe().height; }

}  // namespace livereel
