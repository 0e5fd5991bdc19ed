#include "trainer/export/gguf_export.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <regex>
#include <utility>
#include <variant>
#include <vector>

#include "trainer/error.h"
#include "trainer/export/gguf_settings.h"
#include "trainer/export/gguf_tokenizer.h"
#include "trainer/weights/gguf_architectures.h"
#include "trainer/weights/gguf_writer.h"
#include "trainer/weights/passing.h"

namespace offshoot::trainer {
namespace {

struct GgufJob {
  GgufSlot slot;
  // The base's tensors: one, or each expert's; none: rope_freqs.weight.
  std::vector<std::string> sources;
  bool experts = false;
};

const GgmlType& StoredType(const std::string& gguf_name, const std::vector<std::int64_t>& shape,
                           const GgmlType& matrix_type) {
  // llama.cpp keeps routers in float32.
  const bool router = gguf_name.find(".ffn_gate_inp.") != std::string::npos;
  if (shape.size() < 2 || router) return *FindGgmlType("F32");
  return shape.back() % matrix_type.block_elements == 0 ? matrix_type : *FindGgmlType("F16");
}

// kv_b_proj as its keys and values, each from the whole of it.
void AddLatentJobs(const LatentAttentionSpec& latent, const std::string& joined,
                   const TensorInfo& info, const GgmlType& matrix_type,
                   std::vector<GgufJob>& jobs) {
  const auto add = [&](const char* part, std::vector<std::int64_t> shape) {
    std::string name = joined;
    name.replace(name.find(kLatentJoined), std::strlen(kLatentJoined), part);
    const GgmlType& type = StoredType(name, shape, matrix_type);
    jobs.push_back({{std::move(name), std::move(shape), &type}, {info.name}});
  };
  add(kLatentKeys, {latent.heads, latent.key_value_rank, latent.plain_dim});
  add(kLatentValues, {latent.heads, latent.value_dim, latent.key_value_rank});
}

at::Tensor LatentPart(const LatentAttentionSpec& latent, const at::Tensor& joined, bool keys) {
  const at::Tensor heads = joined.unflatten(0, {latent.heads, latent.plain_dim + latent.value_dim});
  return keys ? heads.narrow(1, 0, latent.plain_dim).transpose(1, 2).contiguous()
              : heads.narrow(1, latent.plain_dim, latent.value_dim).contiguous();
}

std::vector<GgufJob> JobsOf(const GgufModel& model, const BaseModelFiles& base,
                            const GgmlType& matrix_type) {
  std::vector<GgufJob> jobs;
  std::map<std::string, std::size_t> stacks;
  const std::vector<std::regex> ignored(model.spec->ignored_tensors.begin(),
                                        model.spec->ignored_tensors.end());
  for (const TensorInfo& info : base.tensors->List()) {
    if (model.spec->tied_head && info.name == model.spec->head_name + ".weight") continue;
    if (std::any_of(ignored.begin(), ignored.end(), [&](const std::regex& pattern) {
          return std::regex_match(info.name, pattern);
        })) {
      continue;
    }
    const auto place = GgufPlaceOf(*model.architecture, info.name);
    const std::int64_t experts = model.moe ? model.moe->router.experts : 0;
    if (!place || place->expert >= experts) {
      RefuseGguf("the base has the tensor '" + info.name + "'");
    }
    std::vector<std::int64_t> shape = info.shape;
    if (model.architecture->correction_is_row && place->name.ends_with(".exp_probs_b.bias")) {
      shape = {shape.back()};
    }
    if (place->name.find(kLatentJoined) != std::string::npos) {
      AddLatentJobs(std::get<LatentAttentionSpec>(model.attention), place->name, info, matrix_type,
                    jobs);
      continue;
    }
    if (place->expert < 0) {
      const GgmlType& type = StoredType(place->name, shape, matrix_type);
      jobs.push_back({{place->name, std::move(shape), &type}, {info.name}});
      continue;
    }
    const auto [stack, is_new] = stacks.emplace(place->name, jobs.size());
    if (is_new) {
      shape.insert(shape.begin(), experts);
      const GgmlType& type = StoredType(place->name, shape, matrix_type);
      jobs.push_back({{place->name, std::move(shape), &type},
                      std::vector<std::string>(static_cast<std::size_t>(experts)),
                      /*experts=*/true});
    }
    jobs[stack->second].sources[static_cast<std::size_t>(place->expert)] = info.name;
  }
  if (model.rotary.kind == RotaryKind::kLlama3) {
    jobs.push_back({{"rope_freqs.weight", {model.rotary.width / 2}, FindGgmlType("F32")}, {}});
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

at::Tensor CheckedFinite(at::Tensor values, const std::string& name) {
  if (!at::isfinite(values).all().item<bool>()) {
    throw Error(Reason::kBadModel, "tensor '" + name + "' has values that are not finite.");
  }
  return values;
}

// A matrix that stays as it is goes strip by strip from its file's mapping to the new file: an
// embedding in float32 may be more than a model in few bits. False if it must be converted whole.
bool WriteInStrips(const BaseModelFiles& base, const AdapterByPath& adapters, const GgufJob& job,
                   std::size_t slot, GgufWriter& writer) {
  if (job.sources.size() != 1 || job.experts || job.slot.shape.size() != 2) return false;
  const std::string& name = job.sources[0];
  const std::string suffix = ".weight";
  if (name.ends_with(suffix) && adapters.contains(name.substr(0, name.size() - suffix.size()))) {
    return false;
  }
  for (const at::ScalarType stored : {at::kBFloat16, at::kHalf, at::kFloat}) {
    const PageRelease release = base.tensors->ReleaseOf(name, stored);
    if (!release) continue;
    const at::Tensor values = base.tensors->Load(name, stored);
    VisitPieces(values, release, [&](std::int64_t first, const at::Tensor& rows) {
      writer.WriteRows(slot, first, CheckedFinite(rows.to(at::kFloat), name));
    });
    return true;
  }
  return false;
}

// One LoRA pair of a GGUF tensor: a [rank, in], b [out, rank]; of experts one above the other.
struct GgufPair {
  at::Tensor a, b;
};

// B takes what the module's scaling is more than alpha / rank.
GgufPair PairOf(const LoraWeights& weights, double alpha, std::int64_t rank) {
  const at::Tensor a = weights.a.to(at::kCPU, at::kFloat);
  const at::Tensor b = weights.b.to(at::kCPU, at::kFloat);
  GgufPair pair{at::zeros({rank, a.size(1)}, a.options()),
                at::zeros({b.size(0), rank}, b.options())};
  pair.a.narrow(0, 0, a.size(0)).copy_(a);
  pair.b.narrow(1, 0, b.size(1))
      .copy_(b.mul(weights.scaling / (alpha / static_cast<double>(rank))));
  return pair;
}

// Experts without an adapter, and ranks below the largest, are zeros.
GgufPair StackExperts(const std::map<std::int64_t, const LoraWeights*>& experts, std::int64_t count,
                      double alpha) {
  std::int64_t rank = 0;
  for (const auto& [expert, weights] : experts) rank = std::max(rank, weights->a.size(0));
  const LoraWeights& first = *experts.begin()->second;
  const at::TensorOptions floats = at::TensorOptions().dtype(at::kFloat);
  GgufPair stack{at::zeros({count, rank, first.a.size(1)}, floats),
                 at::zeros({count, first.b.size(0), rank}, floats)};
  for (const auto& [expert, weights] : experts) {
    const GgufPair pair = PairOf(*weights, alpha, rank);
    stack.a[expert].copy_(pair.a);
    stack.b[expert].copy_(pair.b);
  }
  return stack;
}

}  // namespace

void WriteMergedGguf(const BaseModelFiles& base, const Decoder& decoder,
                     const AdapterByPath& adapters, const Tokenizer& tokenizer,
                     const std::string& path, const std::string& type, const std::string& name) {
  const at::NoGradGuard no_grad;
  const GgufModel model = DescribeForGguf(decoder.spec());
  GgufMetadata metadata = GgufSettings(model, base, type, name);
  AddTokenizer(base, tokenizer, model.spec->vocab_size, metadata);
  const std::vector<GgufJob> jobs = JobsOf(model, base, *FindGgmlType(type.c_str()));
  std::vector<GgufSlot> slots;
  for (const GgufJob& job : jobs) slots.push_back(job.slot);
  GgufWriter writer(path, metadata, std::move(slots));
  const auto merged = [&](const std::string& source) {
    return CheckedFinite(MergedTensor(base, adapters, source, at::kFloat), source);
  };
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const GgufJob& job = jobs[i];
    if (job.experts) {
      for (std::size_t expert = 0; expert < job.sources.size(); ++expert) {
        writer.WritePart(i, static_cast<std::int64_t>(expert), merged(job.sources[expert]));
        base.tensors->Release(job.sources[expert]);
      }
      continue;
    }
    const bool permuted = IsRotated(job.slot.name) && model.architecture->permutes_query_and_key;
    if (!permuted && WriteInStrips(base, adapters, job, i, writer)) continue;
    at::Tensor values = job.sources.empty() ? Llama3Divisors(model.rotary) : merged(job.sources[0]);
    if (permuted) {
      values = PermuteRows(values, std::get<SoftmaxAttentionSpec>(model.attention).head_dim);
    }
    const bool keys = job.slot.name.find(kLatentKeys) != std::string::npos;
    if (keys || job.slot.name.find(kLatentValues) != std::string::npos) {
      values = LatentPart(std::get<LatentAttentionSpec>(model.attention), values, keys);
    }
    writer.Write(i, values.reshape(job.slot.shape));
    if (!job.sources.empty()) base.tensors->Release(job.sources[0]);
  }
  writer.Finish();
}

void CheckGgufExport(const BaseModelFiles& base, const ArchSpec& spec, const Tokenizer* tokenizer,
                     const std::string& type) {
  const GgufModel model = DescribeForGguf(spec);
  if (tokenizer == nullptr) {
    throw Error(Reason::kBadModel, base.path +
                                       ": has no tokenizer, and a GGUF file needs one inside; "
                                       "leave gguf out of publish.formats.");
  }
  GgufMetadata metadata = GgufSettings(model, base, type, "");
  AddTokenizer(base, *tokenizer, spec.vocab_size, metadata);
  JobsOf(model, base, *FindGgmlType(type.c_str()));
}

bool HasGgufAdapter(const ArchSpec& spec) {
  return !DescribeForGguf(spec).architecture->latent_attention;
}

void WriteGgufAdapter(const ArchSpec& spec, const AdapterByPath& adapters, const std::string& path,
                      const std::string& name) {
  const at::NoGradGuard no_grad;
  const GgufModel model = DescribeForGguf(spec);
  if (adapters.empty() || model.architecture->latent_attention) {
    throw Error(Reason::kInternal, path + ": there is no adapter to write.");
  }
  const LoraWeights& first = *adapters.begin()->second;
  const double alpha = first.scaling * static_cast<double>(first.a.size(0));
  GgufMetadata metadata;
  metadata.Text("general.architecture", model.architecture->name);
  metadata.Text("general.type", "adapter");
  metadata.Text("general.name", name);
  metadata.Uint32("general.file_type", GgufFileType("F32"));
  metadata.Text("adapter.type", "lora");
  metadata.Float32("adapter.lora.alpha", static_cast<float>(alpha));
  std::vector<GgufSlot> slots;
  std::vector<at::Tensor> tensors;
  const auto add = [&](const std::string& tensor_name, at::Tensor tensor) {
    slots.push_back({tensor_name, tensor.sizes().vec(), FindGgmlType("F32")});
    tensors.push_back(std::move(tensor));
  };
  std::map<std::string, std::map<std::int64_t, const LoraWeights*>> stacks;
  for (const auto& [module, weights] : adapters) {
    const auto place = GgufPlaceOf(*model.architecture, module + ".weight");
    if (!place) RefuseGguf("the adapter changes '" + module + "'");
    if (place->expert >= 0) {
      stacks[place->name][place->expert] = weights;
      continue;
    }
    GgufPair pair = PairOf(*weights, alpha, weights->a.size(0));
    if (IsRotated(place->name) && model.architecture->permutes_query_and_key) {
      pair.b = PermuteRows(pair.b, std::get<SoftmaxAttentionSpec>(model.attention).head_dim);
    }
    add(place->name + ".lora_a", pair.a);
    add(place->name + ".lora_b", pair.b);
  }
  for (const auto& [name_of_stack, experts] : stacks) {
    const GgufPair pair = StackExperts(experts, model.moe->router.experts, alpha);
    add(name_of_stack + ".lora_a", pair.a);
    add(name_of_stack + ".lora_b", pair.b);
  }
  GgufWriter writer(path, metadata, std::move(slots));
  for (std::size_t i = 0; i < tensors.size(); ++i) writer.Write(i, tensors[i]);
  writer.Finish();
}

}  // namespace offshoot::trainer
