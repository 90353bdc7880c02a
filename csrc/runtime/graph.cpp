#include "graph.h"

#include <ATen/ops/empty.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <unordered_map>
#include <utility>

#include "file.h"
#include "livereel/error.h"

namespace livereel {
namespace {

namespace fs = std::filesystem;
using torch::inductor::AOTIModelPackageLoader;

constexpr const char* kWeights = "weights.safetensors";
// Older loaders take files alone, which they unpack to the system's folder.
constexpr bool kTakesFolders = TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13;

// A folder that only this user may enter and that goes with the object.
class PrivateFolder {
 public:
  explicit PrivateFolder(const fs::path& parent) {
    std::error_code error;
    const fs::path in = parent.empty() ? fs::temp_directory_path(error) : parent;
    if (error) {
      throw Error(Status::kFile, "there is no folder for temporary files: " + error.message());
    }
    std::string name = (in / "livereel-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
      throw Error(Status::kFile, "no folder can be made in " + in.string() +
                                     " to unpack graphs to: " + error_text(errno));
    }
    path_ = name;
  }
  ~PrivateFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;
  PrivateFolder(PrivateFolder&&) = delete;
  PrivateFolder& operator=(PrivateFolder&&) = delete;

  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

bool stays_inside(const fs::path& name) {
  return !name.is_absolute() &&
         std::ranges::none_of(name, [](const fs::path& p) { return p == ".."; });
}

// Unpacks a .pt2 file, a zip archive without compression, below `folder`.
void unpack(const fs::path& file, const fs::path& folder) {
  caffe2::serialize::PyTorchStreamReader reader(file.string());
  for (const std::string& name : reader.getAllRecords()) {
    if (!stays_inside(name)) throw Error(Status::kPackage, file.string() + " names files outside");
    const fs::path path = folder / file.stem() / name;
    std::error_code ignored;  // what cannot be made cannot be written to either
    fs::create_directories(path.parent_path(), ignored);
    const auto [data, size] = reader.getRecord(name);
    std::ofstream out(path, std::ios::binary);
    out.write(static_cast<const char*>(data.get()), static_cast<std::streamsize>(size));
    out.close();
    if (!out) throw Error(Status::kFile, path.string() + " cannot be written: is the disk full?");
  }
}

std::unique_ptr<AOTIModelPackageLoader> load(const fs::path& file, const fs::path& unpack_to,
                                             at::Device device) {
  const PrivateFolder folder(unpack_to);
  try {
    if (kTakesFolders) unpack(file, folder.path());
    return std::make_unique<AOTIModelPackageLoader>((kTakesFolders ? folder.path() : file).string(),
                                                    "model", /*run_single_threaded=*/false,
                                                    /*num_runners=*/1, device.index());
  } catch (const c10::Error& error) {
    throw Error(Status::kPackage,
                file.string() + " cannot be loaded: " + error.what_without_backtrace());
  }
}

std::string shown(at::IntArrayRef shape) {
  std::string text = "(";
  for (const std::int64_t side : shape)
    text += (text.size() > 1 ? ", " : "") + std::to_string(side);
  return text + ")";
}

// Throws Error(kPackage) unless tensors are as the manifest says that a graph's are.
void check_tensors(const std::string& file, const char* verb, const std::vector<at::Tensor>& found,
                   const std::vector<TensorSpec>& wanted) {
  if (found.size() != wanted.size()) {
    throw Error(Status::kPackage, file + verb + std::to_string(wanted.size()) + " tensors, got " +
                                      std::to_string(found.size()));
  }
  for (std::size_t i = 0; i < found.size(); ++i) {
    const TensorSpec& spec = wanted[i];
    if (found[i].sizes() != at::IntArrayRef(spec.shape) ||
        found[i].scalar_type() != type_of(spec.dtype)) {
      throw Error(Status::kPackage, file + verb + spec.name + " of shape " + shown(spec.shape) +
                                        ", got " + shown(found[i].sizes()));
    }
  }
}

Graph::Weights load_weights(const fs::path& path, at::Device device) {
  const MappedFile file(path);
  try {
    Graph::Weights weights;
    for (const auto& [name, view] : read_safetensors(file.bytes()).tensors) {
      weights.emplace(name, to_tensor(view).to(device));
    }
    return weights;
  } catch (const Error& error) {
    throw Error(error.status(), path.string() + ": " + error.what());
  }
}

// The rule of `livereel.export.aoti`.
const at::Tensor& pick(const Graph::Weights& weights, const std::string& owner,
                       std::string weight) {
  constexpr std::string_view kWrapper = "step.";
  if (const auto own = weights.find(owner + "." + weight); own != weights.end()) return own->second;
  if (weight.starts_with(kWrapper)) weight.erase(0, kWrapper.size());
  const auto shared = weights.find(weight);
  if (shared == weights.end()) {
    throw Error(Status::kPackage, owner + " lacks the weight " + weight);
  }
  return shared->second;
}

}  // namespace

at::ScalarType type_of(std::string_view dtype) {
  if (dtype == "float32" || dtype == "F32") return at::kFloat;
  if (dtype == "bfloat16" || dtype == "BF16") return at::kBFloat16;
  if (dtype == "float16" || dtype == "F16") return at::kHalf;
  if (dtype == "int64" || dtype == "I64") return at::kLong;
  if (dtype == "F64") return at::kDouble;
  throw Error(Status::kPackage, "tensors of " + std::string(dtype) + " are not run here");
}

at::Tensor to_tensor(const TensorView& view) {
  at::Tensor tensor = at::empty(view.shape, type_of(view.dtype));
  if (!view.data.empty()) std::memcpy(tensor.data_ptr(), view.data.data(), view.data.size());
  return tensor;
}

Graph::Graph(const Package& package, const std::string& name, const Weights& weights,
             const fs::path& unpack_to, at::Device device)
    : spec_(package.manifest.graph(name)),
      loader_(load(package.folder / spec_.file, unpack_to, device)) {
  std::unordered_map<std::string, at::Tensor> constants;
  for (const std::string& weight : loader_->get_constant_fqns()) {
    weights_.push_back(pick(weights, name, weight));
    constants.emplace(weight, weights_.back());
  }
  loader_->load_constants(constants, /*use_inactive=*/false, /*check_full_update=*/true,
                          /*user_managed=*/true);
}

Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;

std::vector<at::Tensor> Graph::operator()(std::vector<at::Tensor> inputs) const {
  check_tensors(spec_.file, " takes ", inputs, spec_.inputs);
  for (at::Tensor& input : inputs) input = input.contiguous();
  std::vector<at::Tensor> outputs = loader_->boxed_run(std::move(inputs));
  check_tensors(spec_.file, " must give ", outputs, spec_.outputs);
  return outputs;
}

Graphs::Graphs(const Package& package, const std::vector<std::string>& wanted,
               const fs::path& unpack_to, at::Device device) {
  std::map<fs::path, Graph::Weights> weights;
  for (const std::string& name : wanted) {
    const fs::path folder = fs::path(package.manifest.graph(name).file).parent_path();
    const std::string file = (folder / kWeights).generic_string();
    if (!package.manifest.files.contains(file)) {
      throw Error(Status::kPackage, "the manifest lists no " + file);
    }
    if (!weights.contains(folder)) {
      weights.emplace(folder, load_weights(package.folder / file, device));
    }
    graphs_.emplace(name, Graph(package, name, weights.at(folder), unpack_to, device));
  }
}

const Graph& Graphs::at(std::string_view name) const {
  const auto found = graphs_.find(name);
  if (found == graphs_.end()) {
    throw Error(Status::kPackage, "the graph " + std::string(name) + " is missing");
  }
  return found->second;
}

void check_names(const std::string& graph, const std::vector<TensorSpec>& specs,
                 const std::vector<std::string>& names, bool more) {
  bool fit = more ? specs.size() >= names.size() : specs.size() == names.size();
  for (std::size_t i = 0; fit && i < names.size(); ++i) fit = specs[i].name == names[i];
  if (!fit)
    throw Error(Status::kPackage, graph + " has other inputs or outputs than this runtime knows");
}

void check_shape(const std::string& what, const std::vector<std::int64_t>& found,
                 const std::vector<std::int64_t>& wanted) {
  if (found != wanted) throw Error(Status::kPackage, what + " has another shape than it should");
}

}  // namespace livereel
