#include "trainer/export/verification.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/isfinite.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "trainer/error.h"
#include "trainer/export/merged_model.h"
#include "trainer/export/reference.h"
#include "trainer/lora/lora_set.h"
#include "trainer/models/decoder.h"
#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/mapped_file.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// The logits lie in a mapped file and are read a row at a time: of a large vocabulary they are more
// than a model in few bits.
struct Reference {
  at::Tensor input_ids, attention_mask, logits;
  PageRelease release;  // of the logits' pages; empty where they lie in memory
  void Passed() const {
    if (release) release(0, logits.nbytes());
  }
  at::ScalarType dtype = at::kFloat;
  Quantisation quantisation = Quantisation::kNone;
};

struct Tolerances {
  double adapter;
  double merged;
};

Tolerances TolerancesFor(at::ScalarType dtype) {
  // The adapter is stored exactly, so only the order of sums differs. Merged weights are rounded
  // again to the base's dtype, which bfloat16 activations amplify layer by layer (0.023 was seen in
  // 30 layers); there the weights themselves are the sharp comparison.
  return dtype == at::kFloat ? Tolerances{1e-5, 1e-4} : Tolerances{5e-3, 1e-1};
}

// 8-bit blocks round each weight by up to a 254th of its block's largest.
constexpr double kGgufTolerance = 0.1;

Reference ReadReference(const std::string& path) {
  const auto file = SafetensorsFile::Open(path);
  Reference reference{file->Get("input_ids"), file->Get("attention_mask"), file->Get("logits"),
                      file->ReleaseOf("logits", at::kFloat)};
  const auto dtype = file->metadata().find("dtype");
  if (dtype == file->metadata().end() ||
      (dtype->second != "float32" && dtype->second != "bfloat16")) {
    throw Error(Reason::kBadModel, path + ": its metadata names no dtype (float32 or bfloat16).");
  }
  reference.dtype = dtype->second == "float32" ? at::kFloat : at::kBFloat16;
  if (const auto name = file->metadata().find("quantisation"); name != file->metadata().end()) {
    const Quantisation* kind = FindQuantisation(name->second);
    if (kind == nullptr) {
      throw Error(Reason::kBadModel, path + ": its metadata names the quantisation '" +
                                         name->second + "', which this trainer does not know.");
    }
    reference.quantisation = *kind;
  }
  const bool shapes_fit = reference.logits.dim() == 3 && reference.input_ids.dim() == 2 &&
                          reference.logits.size(0) == reference.input_ids.size(0) &&
                          reference.logits.size(1) == reference.input_ids.size(1) &&
                          reference.logits.scalar_type() == at::kFloat;
  if (!shapes_fit) {
    throw Error(Reason::kBadModel,
                path + ": logits must be float32 [batch, sequence, vocabulary].");
  }
  for (std::int64_t row = 0; row < reference.logits.size(0); ++row) {
    if (!at::isfinite(reference.logits[row]).all().item<bool>()) {
      throw Error(Reason::kBadModel, path +
                                         ": the trained model's own logits are not finite, so the "
                                         "training has failed.");
    }
    reference.Passed();
  }
  return reference;
}

// Of the model's logits from the reference's, relative to those.
double Distance(const Decoder& decoder, const Adapters* adapters, const Reference& reference,
                const std::string& what) {
  const std::int64_t vocabulary = decoder.head()->out_features();
  if (vocabulary != reference.logits.size(2)) {
    throw Error(Reason::kBadModel, what + ": has a vocabulary of " + std::to_string(vocabulary) +
                                       ", and the reference one of " +
                                       std::to_string(reference.logits.size(2)) + ".");
  }
  double scale = 0, difference = 0;
  VisitLogits(decoder, adapters, reference.input_ids, reference.attention_mask,
              [&](std::int64_t row, const at::Tensor& logits) {
                const at::Tensor wanted = reference.logits[row].narrow(0, 0, logits.size(0));
                scale = std::hypot(scale, wanted.norm().item<double>());
                difference = std::hypot(difference, logits.sub(wanted).norm().item<double>());
                reference.Passed();
              });
  return difference / std::max(scale, 1e-30);
}

std::string Shown(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2g", value);
  return text;
}

// A NaN fails.
void Judge(const std::string& path, double distance, double tolerance) {
  if (distance <= tolerance) return;
  throw Error(Reason::kBadModel,
              path +
                  ": read back from disk, its logits differ from those of the trained model by " +
                  Shown(distance) + " (relative; at most " + Shown(tolerance) +
                  " is rounding), so it is not what was trained.");
}

void CheckFiles(const std::string& directory) {
  constexpr std::size_t kMaxBytes = std::size_t{64} << 20;
  const std::string path = directory + "/offshoot.json";
  const Json lineage = Json::parse(ReadSmallFile(path, kMaxBytes), nullptr, false);
  if (!lineage.is_object() || !lineage.contains("files") || !lineage["files"].is_array()) {
    throw Error(Reason::kBadModel, path + ": is not a lineage file with a list of files.");
  }
  for (const Json& file : lineage["files"]) {
    const std::string name = file.value("path", "");
    const std::string full = directory + "/" + name;
    if (name.empty() || !fs::is_regular_file(full)) {
      throw Error(Reason::kBadModel, full + ": is missing, and offshoot.json names it.");
    }
    if (Sha256OfFile(full) != file.value("digest", "")) {
      throw Error(Reason::kBadModel, full +
                                         ": its bytes are not those whose digest offshoot.json "
                                         "names.");
    }
  }
}

}  // namespace

VerificationReport VerifyDerivative(const VerificationRequest& request) {
  CheckFiles(request.result_directory);
  const Reference reference = ReadReference(request.reference_path);
  const Tolerances tolerances = TolerancesFor(reference.dtype);
  // Beside a quantised base the plain ones pass through memory: who trained in few bits need not
  // have room for them.
  const auto load = [&](const BaseModelFiles& files, Quantisation quantisation) {
    return Decoder::Load(files, {.dtype = reference.dtype,
                                 .device = request.device,
                                 .quantisation = quantisation,
                                 .passing = reference.quantisation != Quantisation::kNone});
  };
  VerificationReport report;
  const std::string merged_path = request.result_directory + "/merged";
  const std::string gguf_path = request.result_directory + "/model.gguf";
  const bool has_merged = fs::is_directory(merged_path);
  const bool has_gguf = fs::exists(gguf_path);
  // What merged models must answer: as the trained model, or, where that stood on quantised
  // weights, as the plain base with the adapter.
  Reference plain = reference;
  {
    const BaseModelFiles base = OpenBaseModel(request.base_path);
    const auto decoder = load(base, reference.quantisation);
    report.base_distance = Distance(*decoder, nullptr, reference, request.base_path);
    const auto adapters = LoraSet::Load(*decoder, request.result_directory);
    const std::string path = request.result_directory + "/adapter_model.safetensors";
    report.adapter_distance = Distance(*decoder, adapters.get(), reference, path);
    Judge(path, report.adapter_distance, tolerances.adapter);
    if (has_merged) {
      CheckMergedWeights(base, AdaptersByPath(*decoder, *adapters), OpenBaseModel(merged_path));
    }
    if (reference.quantisation != Quantisation::kNone && (has_merged || has_gguf)) {
      const auto plain_decoder = load(base, Quantisation::kNone);
      plain.logits = ComputeLogits(*plain_decoder, adapters.get(), reference.input_ids,
                                   reference.attention_mask);
      plain.release = {};
    }
  }
  if (has_merged) {
    const auto decoder = load(OpenBaseModel(merged_path), Quantisation::kNone);
    report.merged_distance = Distance(*decoder, nullptr, plain, merged_path);
    Judge(merged_path, report.merged_distance, tolerances.merged);
  }
  if (has_gguf) {
    const auto decoder = load(OpenBaseModel(gguf_path), Quantisation::kNone);
    report.gguf_distance = Distance(*decoder, nullptr, plain, gguf_path);
    Judge(gguf_path, report.gguf_distance, kGgufTolerance);
  }
  return report;
}

}  // namespace offshoot::trainer
