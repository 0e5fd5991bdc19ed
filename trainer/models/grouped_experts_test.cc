#include "trainer/models/grouped_experts.h"

#include <ATen/Context.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <map>

#include "trainer/ops/dropout.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kHidden = 12;
constexpr std::int64_t kInner = 8;
constexpr std::int64_t kExperts = 5;
constexpr std::int64_t kTokens = 9;

class SomeAdapters final : public Adapters {
 public:
  const LoraWeights* Find(std::size_t module) const override {
    const auto found = weights.find(module);
    return found == weights.end() ? nullptr : &found->second;
  }
  std::map<std::size_t, LoraWeights> weights;
};

class GroupedExpertsTest : public testing::Test {
 protected:
  GroupedExpertsTest() {
    at::manual_seed(3);
    for (std::int64_t e = 0; e < kExperts; ++e) {
      experts_.push_back(
          {Matrix(kHidden, kInner), Matrix(kHidden, kInner), Matrix(kInner, kHidden)});
    }
    x_ = at::randn({kTokens, kHidden}).requires_grad_(true);
    weights_ = at::softmax(at::randn({kTokens, 2}), -1).detach().requires_grad_(true);
    // Expert 3 has no work; expert 0 has most of it.
    choice_ =
        at::tensor(std::vector<std::int64_t>{0, 1, 0, 2, 4, 0, 0, 1, 2, 0, 0, 4, 1, 0, 0, 2, 4, 1},
                   at::kLong)
            .view({kTokens, 2});
    context_.adapters = &adapters_;
  }

  Projection Matrix(std::int64_t in, std::int64_t out) {
    return {FrozenLinear::Make(at::randn({out, in}).div(3.0)), modules_++};
  }
  void Adapt(std::size_t module, double dropout = 0.0) {
    const FrozenLinear& base = *Base(module);
    LoraWeights weights;
    weights.a = at::randn({3, base.in_features()}).div(3.0).requires_grad_(true);
    weights.b = at::randn({base.out_features(), 3}).div(3.0).requires_grad_(true);
    weights.scaling = 1.5;
    weights.dropout = dropout;
    adapters_.weights[module] = weights;
  }
  const FrozenLinear* Base(std::size_t module) const {
    const Expert& expert = experts_[module / 3];
    return (module % 3 == 0 ? expert.gate : module % 3 == 1 ? expert.up : expert.down).base.get();
  }

  // y = x W^T + scaling * x A^T B^T, with stock operations.
  at::Tensor Plain(const at::Tensor& x, std::size_t module) const {
    at::Tensor y = x.matmul(Base(module)->Weight().t());
    const LoraWeights* adapter = adapters_.Find(module);
    return adapter == nullptr
               ? y
               : y.add(x.matmul(adapter->a.t()).matmul(adapter->b.t()).mul(adapter->scaling));
  }
  // Token by token.
  at::Tensor Reference() const {
    at::Tensor out = at::zeros({kTokens, kHidden});
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t j = 0; j < 2; ++j) {
        const auto first = static_cast<std::size_t>(choice_[t][j].item<std::int64_t>()) * 3;
        const at::Tensor row = x_.slice(0, t, t + 1);
        const at::Tensor h = at::silu(Plain(row, first)).mul(Plain(row, first + 1));
        const at::Tensor y = Plain(h, first + 2).mul(weights_[t][j]);
        out = out.index_add(0, at::tensor(std::vector<std::int64_t>{t}, at::kLong), y);
      }
    }
    return out;
  }
  at::Tensor Grouped() const { return RunExperts(experts_, x_, choice_, weights_, context_); }

  std::vector<at::Tensor> Leaves() const {
    std::vector<at::Tensor> leaves = {x_, weights_};
    for (const auto& [module, adapter] : adapters_.weights) {
      leaves.push_back(adapter.a);
      leaves.push_back(adapter.b);
    }
    return leaves;
  }
  std::vector<at::Tensor> GradientsOf(const at::Tensor& output, const at::Tensor& upstream) const {
    for (at::Tensor leaf : Leaves()) leaf.mutable_grad().reset();
    output.mul(upstream).sum().backward();
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& leaf : Leaves()) gradients.push_back(leaf.grad());
    return gradients;
  }

  std::size_t modules_ = 0;
  std::vector<Expert> experts_;
  SomeAdapters adapters_;
  ForwardContext context_;
  at::Tensor x_, weights_, choice_;
};

TEST_F(GroupedExpertsTest, Output_EqualsTokenByToken) {
  for (std::size_t module = 0; module < 9; ++module) Adapt(module);
  EXPECT_TRUE(Grouped().allclose(Reference(), 1e-4, 1e-5));
}

TEST_F(GroupedExpertsTest, Gradients_EqualTokenByToken) {
  for (const std::size_t module : {0U, 1U, 2U, 4U, 8U, 9U, 12U}) Adapt(module);
  const at::Tensor upstream = at::randn({kTokens, kHidden});
  const std::vector<at::Tensor> expected = GradientsOf(Reference(), upstream);
  const std::vector<at::Tensor> found = GradientsOf(Grouped(), upstream);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(found[i].defined(), expected[i].defined()) << i;
    if (!found[i].defined()) continue;  // expert 3's adapter: no token, no gradient
    EXPECT_TRUE(found[i].allclose(expected[i], 1e-3, 1e-4)) << i;
  }
}

TEST_F(GroupedExpertsTest, GradientsWithDropout_EqualFiniteDifferences) {
  for (std::size_t module = 0; module < 15; ++module) Adapt(module, 0.3);
  context_.training = true;
  context_.dropout_seed = 9;
  const at::Tensor upstream = at::randn({kTokens, kHidden});
  const std::vector<at::Tensor> gradients = GradientsOf(Grouped(), upstream);
  const std::vector<at::Tensor> leaves = Leaves();
  constexpr double kStep = 1e-2;  // float32: large, and the function is smooth
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (!gradients[i].defined()) continue;
    at::Tensor flat = leaves[i].detach().view({-1});
    const std::int64_t index = flat.numel() / 2;
    const float value = flat[index].item<float>();
    flat[index] = value + kStep;
    const double above = Grouped().mul(upstream).sum().item<double>();
    flat[index] = value - kStep;
    const double below = Grouped().mul(upstream).sum().item<double>();
    flat[index] = value;
    const double expected = (above - below) / (2 * kStep);
    EXPECT_NEAR(gradients[i].view({-1})[index].item<double>(), expected,
                2e-2 * (1.0 + std::abs(expected)))
        << "leaf " << i;
  }
}

}  // namespace
}  // namespace offshoot::trainer
