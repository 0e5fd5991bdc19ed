#include <algorithm>
#include <filesystem>
#include <utility>

#include "trainer/error.h"
#include "trainer/weights/gguf.h"
#include "trainer/weights/gguf_architectures.h"
#include "trainer/weights/gguf_source.h"
#include "trainer/weights/mapped_file.h"
#include "trainer/weights/model_directory.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::size_t kMaxConfigBytes = std::size_t{64} << 20;

Json ReadJsonObject(const std::string& path) {
  Json value = Json::parse(ReadSmallFile(path, kMaxConfigBytes), nullptr, false);
  if (value.is_discarded()) throw Error(Reason::kBadModel, path + ": is not valid JSON.");
  if (!value.is_object()) throw Error(Reason::kBadModel, path + ": is not a JSON object.");
  return value;
}

void RefuseUnknownQuantisation(const std::string& directory, const Json& config) {
  const auto quantization = config.find("quantization_config");
  if (quantization == config.end() || quantization->is_null()) return;
  const std::string method =
      quantization->is_object() ? quantization->value("quant_method", Json()).dump() : "null";
  if (method == "\"fp8\"") return;
  throw Error(Reason::kBadModel,
              directory + ": its weights are quantised with " + method +
                  ", which cannot be read; give the unquantised model, an FP8 one or a GGUF file.");
}

// The GGUF files of a directory, sorted.
std::vector<std::string> GgufFilesIn(const std::string& directory) {
  std::vector<std::string> found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() == ".gguf") found.push_back(entry.path().string());
  }
  std::sort(found.begin(), found.end());
  return found;
}

BaseModelFiles OpenDirectory(const std::string& directory) {
  BaseModelFiles files;
  files.path = directory;
  files.config = ReadJsonObject(directory + "/config.json");
  RefuseUnknownQuantisation(directory, files.config);
  const std::string generation = directory + "/generation_config.json";
  if (fs::exists(generation)) files.generation_config = ReadJsonObject(generation);
  files.tensors = OpenModelDirectory(directory, files.config);
  return files;
}

BaseModelFiles OpenGgufModel(const std::string& path) {
  GgufFile file = OpenGguf(path);
  const Json& metadata = file.layout.metadata;
  if (const auto split = metadata.find("split.count"); split != metadata.end() && *split != 1) {
    throw Error(Reason::kBadModel, path +
                                       ": is one part of a split GGUF model; join the parts with "
                                       "llama-gguf-split --merge first.");
  }
  const GgufArchitecture& architecture = FindGgufArchitecture(metadata, path);
  BaseModelFiles files;
  files.path = path;
  files.is_gguf = true;
  files.config = MakeConfig(architecture, file);
  files.generation_config = MakeGenerationConfig(metadata);
  files.gguf_metadata = std::move(file.layout.metadata);
  files.tensors = MakeGgufSource(std::move(file), architecture, files.config);
  return files;
}

}  // namespace

BaseModelFiles OpenBaseModel(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    throw Error(Reason::kBadModel, path + ": there is no such file or directory.");
  }
  if (!fs::is_directory(status)) {
    if (fs::path(path).extension() == ".safetensors") {
      throw Error(Reason::kBadModel, path +
                                         ": is one safetensors file; give its directory, with "
                                         "config.json in it.");
    }
    return OpenGgufModel(path);
  }
  const std::vector<std::string> gguf = GgufFilesIn(path);
  const bool has_safetensors =
      fs::exists(path + "/model.safetensors") || fs::exists(path + "/model.safetensors.index.json");
  if (gguf.empty() || has_safetensors) {
    if (!fs::exists(path + "/config.json")) {
      throw Error(Reason::kBadModel, path +
                                         ": has no config.json and no GGUF file, so it is no "
                                         "model directory.");
    }
    return OpenDirectory(path);
  }
  if (gguf.size() > 1) {
    throw Error(Reason::kBadModel, path + ": holds " + std::to_string(gguf.size()) +
                                       " GGUF files; give the path of one, such as " + gguf[0] +
                                       ".");
  }
  return OpenGgufModel(gguf[0]);
}

}  // namespace offshoot::trainer
