// The differentiable operations the decoder is made of. Each is an autograd function with a
// hand-written backward pass that saves the least and recomputes the cheap; each works on packed
// rows (no padding), in float32 or bfloat16, on CPU or CUDA.
//
// Common shapes: T tokens of all rows back to back; H hidden; I in; O out; r rank; nh query heads;
// nk key/value heads (nh % nk == 0, query head h uses key head h / (nh / nk)); D head width.
// Activations have the base's dtype. Frozen weights never get a gradient. Adapter weights and
// their gradients are float32.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "trainer/ops/quantisation.h"

namespace offshoot::trainer {

// A frozen weight in the layout that its product wants. Immutable after it is made; shared by the
// layers that tie it.
class FrozenLinear {
 public:
  // weight [O, I] and bias [O] (or undefined) in the compute dtype; takes the tensors over.
  static std::shared_ptr<const FrozenLinear> Make(at::Tensor weight, at::Tensor bias = {});
  // Kept in 4 or 8 bits (quantisation.h); each product dequantises it piece by piece into memory of
  // its own, so that gradients are exact for the dequantised values. weight is on the CPU; dtype()
  // is its.
  static std::shared_ptr<const FrozenLinear> MakeQuantised(const at::Tensor& weight,
                                                           at::Tensor bias, Quantisation kind,
                                                           const at::Device& device = at::kCPU);
  // A weight that lies in a mapped file and that products pass piece by piece, each given back as
  // soon as it is done with: `release` takes a range of its bytes.
  using Release = std::function<void(std::size_t begin, std::size_t end)>;
  static std::shared_ptr<const FrozenLinear> MakePassing(at::Tensor weight, at::Tensor bias,
                                                         Release release);
  virtual ~FrozenLinear() = default;

  virtual std::int64_t in_features() const = 0;
  virtual std::int64_t out_features() const = 0;
  virtual at::ScalarType dtype() const = 0;
  virtual at::Tensor Weight() const = 0;  // [O, I]; may have to unpack: for merging and tests
  virtual at::Tensor Bias() const = 0;    // [O] or undefined
  // Weight() if products read it where it lies, or undefined.
  virtual at::Tensor InMemory() const = 0;
  // Weight() in pieces: `count` rows from `first`; of a quantised weight, from a multiple of
  // kRowStep. What a piece takes is given back with it.
  virtual at::Tensor Rows(std::int64_t first, std::int64_t count) const = 0;
  virtual std::int64_t rows_at_once() const = 0;
  // What the weight takes in memory while no product runs.
  virtual std::int64_t stored_bytes() const = 0;
  // x [T, I] -> [T, O], bias added. No autograd.
  at::Tensor Forward(const at::Tensor& x) const;
  // grad [T, O] -> [T, I]. No autograd.
  at::Tensor BackwardInput(const at::Tensor& grad) const;
};

// How the input of a linear layer is made again in the backward pass, so that it need not be kept:
// from tensors that are kept anyway. Bit for bit what it was.
struct Remake {
  enum class Kind { kNone, kNorm, kSwiGlu };
  Kind kind = Kind::kNone;
  std::vector<at::Tensor> sources;  // kNorm: what was normed, 1 / rms, weight; kSwiGlu: gate, up
};

// A LoRA pair: y += scaling * (dropout(x) A^T) B^T.
struct LoraWeights {
  at::Tensor a;  // float32 [r, I], a leaf that requires grad
  at::Tensor b;  // float32 [O, r]
  double scaling = 1.0;
  double dropout = 0.0;  // probability; 0 in evaluation
  std::uint64_t dropout_seed =
      0;  // names this module, step and micro-batch: the mask is recomputed in backward
  bool enabled = true;  // false: the base alone (evaluation of the base)
};

// x [T, I] -> [T, O]. adapter may be null.
at::Tensor LoraLinear(const at::Tensor& x, const std::shared_ptr<const FrozenLinear>& base,
                      const LoraWeights* adapter, const Remake& remake = {});

// Several layers that read the same x (query, key and value; gate and up): x is read once for all
// low-rank products and its gradient is written once. Element i of the result is what
// LoraLinear(x, members[i].base, members[i].adapter) gives.
struct LoraMember {
  std::shared_ptr<const FrozenLinear> base;
  const LoraWeights* adapter = nullptr;  // may be null; copied, need not outlive the call
  // The values of the result will not be looked at, only its gradient: none are computed.
  bool unread = false;
};
std::vector<at::Tensor> LoraLinearGroup(const at::Tensor& x, const std::vector<LoraMember>& members,
                                        const Remake& remake = {});

// x * rsqrt(mean(x^2) + eps) in float32, cast back to x's dtype, then times weight [last dim].
// x [..., n]; used for hidden states and for per-head norms.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// The residual sum and the norm of it in one pass: {sum = x + residual, RmsNorm(sum)}.
struct ResidualNorm {
  at::Tensor sum;     // [T, H]
  at::Tensor normed;  // [T, H]
  Remake remake;      // of normed
};
ResidualNorm ResidualRmsNorm(const at::Tensor& x, const at::Tensor& residual,
                             const at::Tensor& weight, double eps);

enum class RotaryPairing { kHalfSplit, kInterleaved };  // element i with i + d/2, or 2i with 2i + 1

// Rotates the first 2 * cos.size(1) elements of each head; the rest passes through.
// x [T, heads, D]; cos, sin float32 [T, d/2] (already gathered by position, attention factor in
// them).
at::Tensor Rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  RotaryPairing pairing);

// silu(gate) * up, elementwise; [T, I] each.
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);

// The tensor again, without autograd. `remake` says more than kNone.
at::Tensor MakeAgain(const Remake& remake);

// Causal attention inside each row: softmax in float32.
// q [T, nh, D], k [T, nk, D], v [T, nk, Dv] -> [T, nh, Dv]. row_offsets as in TokenBatch.
// window > 0: a query sees the last `window` keys only (itself among them).
at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::vector<std::int64_t>& row_offsets, double scale,
                           std::int64_t window = 0);

// Sum (not mean) of token losses over the rows with a label, in chunks: no [T, vocab] float32
// tensor is ever made, and the gradient to hidden is made in the same pass as the loss.
// hidden [T, H] (already normed), head [vocab, H], labels int64 [T] on the CPU, -100 (kIgnoredLabel)
// where none is.
// Returns a float32 scalar whose backward hands grad * d(sum)/d(hidden) on.
at::Tensor CrossEntropySum(const at::Tensor& hidden,
                           const std::shared_ptr<const FrozenLinear>& head,
                           const at::Tensor& labels);

// The same without autograd: float32 loss of each token, 0 where ignored. [T]
at::Tensor TokenLosses(const at::Tensor& hidden, const std::shared_ptr<const FrozenLinear>& head,
                       const at::Tensor& labels);

}  // namespace offshoot::trainer
