// A package's graphs, loaded with their weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "package.h"
#include "safetensors.h"

namespace torch::inductor {
class AOTIModelPackageLoader;
}

namespace livereel {

class Graph {
 public:
  using Weights = std::map<std::string, at::Tensor, std::less<>>;

  // `name` finds the graph's own weights among those of its folder.
  Graph(const Package& package, const std::string& name, const Weights& weights,
        const std::filesystem::path& unpack_to);
  ~Graph();
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  [[nodiscard]] const GraphSpec& spec() const noexcept { return spec_; }

  // Inputs in the manifest's order, outputs in the manifest's order and memory of their own. Throws
  // Error(kPackage) for one of another shape or dtype than the manifest says.
  [[nodiscard]] std::vector<at::Tensor> operator()(std::vector<at::Tensor> inputs) const;

 private:
  GraphSpec spec_;
  std::vector<at::Tensor> weights_;  // which the loader reads where they lie
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

// Loads those of a package's graphs that `wanted` names. Throws Error(kPackage) for what does not
// load, Error(kFile) where it cannot be unpacked.
std::map<std::string, Graph, std::less<>> load_graphs(const Package& package,
                                                      const std::vector<std::string>& wanted,
                                                      const std::filesystem::path& unpack_to);

// A tensor's bytes in memory aligned as torch wants it. Throws Error(kPackage) for a dtype that
// neither graphs nor states have.
at::Tensor to_tensor(const TensorView& view);

}  // namespace livereel
