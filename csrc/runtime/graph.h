// A package's graphs, loaded with their weights, on the processor or a GPU.
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

  // `name` finds the graph's own weights among those of its folder, which lie on `device`.
  Graph(const Package& package, const std::string& name, const Weights& weights,
        const std::filesystem::path& unpack_to, at::Device device);
  ~Graph();
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  [[nodiscard]] const GraphSpec& spec() const noexcept { return spec_; }

  // Inputs on the graph's device in the manifest's order, outputs in the manifest's order and
  // memory of their own. Throws Error(kPackage) for one of another shape or dtype than the manifest
  // says.
  [[nodiscard]] std::vector<at::Tensor> operator()(std::vector<at::Tensor> inputs) const;

 private:
  GraphSpec spec_;
  std::vector<at::Tensor> weights_;  // which the loader reads where they lie
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

class Graphs {
 public:
  Graphs() = default;

  // Loads those of a package's graphs that `wanted` names. Throws Error(kPackage) for what does not
  // load, Error(kFile) where it cannot be unpacked.
  Graphs(const Package& package, const std::vector<std::string>& wanted,
         const std::filesystem::path& unpack_to, at::Device device);

  // One that was wanted.
  [[nodiscard]] const Graph& at(std::string_view name) const;

 private:
  std::map<std::string, Graph, std::less<>> graphs_;
};

// Throws Error(kPackage) unless a graph's tensors are named so, in this order; if `more`, conv
// caches may come behind the last.
void check_names(const std::string& graph, const std::vector<TensorSpec>& specs,
                 const std::vector<std::string>& names, bool more);

// Throws Error(kPackage) unless a tensor has the shape that it should.
void check_shape(const std::string& what, const std::vector<std::int64_t>& found,
                 const std::vector<std::int64_t>& wanted);

// Of a dtype as manifests ("float32") or safetensors files ("F32") have it. Throws Error(kPackage)
// for one that neither graphs nor states have.
at::ScalarType type_of(std::string_view dtype);

// A tensor's bytes in memory aligned as torch wants it. Throws as `type_of` does.
at::Tensor to_tensor(const TensorView& view);

}  // namespace livereel
