#include "trainer/export/gguf_export.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <cmath>
#include <cstring>
#include <map>
#include <utility>
#include <variant>
#include <vector>

#include "trainer/error.h"
#include "trainer/export/gguf_tokenizer.h"
#include "trainer/weights/gguf_architectures.h"
#include "trainer/weights/gguf_writer.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

// A model as GGUF sees it: the decoder's spec, where every layer is alike.
struct PlainModel {
  const ArchSpec* spec = nullptr;
  const GgufArchitecture* architecture = nullptr;
  SoftmaxAttentionSpec attention;
  DenseMlpSpec mlp;
  RotarySpec rotary;
};

[[noreturn]] void Refuse(const std::string& fault) {
  throw Error(Reason::kBadModel, fault +
                                     ", which cannot be written as GGUF here; publish the merged "
                                     "model instead.");
}

PlainModel Describe(const ArchSpec& spec) {
  PlainModel model;
  model.spec = &spec;
  model.architecture = FindGgufArchitectureByModelType(spec.model_type);
  if (model.architecture == nullptr) Refuse("the base is of the type '" + spec.model_type + "'");
  for (const LayerSpec& layer : spec.layers) {
    const auto* attention = std::get_if<SoftmaxAttentionSpec>(&layer.attention);
    const auto* mlp = std::get_if<DenseMlpSpec>(&layer.feed_forward);
    if (attention == nullptr || mlp == nullptr || attention->rotary < 0 || attention->window != 0) {
      Refuse("the base has layers of another kind than its family's usual ones");
    }
    model.attention = *attention;
    model.mlp = *mlp;
  }
  model.rotary = spec.rotaries.at(static_cast<std::size_t>(model.attention.rotary));
  if (model.rotary.width != model.attention.head_dim)
    Refuse("the base rotates a part of each head");
  return model;
}

// llama.cpp's file types (LlamaFileType).
std::uint32_t FileTypeOf(const std::string& type) {
  const std::map<std::string, std::uint32_t> types = {
      {"F32", 0}, {"F16", 1}, {"Q8_0", 7}, {"BF16", 32}};
  const auto found = types.find(type);
  if (found == types.end()) {
    throw Error(Reason::kBadSpec,
                "a GGUF file can be written as F32, F16, BF16 or Q8_0, not as " + type + ".");
  }
  return found->second;
}

void AddRotary(const PlainModel& model, const std::string& prefix, GgufMetadata& metadata) {
  metadata.Float32(prefix + "rope.freq_base", static_cast<float>(model.rotary.theta));
  metadata.Uint32(prefix + "rope.dimension_count", static_cast<std::uint32_t>(model.rotary.width));
  switch (model.rotary.kind) {
    case RotaryKind::kDefault:
    case RotaryKind::kLlama3:  // rope_freqs.weight has it
      return;
    case RotaryKind::kLinear:
      metadata.Text(prefix + "rope.scaling.type", "linear");
      metadata.Float32(prefix + "rope.scaling.factor", static_cast<float>(model.rotary.factor));
      return;
    case RotaryKind::kYarn:
      metadata.Text(prefix + "rope.scaling.type", "yarn");
      metadata.Float32(prefix + "rope.scaling.factor", static_cast<float>(model.rotary.factor));
      metadata.Uint32(prefix + "rope.scaling.original_context_length",
                      static_cast<std::uint32_t>(model.rotary.original_context));
      return;
    case RotaryKind::kDynamic:
    case RotaryKind::kNtkAlpha:
      break;
  }
  Refuse("the base scales its rotation with the length of the text");
}

GgufMetadata MetadataOf(const PlainModel& model, const BaseModelFiles& base,
                        const std::string& type, const std::string& name) {
  const std::string prefix = std::string(model.architecture->name) + ".";
  GgufMetadata metadata;
  metadata.Text("general.architecture", model.architecture->name);
  metadata.Text("general.name", name);
  metadata.Uint32("general.file_type", FileTypeOf(type));
  metadata.Uint32("general.quantization_version", 2);
  for (const char* key : {"general.license", "general.license.name", "general.license.link"}) {
    if (base.is_gguf && base.gguf_metadata.contains(key)) {
      metadata.Value(key, base.gguf_metadata[key]);
    }
  }
  const auto add = [&](const char* key, std::int64_t value) {
    metadata.Uint32(prefix + key, static_cast<std::uint32_t>(value));
  };
  add("block_count", static_cast<std::int64_t>(model.spec->layers.size()));
  add("context_length", model.spec->context_length);
  add("embedding_length", model.spec->hidden_size);
  add("feed_forward_length", model.mlp.intermediate);
  add("attention.head_count", model.attention.heads);
  add("attention.head_count_kv", model.attention.key_value_heads);
  add("attention.key_length", model.attention.head_dim);
  add("attention.value_length", model.attention.head_dim);
  add("vocab_size", model.spec->vocab_size);
  metadata.Float32(prefix + "attention.layer_norm_rms_epsilon",
                   static_cast<float>(model.spec->norm_epsilon));
  AddRotary(model, prefix, metadata);
  return metadata;
}

struct Job {
  GgufSlot slot;
  std::string source;  // the base's tensor; empty: rope_freqs.weight
};

std::vector<Job> JobsOf(const PlainModel& model, const BaseModelFiles& base,
                        const GgmlType& matrix_type) {
  std::vector<Job> jobs;
  for (const TensorInfo& info : base.tensors->List()) {
    if (model.spec->tied_head && info.name == model.spec->head_name + ".weight") continue;
    const auto name = GgufNameOf(*model.architecture, info.name);
    if (!name) Refuse("the base has the tensor '" + info.name + "'");
    const GgmlType* type = &matrix_type;
    if (info.shape.size() < 2) {
      type = FindGgmlType("F32");
    } else if (info.shape.back() % type->block_elements != 0) {
      type = FindGgmlType("F16");
    }
    jobs.push_back({{*name, info.shape, type}, info.name});
  }
  if (model.rotary.kind == RotaryKind::kLlama3) {
    jobs.push_back({{"rope_freqs.weight", {model.rotary.width / 2}, FindGgmlType("F32")}, ""});
  }
  return jobs;
}

at::Tensor Llama3Divisors(const RotarySpec& rotary) {
  const Llama3Scaling scaling{rotary.factor, rotary.low_frequency_factor,
                              rotary.high_frequency_factor,
                              static_cast<double>(rotary.original_context)};
  at::Tensor divisors = at::empty({rotary.width / 2}, at::TensorOptions().dtype(at::kFloat));
  for (std::int64_t i = 0; i < rotary.width / 2; ++i) {
    const double frequency =
        std::pow(rotary.theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotary.width));
    divisors.data_ptr<float>()[i] = static_cast<float>(Llama3Divisor(frequency, scaling));
  }
  return divisors;
}

bool IsRotated(const std::string& gguf_name) {
  return gguf_name.find(".attn_q.") != std::string::npos ||
         gguf_name.find(".attn_k.") != std::string::npos;
}

// Hugging Face's rows in the file's order.
at::Tensor PermuteRows(const at::Tensor& values, std::int64_t head_rows) {
  at::Tensor rows = at::empty({values.size(0)}, at::TensorOptions().dtype(at::kLong));
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    rows.data_ptr<std::int64_t>()[i] = UnpermutedRow(i, head_rows);
  }
  return values.index_select(0, rows);
}

}  // namespace

void WriteMergedGguf(const BaseModelFiles& base, const Decoder& decoder,
                     const AdapterByPath& adapters, const Tokenizer& tokenizer,
                     const std::string& path, const std::string& type, const std::string& name) {
  const at::NoGradGuard no_grad;
  const PlainModel model = Describe(decoder.spec());
  GgufMetadata metadata = MetadataOf(model, base, type, name);
  AddTokenizer(base, tokenizer, model.spec->vocab_size, metadata);
  const std::vector<Job> jobs = JobsOf(model, base, *FindGgmlType(type.c_str()));
  std::vector<GgufSlot> slots;
  for (const Job& job : jobs) slots.push_back(job.slot);
  GgufWriter writer(path, metadata, std::move(slots));
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const Job& job = jobs[i];
    at::Tensor values = job.source.empty() ? Llama3Divisors(model.rotary)
                                           : MergedTensor(base, adapters, job.source, at::kFloat);
    if (!at::isfinite(values).all().item<bool>()) {
      throw Error(Reason::kBadModel, "tensor '" + job.source + "' has values that are not finite.");
    }
    if (IsRotated(job.slot.name) && model.architecture->permutes_query_and_key) {
      values = PermuteRows(values, model.attention.head_dim);
    }
    writer.Write(i, values);
    base.tensors->Release(job.source);
  }
  writer.Finish();
}

void CheckGgufExport(const BaseModelFiles& base, const ArchSpec& spec, const Tokenizer* tokenizer,
                     const std::string& type) {
  const PlainModel model = Describe(spec);
  if (tokenizer == nullptr) {
    throw Error(Reason::kBadModel, base.path +
                                       ": has no tokenizer, and a GGUF file needs one inside; "
                                       "leave gguf out of publish.formats.");
  }
  GgufMetadata metadata = MetadataOf(model, base, type, "");
  AddTokenizer(base, *tokenizer, spec.vocab_size, metadata);
  JobsOf(model, base, *FindGgmlType(type.c_str()));
}

void WriteGgufAdapter(const ArchSpec& spec, const AdapterByPath& adapters, const std::string& path,
                      const std::string& name) {
  const at::NoGradGuard no_grad;
  const PlainModel model = Describe(spec);
  if (adapters.empty()) throw Error(Reason::kInternal, path + ": there is no adapter to write.");
  const LoraWeights& first = *adapters.begin()->second;
  const double alpha = first.scaling * static_cast<double>(first.a.size(0));
  GgufMetadata metadata;
  metadata.Text("general.architecture", model.architecture->name);
  metadata.Text("general.type", "adapter");
  metadata.Text("general.name", name);
  metadata.Uint32("general.file_type", FileTypeOf("F32"));
  metadata.Text("adapter.type", "lora");
  metadata.Float32("adapter.lora.alpha", static_cast<float>(alpha));
  std::vector<GgufSlot> slots;
  std::vector<at::Tensor> tensors;
  const auto add = [&](const std::string& tensor_name, at::Tensor tensor) {
    slots.push_back({tensor_name, tensor.sizes().vec(), FindGgmlType("F32")});
    tensors.push_back(std::move(tensor));
  };
  for (const auto& [module, weights] : adapters) {
    const auto tensor_name = GgufNameOf(*model.architecture, module + ".weight");
    if (!tensor_name) Refuse("the adapter changes '" + module + "'");
    const at::Tensor a = weights->a.to(at::kCPU, at::kFloat).contiguous();
    at::Tensor b = weights->b.to(at::kCPU, at::kFloat);
    b = b.mul(weights->scaling / (alpha / static_cast<double>(a.size(0)))).contiguous();
    if (IsRotated(*tensor_name) && model.architecture->permutes_query_and_key) {
      b = PermuteRows(b, model.attention.head_dim);
    }
    add(*tensor_name + ".lora_a", a);
    add(*tensor_name + ".lora_b", b);
  }
  GgufWriter writer(path, metadata, std::move(slots));
  for (std::size_t i = 0; i < tensors.size(); ++i) writer.Write(i, tensors[i]);
  writer.Finish();
}

}  // namespace offshoot::trainer
