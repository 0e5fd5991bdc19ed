// Every backward pass of this folder that is written by hand, against finite differences.
#include "trainer/ops/finite_difference.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/sin.h>
#include <gtest/gtest.h>

#include "trainer/data/token_batch.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

class FiniteDifferences : public testing::Test {
 protected:
  at::Tensor Leaf(at::IntArrayRef sizes) {
    return at::randn(sizes, generator_, at::TensorOptions(at::kFloat)).requires_grad_(true);
  }
  at::Tensor Fixed(at::IntArrayRef sizes) { return Leaf(sizes).detach(); }
  LoraWeights Adapter(std::int64_t rank, std::int64_t in, std::int64_t out, double dropout) {
    LoraWeights adapter;
    adapter.a = Leaf({rank, in});
    adapter.b = Leaf({out, rank});
    adapter.scaling = 0.7;
    adapter.dropout = dropout;
    adapter.dropout_seed = 5;
    return adapter;
  }
  at::Generator generator_ = at::detail::createCPUGenerator(7);
};

TEST_F(FiniteDifferences, LoraLinear) {
  for (const double dropout : {0.0, 0.3}) {
    const at::Tensor x = Leaf({9, 14});
    const auto base = FrozenLinear::Make(Fixed({11, 14}), Fixed({11}));
    const LoraWeights adapter = Adapter(3, 14, 11, dropout);
    ExpectFiniteDifferences([&] { return LoraLinear(x, base, &adapter); },
                            {x, adapter.a, adapter.b});
  }
}

TEST_F(FiniteDifferences, LoraLinearOnQuantisedBases) {
  for (const Quantisation kind : {Quantisation::kNf4, Quantisation::kInt8}) {
    const at::Tensor x = Leaf({9, 14});
    const auto base = FrozenLinear::MakeQuantised(Fixed({11, 14}), {}, kind);
    const LoraWeights adapter = Adapter(3, 14, 11, 0.0);
    ExpectFiniteDifferences([&] { return LoraLinear(x, base, &adapter); },
                            {x, adapter.a, adapter.b});
  }
}

TEST_F(FiniteDifferences, LoraLinearGroup) {
  const at::Tensor x = Leaf({6, 10});
  const LoraWeights first = Adapter(2, 10, 7, 0.0), last = Adapter(3, 10, 5, 0.0);
  const std::vector<LoraMember> members = {{FrozenLinear::Make(Fixed({7, 10})), &first},
                                           {FrozenLinear::Make(Fixed({4, 10})), nullptr},
                                           {FrozenLinear::Make(Fixed({5, 10})), &last}};
  ExpectFiniteDifferences([&] { return at::cat(LoraLinearGroup(x, members), 1); },
                          {x, first.a, first.b, last.a, last.b});
}

TEST_F(FiniteDifferences, Norms) {
  const at::Tensor x = Leaf({5, 12}), residual = Leaf({5, 12}), weight = Fixed({12});
  ExpectFiniteDifferences([&] { return RmsNorm(x, weight, 1e-5); }, {x});
  ExpectFiniteDifferences(
      [&] {
        const ResidualNorm both = ResidualRmsNorm(x, residual, weight, 1e-5);
        return at::cat({both.sum, both.normed}, 1);
      },
      {x, residual});
}

TEST_F(FiniteDifferences, Rotary) {
  const at::Tensor x = Leaf({4, 3, 10}), angles = Fixed({4, 3});
  for (const RotaryPairing pairing : {RotaryPairing::kHalfSplit, RotaryPairing::kInterleaved}) {
    ExpectFiniteDifferences([&] { return trainer::Rotary(x, angles.cos(), angles.sin(), pairing); },
                            {x});
  }
}

TEST_F(FiniteDifferences, SwiGlu) {
  const at::Tensor gate = Leaf({6, 9}), up = Leaf({6, 9});
  ExpectFiniteDifferences([&] { return trainer::SwiGlu(gate, up); }, {gate, up});
}

TEST_F(FiniteDifferences, CausalAttention) {
  const at::Tensor q = Leaf({12, 4, 6}), k = Leaf({12, 2, 6}), v = Leaf({12, 2, 5});
  for (const std::int64_t window : {0, 3}) {
    ExpectFiniteDifferences(
        [&] {
          return trainer::CausalAttention(q, k, v, {0, 1, 8, 12}, 0.4, window);
        },
        {q, k, v});
  }
}

TEST_F(FiniteDifferences, CrossEntropySum) {
  const at::Tensor hidden = Leaf({7, 8});
  const auto head = FrozenLinear::Make(Fixed({13, 8}));
  at::Tensor labels = at::arange(7, at::kLong);
  labels[2] = kIgnoredLabel;
  ExpectFiniteDifferences([&] { return trainer::CrossEntropySum(hidden, head, labels); }, {hidden});
}

}  // namespace
}  // namespace offshoot::trainer
