// What a model is, as a plain value: one entry per layer, no weights. A family file
// (families/<model_type>.cc) makes it from config.json; the decoder is built from it. Immutable
// once made; copyable; comparable by eye in a test.
//
// A new kind of attention or feed-forward part is a new alternative of the variants below and a
// file that implements it, never a condition in the decoder.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "trainer/ops/ops.h"

namespace offshoot::trainer {

// ---- rotary position embedding -------------------------------------------------------------

enum class RotaryKind {
  kDefault,   // f_i = theta^(-2i/width)
  kLinear,    // f_i / factor
  kDynamic,   // theta grows with the row's length beyond original_context (NTK)
  kNtkAlpha,  // theta' = theta * alpha^(width / (width - 2)), whatever the length
  kLlama3,
  kYarn,
};

struct RotarySpec {
  RotaryKind kind = RotaryKind::kDefault;
  std::int64_t width = 0;  // rotated elements of a head, from its first; even
  RotaryPairing pairing = RotaryPairing::kHalfSplit;
  double theta = 10000.0;
  double factor = 1.0;
  double alpha = 1.0;                  // kNtkAlpha
  std::int64_t original_context = 0;   // tokens: kDynamic, kLlama3, kYarn
  double low_frequency_factor = 1.0;   // kLlama3
  double high_frequency_factor = 4.0;  // kLlama3
  double beta_fast = 32.0;             // kYarn
  double beta_slow = 1.0;              // kYarn
  bool truncate = true;                // kYarn: whole dimensions as bounds of the ramp
  double attention_factor = 1.0;       // multiplies cos and sin
  bool operator==(const RotarySpec&) const = default;
};

// ---- attention ------------------------------------------------------------------------------

enum class HeadNorm { kNone, kBeforeRotary, kAfterRotary };  // RMS norm of each query and key head

// Grouped-query softmax attention.
struct SoftmaxAttentionSpec {
  std::string path;  // module path below the layer, "self_attn"
  std::int64_t heads = 0;
  std::int64_t key_value_heads = 0;
  std::int64_t head_dim = 0;
  bool query_key_value_bias = false;
  bool output_bias = false;
  HeadNorm head_norm = HeadNorm::kNone;
  std::string query_norm_name, key_norm_name;  // below path; with head_norm only
  double head_norm_epsilon = 1e-6;
  int rotary = -1;          // index into ArchSpec::rotaries; -1: none
  double scale = 1.0;       // of q.k
  std::int64_t window = 0;  // keys a query sees, itself among them; 0: all
};

// Multi-head latent attention (DeepSeek-V3): queries and keys/values pass through low-rank latents;
// one rotated key part is shared by all heads.
struct LatentAttentionSpec {
  std::string path;
  std::int64_t heads = 0;
  std::int64_t query_rank = 0;  // 0: one q_proj instead of q_a_proj and q_b_proj
  std::int64_t key_value_rank = 0;
  std::int64_t plain_dim = 0;   // of a query or key head without position ("nope")
  std::int64_t rotary_dim = 0;  // of a query or key head with position
  std::int64_t value_dim = 0;
  bool bias = false;  // on q_a_proj, kv_a_proj_with_mqa and o_proj
  double norm_epsilon = 1e-6;
  int rotary = 0;
  double scale = 1.0;
};

// Lightning attention (MiniMax): linear attention with a decay per head, gated at the output.
struct LightningAttentionSpec {
  std::string path;
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::vector<double> decay;  // per head: exp(-decay * distance)
  double norm_epsilon = 1e-6;
};

using AttentionSpec =
    std::variant<SoftmaxAttentionSpec, LatentAttentionSpec, LightningAttentionSpec>;

// ---- feed-forward ---------------------------------------------------------------------------

// down(silu(gate(x)) * up(x))
struct DenseMlpSpec {
  std::string path;  // "mlp"
  std::int64_t intermediate = 0;
  bool bias = false;
};

enum class RouterScore { kSoftmax, kSigmoid };

struct RouterSpec {
  std::string weight_name;      // [experts, hidden], below the layer
  std::string correction_name;  // added to the scores for the choice only; empty: none
  RouterScore score = RouterScore::kSoftmax;
  bool float32_product = false;  // inputs and weight widened before the product
  std::int64_t experts = 0;
  std::int64_t chosen = 0;  // experts per token
  std::int64_t groups = 1;  // consecutive groups of experts, ranked by their best two
  std::int64_t chosen_groups = 1;
  bool normalize = true;           // the chosen weights sum to 1
  double normalize_minimum = 0.0;  // the sum is at least this ...
  double normalize_addend = 0.0;   // ... and has this added
  double scaling = 1.0;
};

struct MoeSpec {
  std::string experts_path;  // "mlp.experts"
  std::string gate_name = "gate_proj", up_name = "up_proj", down_name = "down_proj";
  std::int64_t intermediate = 0;
  RouterSpec router;
  std::vector<DenseMlpSpec> shared;  // at most one; unweighted
};

using FeedForwardSpec = std::variant<DenseMlpSpec, MoeSpec>;

// ---- layers and the whole -------------------------------------------------------------------

// x' = skip * (from_normed ? norm(x) : x) + branch * part(norm(x))
struct ResidualSpec {
  bool from_normed = false;
  double skip = 1.0;
  double branch = 1.0;
  bool plain() const { return !from_normed && skip == 1.0 && branch == 1.0; }
};

struct LayerSpec {
  AttentionSpec attention;
  FeedForwardSpec feed_forward;
  ResidualSpec attention_residual, feed_forward_residual;
  std::string attention_norm_name = "input_layernorm";
  std::string feed_forward_norm_name = "post_attention_layernorm";
};

struct ArchSpec {
  std::string model_type;
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  double norm_epsilon = 1e-6;
  std::int64_t context_length = 0;  // max_position_embeddings; 0 if the config does not say
  bool tied_head = false;
  bool head_bias = false;
  // Of a family with routed experts, even if no layer of this config has any.
  bool mixture = false;
  std::vector<RotarySpec> rotaries;
  std::vector<LayerSpec> layers;
  std::string embedding_name = "model.embed_tokens";
  std::string layers_path = "model.layers";
  std::string final_norm_name = "model.norm";
  std::string head_name = "lm_head";
  // Tensors that published files carry and the model does not use: regular expressions over the
  // whole name.
  std::vector<std::string> ignored_tensors;
  // The auxiliary loss of the routers is coefficient * experts * sum_e F_e P_e; 0: none.
  double router_loss_coefficient = 0.0;
};

}  // namespace offshoot::trainer
