#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "trainer/error.h"
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

}  // namespace

BaseModelFiles OpenBaseModel(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    throw Error(Reason::kBadModel, path + ": there is no such file or directory.");
  }
  if (!fs::is_directory(status)) {
    throw Error(Reason::kBadModel,
                path + ": is not a model directory (with config.json and safetensors).");
  }
  if (fs::exists(path + "/config.json")) return OpenDirectory(path);
  throw Error(Reason::kBadModel, path + ": has no config.json.");
}

}  // namespace offshoot::trainer
