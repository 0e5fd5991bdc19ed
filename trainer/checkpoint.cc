#include "trainer/checkpoint.h"

#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <vector>

#include "trainer/error.h"
#include "trainer/metrics_log.h"
#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/durable_file.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;

constexpr char kTemporarySuffix[] = ".tmp";
constexpr char kPrefix[] = "step-";
constexpr char kAdapterFile[] = "adapter_model.safetensors";
constexpr char kOptimizerFile[] = "optimizer.safetensors";
constexpr char kStateFile[] = "state.json";
constexpr char kManifestFile[] = "manifest.json";
constexpr int kFormatVersion = 1;
constexpr std::uintmax_t kMaxJsonBytes = 64U << 20;

[[noreturn]] void Torn(const std::string& path, const std::string& what) {
  throw Error(Reason::kBadSpec, "the checkpoint " + path + " cannot be resumed: " + what +
                                    "; resume from an older one or start again.");
}

nlohmann::json ReadJson(const std::string& checkpoint, const std::string& name) {
  const std::string path = checkpoint + "/" + name;
  std::error_code failure;
  const std::uintmax_t size = fs::file_size(path, failure);
  if (failure) {
    Torn(checkpoint, name + " is missing");
  }
  if (size > kMaxJsonBytes) {
    Torn(checkpoint, name + " is larger than 64 MiB");
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  nlohmann::json document = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) {
    Torn(checkpoint, name + " is no JSON object");
  }
  return document;
}

std::string StepName(std::int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "%s%08lld", kPrefix, static_cast<long long>(step));
  return name;
}

void WriteManifest(const std::string& directory, std::int64_t step) {
  nlohmann::json files = nlohmann::json::array();
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    const std::string path = directory + "/" + name;
    files.push_back(
        {{"path", name}, {"digest", Sha256OfFile(path)}, {"size_bytes", fs::file_size(path)}});
  }
  WriteFileDurably(directory + "/" + kManifestFile,
                   nlohmann::json{{"step", step}, {"files", files}}.dump(2) + "\n");
}

void CheckManifest(const std::string& path) {
  const nlohmann::json manifest = ReadJson(path, kManifestFile);
  if (!manifest.contains("files") || !manifest["files"].is_array()) {
    Torn(path, "manifest.json lists no files");
  }
  std::vector<std::string> seen;
  for (const nlohmann::json& file : manifest["files"]) {
    const std::string name = file.value("path", "");
    if (name.empty() || name.find('/') != std::string::npos || name == "..") {
      Torn(path, "manifest.json names a file outside of it");
    }
    std::error_code failure;
    const std::uintmax_t size = fs::file_size(path + "/" + name, failure);
    if (failure) {
      Torn(path, name + " is missing");
    }
    if (size != file.value("size_bytes", std::uintmax_t{0})) {
      Torn(path, name + " has " + std::to_string(size) + " bytes instead of " +
                     std::to_string(file.value("size_bytes", std::uintmax_t{0})));
    }
    if (Sha256OfFile(path + "/" + name) != file.value("digest", "")) {
      Torn(path, "the bytes of " + name + " are not those that its manifest.json names");
    }
    seen.push_back(name);
  }
  for (const char* name : {kAdapterFile, kOptimizerFile, kStateFile, kMetricsFile}) {
    if (std::find(seen.begin(), seen.end(), name) == seen.end()) {
      Torn(path, std::string("manifest.json does not list ") + name);
    }
  }
}

// "learning_rate 0.0002 instead of 0.0001, ..." for the keys in which two objects differ.
std::string Differences(const nlohmann::json& saved, const nlohmann::json& current) {
  std::string text;
  for (const auto& [key, value] : current.items()) {
    const nlohmann::json before = saved.value(key, nlohmann::json());
    if (before != value) {
      text +=
          (text.empty() ? "" : ", ") + key + " " + value.dump() + " instead of " + before.dump();
    }
  }
  return text;
}

// Names first, so that nothing is removed under a running iteration. Empty if there is no
// directory.
std::vector<fs::path> ListDirectory(const std::string& root) {
  std::vector<fs::path> paths;
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(root, failure)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// Renamed first: a kill in the midst of removing must not leave half a checkpoint with its name.
void RemoveCheckpoint(const fs::path& path) {
  std::error_code failure;
  const fs::path doomed = path.string() + kTemporarySuffix;
  fs::remove_all(doomed, failure);
  fs::rename(path, doomed, failure);
  if (!failure) {
    fs::remove_all(doomed, failure);
  }
}

}  // namespace

nlohmann::json TrainingEnvironment(std::int64_t threads, std::int64_t world_size,
                                   const std::string& device) {
  return {{"threads", threads},
          {"world_size", world_size},
          {"device", device.substr(0, device.find(':'))},
          {"instruction_set", at::get_cpu_capability()},
          {"libtorch", TORCH_VERSION},
          {"offshoot", OFFSHOOT_VERSION}};
}

std::string WriteCheckpoint(const std::string& root, const CheckpointState& state,
                            const std::function<void(const std::string&)>& write_adapter,
                            const OptimizerTensors& optimizer, const std::string& metrics_path) {
  const std::string path = root + "/" + StepName(state.step);
  const std::string temporary = path + kTemporarySuffix;
  std::error_code failure;
  if (fs::exists(path, failure)) {
    // Complete by construction; equal by reproducibility. Writing it again could only tear it.
    return path;
  }
  fs::remove_all(temporary, failure);
  fs::create_directories(temporary, failure);
  if (failure) {
    throw Error(failure == std::errc::no_space_on_device ? Reason::kDiskFull : Reason::kInternal,
                "cannot make the checkpoint directory " + temporary + ": " + failure.message());
  }
  try {
    write_adapter(temporary);
    std::map<std::string, at::Tensor> tensors = {{"exp_avg", optimizer.first_moments},
                                                 {"exp_avg_sq", optimizer.second_moments}};
    if (optimizer.outer_momentum.defined()) {
      tensors["outer_momentum"] = optimizer.outer_momentum;
    }
    WriteSafetensors(temporary + "/" + kOptimizerFile, tensors);
    WriteFileDurably(temporary + "/" + kStateFile,
                     nlohmann::json{{"format", kFormatVersion},
                                    {"step", state.step},
                                    {"epoch", state.cursor.epoch},
                                    {"step_in_epoch", state.cursor.step_in_epoch},
                                    {"tokens", state.tokens},
                                    {"data_digest", state.data_digest},
                                    {"identity", state.identity},
                                    {"environment", state.environment}}
                             .dump(2) +
                         "\n");
    if (fs::exists(metrics_path)) {
      CopyFileDurably(metrics_path, temporary + "/" + kMetricsFile);
    } else {
      WriteFileDurably(temporary + "/" + kMetricsFile, "");
    }
    WriteManifest(temporary, state.step);
    RenameDirectory(temporary, path);
  } catch (...) {
    fs::remove_all(temporary, failure);  // a full disk must not stay full of our leftovers
    throw;
  }
  return path;
}

Checkpoint ReadCheckpoint(const std::string& path) {
  std::error_code failure;
  if (!fs::is_directory(path, failure)) {
    throw Error(Reason::kBadSpec, "resume_from names " + path + ", which is no directory.");
  }
  CheckManifest(path);
  const nlohmann::json saved = ReadJson(path, kStateFile);
  Checkpoint checkpoint;
  try {
    if (saved.at("format").get<int>() != kFormatVersion) {
      Torn(path, "its format is " + saved.at("format").dump() + " and this trainer reads " +
                     std::to_string(kFormatVersion));
    }
    checkpoint.state.step = saved.at("step").get<std::int64_t>();
    checkpoint.state.cursor.epoch = saved.at("epoch").get<std::int64_t>();
    checkpoint.state.cursor.step_in_epoch = saved.at("step_in_epoch").get<std::int64_t>();
    checkpoint.state.tokens = saved.at("tokens").get<std::int64_t>();
    checkpoint.state.data_digest = saved.at("data_digest").get<std::string>();
    checkpoint.state.identity = saved.at("identity");
    checkpoint.state.environment = saved.at("environment");
  } catch (const nlohmann::json::exception& error) {
    Torn(path, std::string("state.json is not as it was written (") + error.what() + ")");
  }
  const auto adapter = SafetensorsFile::Open(path + "/" + kAdapterFile);
  for (const TensorInfo& info : adapter->tensors()) {
    checkpoint.adapter[info.name] = adapter->Get(info.name);
  }
  const auto optimizer = SafetensorsFile::Open(path + "/" + kOptimizerFile);
  if (!optimizer->Has("exp_avg") || !optimizer->Has("exp_avg_sq")) {
    Torn(path, "optimizer.safetensors lacks a moment");
  }
  checkpoint.optimizer.first_moments = optimizer->Get("exp_avg");
  checkpoint.optimizer.second_moments = optimizer->Get("exp_avg_sq");
  if (optimizer->Has("outer_momentum")) {
    checkpoint.optimizer.outer_momentum = optimizer->Get("outer_momentum");
  }
  checkpoint.metrics_path = path + "/" + kMetricsFile;
  return checkpoint;
}

void CheckResumable(const std::string& path, const CheckpointState& saved,
                    const CheckpointState& current, bool reproducible) {
  const std::string identity = Differences(saved.identity, current.identity);
  if (!identity.empty()) {
    throw Error(Reason::kBadSpec, "the checkpoint " + path +
                                      " belongs to another training: this one has " + identity +
                                      "; start again without resume_from.");
  }
  if (saved.data_digest != current.data_digest) {
    throw Error(Reason::kBadSpec, "the checkpoint " + path +
                                      " was made on other data (or another tokenizer); start again "
                                      "without resume_from.");
  }
  const std::string environment = Differences(saved.environment, current.environment);
  if (reproducible && !environment.empty()) {
    throw Error(Reason::kBadSpec,
                "the checkpoint " + path + " was made elsewhere: this run has " + environment +
                    "; a reproducible job goes on only where it can keep its bits. Resume it there "
                    "or set reproducible: false.");
  }
}

void RemoveStaleCheckpoints(const std::string& root, std::int64_t step) {
  const std::string newest_kept = StepName(step);
  for (const fs::path& path : ListDirectory(root)) {
    const std::string name = path.filename().string();
    if (name.ends_with(kTemporarySuffix)) {
      std::error_code failure;
      fs::remove_all(path, failure);
    } else if (name.starts_with(kPrefix) && name > newest_kept) {
      RemoveCheckpoint(path);
    }
  }
}

void PruneCheckpoints(const std::string& root, std::int64_t limit) {
  if (limit <= 0) {
    return;
  }
  std::vector<fs::path> complete;
  for (const fs::path& path : ListDirectory(root)) {
    const std::string name = path.filename().string();
    if (name.starts_with(kPrefix) && !name.ends_with(kTemporarySuffix)) {
      complete.push_back(path);
    }
  }
  while (static_cast<std::int64_t>(complete.size()) > limit) {
    RemoveCheckpoint(complete.front());
    complete.erase(complete.begin());
  }
}

}  // namespace offshoot::trainer
