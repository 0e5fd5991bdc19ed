// From GGUF's names to Hugging Face's: one table of architectures (gguf_families.cc), each with its
// tensor names, its configuration keys and what llama.cpp takes for granted of it. Adding an
// architecture is adding a row (and its tensor names). Pure; thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>

#include "trainer/weights/gguf.h"

namespace offshoot::trainer {

class GgufKeys;

// Without ".weight" or ".bias", unless the two sides end differently.
struct GgufName {
  const char* gguf;          // with one %d for the layer, or none
  const char* hugging_face;  // likewise; with %e for the expert where GGUF stacks all of a layer
};

enum class GgufExperts {
  kNone,
  kEveryLayer,   // in every layer
  kInterleaved,  // from leading_dense_block_count on, in every interleave_moe_layer_step-th layer
  kAfterDense,   // from leading_dense_block_count on
};

// How llama.cpp's graph turns a router's scores into weights.
enum class GgufRouting {
  kSoftmax,  // over all experts; the chosen ones' weights sum to 1
  kNamed,    // as metadata says: expert_gating_func, groups, expert_weights_norm and _scale
};

struct GgufArchitecture {
  const char* name;        // general.architecture
  const char* model_type;  // config.json's
  const char* class_name;  // config.json's architectures[0]
  std::span<const GgufName> names;
  // Adds the keys of config.json that only this family has.
  void (*add_config)(const GgufKeys& keys, nlohmann::json& config);
  // llama.cpp's graph of the others has no place for biases of projections.
  bool has_biases = false;
  GgufExperts experts = GgufExperts::kNone;
  GgufRouting routing = GgufRouting::kSoftmax;
  // Multi-head latent attention: kv_b_proj is stored as attn_k_b and attn_v_b (JoinLatent), and an
  // adapter file has no effect on the graph.
  bool latent_attention = false;
  // Hugging Face has the routers' correction (exp_probs_b.bias) as a matrix of one row.
  bool correction_is_row = false;
  // llama.cpp rotates neighbouring elements, Hugging Face halves: the q and k rows of these
  // architectures were permuted when the file was made and are put back on load.
  bool permutes_query_and_key = false;
  // head_dim may be taken from rope.dimension_count.
  bool head_width_is_rope_width = false;
};

// Throws Error(kBadModel) naming an architecture that is not in the table, with those that are.
const GgufArchitecture& FindGgufArchitecture(const nlohmann::json& metadata,
                                             const std::string& path);

// blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; nullopt for a name the
// architecture does not have. The name of stacked experts keeps its %e: see ExpertName.
std::optional<std::string> HuggingFaceName(const GgufArchitecture& architecture,
                                           const std::string& gguf_name);
// Puts the number of the expert into a name with %e; nullopt for a name without.
std::optional<std::string> ExpertName(const std::string& name, std::int64_t expert);

// Where a Hugging Face tensor lies: a GGUF tensor, or one of the experts stacked in it (-1: none).
struct GgufPlace {
  std::string name;
  std::int64_t expert = -1;
  bool operator==(const GgufPlace&) const = default;
};
std::optional<GgufPlace> GgufPlaceOf(const GgufArchitecture& architecture,
                                     const std::string& hugging_face_name);

// Null if there is none; GgufModelTypes lists those that there are.
const GgufArchitecture* FindGgufArchitectureByModelType(const std::string& model_type);
std::string GgufModelTypes();

// One row for each model_type; of two with one architecture the first is the one that is read.
std::span<const GgufArchitecture> GgufArchitectures();

// Rows of a permuted head stand as (i, half) in the file; Hugging Face has them as (half, i). The
// row of the Hugging Face tensor that row `source` of the file is; head_rows is even.
std::int64_t UnpermutedRow(std::int64_t source, std::int64_t head_rows);

// Of latent attention, kv_b_proj [heads * (plain + value), rank] holds each head's keys above its
// values; the file has the keys transposed, [heads, rank, plain], and the values, [heads, value,
// rank] (llama.cpp's conversion/deepseek.py). JoinLatent makes the one of the two.
constexpr char kLatentJoined[] = ".attn_kv_b.", kLatentKeys[] = ".attn_k_b.",
               kLatentValues[] = ".attn_v_b.";
at::Tensor JoinLatent(const at::Tensor& keys, const at::Tensor& values);

// Llama 3's rope scaling, as a divisor of each frequency: what rope_freqs.weight holds
// (llama.cpp's convert_hf_to_gguf.py), from the formula of transformers'
// _compute_llama3_parameters. frequency: theta^(-2i / width), in radians a token.
struct Llama3Scaling {
  double factor = 1;
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  double original_positions = 8192;
};
double Llama3Divisor(double frequency, const Llama3Scaling& scaling);

// config.json as the original model has it, from metadata and tensor shapes. Throws
// Error(kBadModel) naming a key that is missing or has an implausible value, a rope scaling that is
// not understood, and the like.
nlohmann::json MakeConfig(const GgufArchitecture& architecture, const GgufFile& file);

// The token ids that config.json and generation_config.json name, from tokenizer.ggml.*.
nlohmann::json MakeGenerationConfig(const nlohmann::json& metadata);

}  // namespace offshoot::trainer
