// The one decoder: every family is an ArchSpec (arch_spec.h) that drives it.
//
//   tokens ─ embedding ─▶ [ norm ─ attention ─ + ─ norm ─ feed-forward ─ + ] × layers ─ norm ─▶
//   hidden
//
// The weights are frozen and shared (several jobs may use one Decoder in one process); what is
// trained belongs to the Adapters that are passed in. Thread-safe: forward passes share only
// immutable weights. Parts: attention.h, feed_forward.h; loading: module_loader.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/data/token_batch.h"
#include "trainer/models/adapters.h"
#include "trainer/models/arch_spec.h"
#include "trainer/models/recomputed.h"
#include "trainer/ops/ops.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

struct DecoderOptions {
  at::ScalarType dtype = at::kFloat;
  std::string device = "cpu";
  // False: names and shapes are checked and modules listed, but no weight is read and Forward must
  // not be called (preflight).
  bool load_weights = true;
  // How the linear layers that LoRA can target are kept, experts among them; the embedding, the
  // head, norms and routers stay in `dtype`.
  Quantisation quantisation = Quantisation::kNone;
  // On a CPU the matrices that their file holds in `dtype` pass through memory, read from its
  // mapping for each product and given back: for a few passes over a model that may be larger than
  // what trained on it. Of a quantised base the embedding and the head always do.
  bool passing = false;
};

struct ForwardOptions {
  Recomputed recomputed = Recomputed::kNothing;
  std::uint64_t dropout_seed = 0;  // of this micro-batch; only read when training
  bool training = false;
  // Dynamic (NTK) rope depends on a sequence's length: 0 takes each row's own, so that a packed row
  // equals the row alone; a padded batch of transformers takes its padded width for every row.
  std::int64_t rotary_length = 0;
  // If not null and spec().router_loss_coefficient is above 0: receives the routers' auxiliary loss
  // of this batch, its coefficient in it (float32 scalar with autograd), to be added to the loss.
  at::Tensor* router_loss = nullptr;
};

// What LoRA presets tell apart. Routers, norms, the embedding and the head are no linear modules.
enum class ModuleGroup { kAttention, kMlp, kExpert };

// What a sequence leaves behind for its next tokens, per layer: keys and values, the latents of
// MLA, or the state of lightning attention. Made by Decoder::MakeCache; owned by one generation.
struct LayerCache {
  at::Tensor first, second;  // undefined while empty
};
struct DecoderCache {
  std::vector<LayerCache> layers;
  std::int64_t length = 0;  // tokens seen
};

class Decoder {
 public:
  // Loads tensor by tensor. All missing, extra and mis-shaped tensors are named in one
  // Error(kBadModel), before any weight is read.
  static std::unique_ptr<Decoder> Load(const BaseModelFiles& files, const DecoderOptions& options);
  virtual ~Decoder() = default;

  virtual const ArchSpec& spec() const = 0;
  // Final normed hidden states [T, H]; adapters may be null. The decoder and the adapters must
  // outlive the backward pass.
  virtual at::Tensor Forward(const TokenBatch& batch, const Adapters* adapters,
                             const ForwardOptions& options) const = 0;
  // The next tokens (int64 [n]) of the one sequence whose past is in the cache -> hidden [n, H].
  // No autograd.
  virtual at::Tensor Extend(const at::Tensor& tokens, const Adapters* adapters,
                            DecoderCache& cache) const = 0;
  virtual DecoderCache MakeCache() const = 0;
  virtual const std::shared_ptr<const FrozenLinear>& head() const = 0;
  // Every linear layer that LoRA can target, by its Hugging Face module path
  // (model.layers.0.self_attn.q_proj), in forward order.
  struct LinearModule {
    std::string path;
    std::shared_ptr<const FrozenLinear> base;  // null without weights
    std::int64_t in_features = 0;
    std::int64_t out_features = 0;
    ModuleGroup group = ModuleGroup::kAttention;
  };
  virtual const std::vector<LinearModule>& linear_modules() const = 0;
  // What all weights take in memory as they are kept; the same without weights.
  virtual std::int64_t weight_bytes() const = 0;
  // All weights together, in elements: for estimates of memory.
  virtual std::int64_t parameter_count() const = 0;
  virtual std::string device() const = 0;
};

}  // namespace offshoot::trainer
