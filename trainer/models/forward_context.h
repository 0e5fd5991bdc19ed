// What one forward pass hands to every part of the decoder, and a linear module as the parts use
// it. A context is immutable once made; it lives until the backward pass is over.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "trainer/data/token_batch.h"
#include "trainer/models/adapters.h"
#include "trainer/models/rotary.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {

struct ForwardContext {
  std::vector<std::int64_t> row_offsets;
  std::vector<RotaryTables> rotaries;  // as ArchSpec::rotaries
  const Adapters* adapters = nullptr;
  bool training = false;
  std::uint64_t dropout_seed = 0;
  bool router_statistics = false;  // the routers' auxiliary loss is wanted
  // A part is computed again for its gradients: what its last layer gives is not looked at.
  bool result_unread = false;
};

// Names the dropout mask of one module in one micro-batch (splitmix64 of both).
std::uint64_t ModuleDropoutSeed(std::uint64_t dropout_seed, std::size_t module);

// The module's adapter as this pass uses it: with its dropout seed, and without dropout outside
// training. False if it has none.
bool FindAdapter(const ForwardContext& context, std::size_t module, LoraWeights& adapter);

// What a part of the decoder reads, and how to make it again, if anything says that.
struct LayerInput {
  LayerInput(at::Tensor tensor, Remake again = {})  // NOLINT(google-explicit-constructor)
      : value(std::move(tensor)), remake(std::move(again)) {}
  at::Tensor value;  // [T, width]
  Remake remake;
};

// One frozen linear layer with the place of its adapter.
struct Projection {
  std::shared_ptr<const FrozenLinear> base;
  std::size_t module = 0;

  // x [T, in] -> [T, out]
  at::Tensor Apply(const LayerInput& x, const ForwardContext& context) const;
  // The same where nothing follows in the part but the residual sum.
  at::Tensor ApplyLast(const LayerInput& x, const ForwardContext& context) const;
};

// What each projection gives for the same x, computed together (LoraLinearGroup).
std::vector<at::Tensor> ApplyTogether(const std::vector<const Projection*>& projections,
                                      const LayerInput& x, const ForwardContext& context);

}  // namespace offshoot::trainer
