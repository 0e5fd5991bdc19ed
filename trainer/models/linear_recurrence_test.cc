#include "trainer/models/linear_recurrence.h"

#include <ATen/Context.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "trainer/ops/finite_difference.h"

namespace offshoot::trainer {
namespace {

struct Inputs {
  at::Tensor q, k, v, decay;
};

Inputs RandomInputs(std::int64_t tokens) {
  constexpr std::int64_t kHeads = 3;
  constexpr std::int64_t kWidth = 5;
  return {at::randn({tokens, kHeads, kWidth}), at::randn({tokens, kHeads, kWidth}),
          at::randn({tokens, kHeads, kWidth}), at::rand({kHeads}).mul(0.5)};
}

// The definition, step by step, in float64 with autograd.
at::Tensor StepByStep(const Inputs& in, std::int64_t begin, std::int64_t end) {
  const at::Tensor ratio = in.decay.to(at::kDouble).neg().exp().view({-1, 1, 1});
  const at::Tensor q = in.q.to(at::kDouble);
  const at::Tensor k = in.k.to(at::kDouble);
  const at::Tensor v = in.v.to(at::kDouble);
  at::Tensor state = at::zeros({q.size(1), q.size(2), q.size(2)}, at::kDouble);
  std::vector<at::Tensor> out;
  for (std::int64_t t = begin; t < end; ++t) {
    state = state.mul(ratio).add(k[t].unsqueeze(2).mul(v[t].unsqueeze(1)));
    out.push_back(q[t].unsqueeze(1).matmul(state).squeeze(1));
  }
  return at::stack(out);
}

double Difference(const at::Tensor& a, const at::Tensor& b) {
  return a.to(at::kDouble).sub(b.to(at::kDouble)).abs().max().item<double>();
}

class RecurrenceTest : public testing::Test {
 protected:
  RecurrenceTest() { at::manual_seed(5); }
};

TEST_F(RecurrenceTest, RowsOfSeveralBlocks_EqualTheDefinition) {
  const Inputs in = RandomInputs(150);  // rows of 1, 64, 85 tokens: below, at and above a block
  const at::Tensor out = LinearRecurrence(in.q, in.k, in.v, in.decay, {0, 1, 65, 150});
  const at::Tensor expected =
      at::cat({StepByStep(in, 0, 1), StepByStep(in, 1, 65), StepByStep(in, 65, 150)});
  EXPECT_LT(Difference(out, expected), 1e-4);
}

TEST_F(RecurrenceTest, Gradients_EqualThoseOfTheDefinition) {
  Inputs in = RandomInputs(100);
  const at::Tensor upstream = at::randn(in.q.sizes());
  for (at::Tensor* leaf : {&in.q, &in.k, &in.v}) leaf->requires_grad_(true);
  at::cat({StepByStep(in, 0, 30), StepByStep(in, 30, 100)}).mul(upstream).sum().backward();
  const std::vector<at::Tensor> expected = {in.q.grad().clone(), in.k.grad().clone(),
                                            in.v.grad().clone()};
  for (at::Tensor* leaf : {&in.q, &in.k, &in.v}) leaf->mutable_grad().reset();
  LinearRecurrence(in.q, in.k, in.v, in.decay, {0, 30, 100}).mul(upstream).sum().backward();
  EXPECT_LT(Difference(in.q.grad(), expected[0]), 1e-3);
  EXPECT_LT(Difference(in.k.grad(), expected[1]), 1e-3);
  EXPECT_LT(Difference(in.v.grad(), expected[2]), 1e-3);
}

TEST_F(RecurrenceTest, Gradients_EqualFiniteDifferences) {
  Inputs in = RandomInputs(70);
  for (at::Tensor* leaf : {&in.q, &in.k, &in.v}) leaf->requires_grad_(true);
  ExpectFiniteDifferences(
      [&] {
        return LinearRecurrence(in.q, in.k, in.v, in.decay, {0, 3, 70});
      },
      {in.q, in.k, in.v});
}

TEST_F(RecurrenceTest, ContinuedInPieces_EqualsTheWhole) {
  const Inputs in = RandomInputs(90);
  at::Tensor state;
  std::vector<at::Tensor> parts;
  for (const auto& [begin, end] : {std::pair{0, 70}, {70, 71}, {71, 90}}) {
    parts.push_back(ContinueRecurrence(in.q.slice(0, begin, end), in.k.slice(0, begin, end),
                                       in.v.slice(0, begin, end), in.decay, state));
  }
  EXPECT_LT(Difference(at::cat(parts), StepByStep(in, 0, 90)), 1e-4);
}

}  // namespace
}  // namespace offshoot::trainer
