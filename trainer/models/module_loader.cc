#include "trainer/models/module_loader.h"

#include <c10/core/Device.h>

#include <algorithm>
#include <regex>
#include <utility>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::size_t kNamesShown = 200;  // of each kind of fault, in one message

std::string ShapeText(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

void AppendFaults(const std::string& title, const std::vector<std::string>& names,
                  std::string& message) {
  if (names.empty()) return;
  message += " " + title + " (" + std::to_string(names.size()) + "): ";
  for (std::size_t i = 0; i < std::min(names.size(), kNamesShown); ++i) {
    message += (i == 0 ? "" : ", ") + names[i];
  }
  if (names.size() > kNamesShown) message += ", ...";
  message += ".";
}

}  // namespace

ModuleLoader::ModuleLoader(const TensorSource& source, const DecoderOptions& options, Mode mode)
    : source_(source), options_(options), mode_(mode) {
  for (const TensorInfo& info : source.List()) shapes_[info.name] = info.shape;
}

at::Tensor ModuleLoader::Read(const std::string& name, const std::vector<std::int64_t>& shape,
                              at::ScalarType dtype, const std::string& device) {
  used_.insert(name);
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  parameter_count_ += count;
  const auto found = shapes_.find(name);
  if (found == shapes_.end()) {
    missing_.push_back(name);
    return {};
  }
  if (found->second != shape) {
    misshaped_.push_back(name + " is " + ShapeText(found->second) + " but should be " +
                         ShapeText(shape));
    return {};
  }
  if (mode_ == Mode::kCheck) return {};
  return source_.Load(name, dtype).to(c10::Device(device));
}

const std::string& ModuleLoader::LinearDevice() const {
  static const std::string kCpu = "cpu";
  return options_.quantisation == Quantisation::kNone ? options_.device : kCpu;
}

at::Tensor ModuleLoader::Tensor(const std::string& name, const std::vector<std::int64_t>& shape) {
  return Read(name, shape, options_.dtype, options_.device);
}

PageRelease ModuleLoader::ReleaseOf(const std::string& name) const {
  const bool passes = (options_.passing || options_.quantisation != Quantisation::kNone) &&
                      c10::Device(options_.device).is_cpu();
  return passes ? source_.ReleaseOf(name, options_.dtype) : PageRelease();
}

at::Tensor ModuleLoader::FloatTensor(const std::string& name,
                                     const std::vector<std::int64_t>& shape) {
  return Read(name, shape, at::kFloat, options_.device);
}

at::Tensor ModuleLoader::FloatVector(const std::string& name, std::int64_t count) {
  const auto found = shapes_.find(name);
  const std::vector<std::int64_t> row = {1, count};
  const bool as_row = found != shapes_.end() && found->second == row;
  const at::Tensor vector = FloatTensor(name, as_row ? row : std::vector<std::int64_t>{count});
  return vector.defined() ? vector.reshape({count}) : vector;
}

Projection ModuleLoader::Linear(const std::string& path, const LinearShape& shape,
                                ModuleGroup group) {
  at::Tensor weight = Read(path + ".weight", {shape.out_features, shape.in_features},
                           options_.dtype, LinearDevice());
  at::Tensor bias;
  if (shape.bias) bias = Tensor(path + ".bias", {shape.out_features});
  Projection projection =
      Register(path, shape, group, std::move(weight), std::move(bias), ReleaseOf(path + ".weight"));
  if (options_.quantisation != Quantisation::kNone) source_.Release(path + ".weight");
  return projection;
}

Projection ModuleLoader::Register(const std::string& path, const LinearShape& shape,
                                  ModuleGroup group, at::Tensor weight, at::Tensor bias,
                                  PageRelease release) {
  Projection projection;
  projection.module = modules_.size();
  if (weight.defined() && options_.quantisation != Quantisation::kNone) {
    projection.base = FrozenLinear::MakeQuantised(weight.to(at::kCPU), std::move(bias),
                                                  options_.quantisation, options_.device);
  } else if (weight.defined() && release) {
    projection.base =
        FrozenLinear::MakePassing(std::move(weight), std::move(bias), std::move(release));
  } else if (weight.defined()) {
    projection.base = FrozenLinear::Make(std::move(weight), std::move(bias));
  }
  modules_.push_back({path, projection.base, shape.in_features, shape.out_features, group});
  return projection;
}

void ModuleLoader::Finish(const std::string& model_path,
                          const std::vector<std::string>& ignored) const {
  std::vector<std::regex> patterns(ignored.begin(), ignored.end());
  std::vector<std::string> extra;
  for (const auto& [name, shape] : shapes_) {
    if (used_.contains(name)) continue;
    const bool harmless = std::any_of(patterns.begin(), patterns.end(), [&](const std::regex& p) {
      return std::regex_match(name, p);
    });
    if (!harmless) extra.push_back(name);
  }
  if (missing_.empty() && misshaped_.empty() && extra.empty()) return;
  std::string message = "The tensors in " + model_path +
                        " do not fit its config.json; download the model again or "
                        "correct the config.";
  AppendFaults("Missing", missing_, message);
  AppendFaults("Mis-shaped", misshaped_, message);
  AppendFaults("Not part of the model", extra, message);
  throw Error(Reason::kBadModel, message);
}

}  // namespace offshoot::trainer
