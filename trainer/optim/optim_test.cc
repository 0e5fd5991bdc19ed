#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "trainer/error.h"
#include "trainer/optim/adamw.h"
#include "trainer/optim/outer_step.h"
#include "trainer/optim/schedule.h"

namespace offshoot::trainer {
namespace {

using ::testing::HasSubstr;

// Values of transformers 5.23 get_cosine_schedule_with_warmup(warmup 2, total 10) and
// get_linear_schedule_with_warmup(same), for scheduler steps 0..9.
constexpr double kCosine[] = {0.0,
                              0.5,
                              1.0,
                              0.9619397662556434,
                              0.8535533905932737,
                              0.6913417161825449,
                              0.5,
                              0.3086582838174551,
                              0.14644660940672627,
                              0.03806023374435663};
constexpr double kLinear[] = {0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125};

TEST(LearningRateFactor, WithWarmup_EqualsTransformers) {
  for (int step = 1; step <= 10; ++step) {
    EXPECT_DOUBLE_EQ(LearningRateFactor({ScheduleKind::kCosine, 2, 0, 10}, step),
                     kCosine[step - 1]);
    EXPECT_DOUBLE_EQ(LearningRateFactor({ScheduleKind::kLinear, 2, 0, 10}, step),
                     kLinear[step - 1]);
  }
}

TEST(LearningRateFactor, ConstantWithWarmup_RisesThenStays) {
  const ScheduleOptions options = {ScheduleKind::kConstant, 4, 0, 10};
  EXPECT_DOUBLE_EQ(LearningRateFactor(options, 3), 0.5);
  EXPECT_DOUBLE_EQ(LearningRateFactor(options, 5), 1.0);
  EXPECT_DOUBLE_EQ(LearningRateFactor(options, 10), 1.0);
}

TEST(WarmupSteps, Ratio_RoundsUpButNotForBinaryNoise) {
  EXPECT_EQ(WarmupSteps({ScheduleKind::kLinear, 0, 0.1, 30}), 3);
  EXPECT_EQ(WarmupSteps({ScheduleKind::kLinear, 0, 0.1, 31}), 4);
  EXPECT_EQ(WarmupSteps({ScheduleKind::kLinear, 0, 0.03, 20}), 1);
  EXPECT_EQ(WarmupSteps({ScheduleKind::kLinear, 7, 0.5, 20}), 7);
}

TEST(ParseScheduleKind, UnknownWord_IsNamed) {
  try {
    ParseScheduleKind("cosin");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadSpec);
    EXPECT_THAT(error.what(), HasSubstr("'cosin'"));
  }
}

std::vector<at::Tensor> Leaves() {
  at::Generator generator = at::detail::createCPUGenerator(7);
  std::vector<at::Tensor> leaves = {at::randn({300, 257}, generator), at::randn({64}, generator)};
  for (at::Tensor& leaf : leaves) {
    leaf.set_requires_grad(true);
  }
  return leaves;
}

// torch.optim.AdamW written with tensor operations (its single-tensor path).
struct ReferenceAdamW {
  at::Tensor p, m, v;
  void Step(const at::Tensor& g, int step, double lr, const AdamWOptions& o) {
    p.mul_(1 - lr * o.weight_decay);
    m.lerp_(g, 1 - o.beta1);
    v.mul_(o.beta2).addcmul_(g, g, 1 - o.beta2);
    const at::Tensor denominator =
        v.sqrt().div_(std::sqrt(1 - std::pow(o.beta2, step))).add_(o.epsilon);
    p.addcdiv_(m, denominator, -lr / (1 - std::pow(o.beta1, step)));
  }
};

TEST(FlatAdamW, TenSteps_EqualsTorchsFormula) {
  const AdamWOptions options = {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};
  const std::vector<at::Tensor> leaves = Leaves();
  FlatAdamW optimizer(leaves, options);
  const at::NoGradGuard no_grad;
  ReferenceAdamW reference = {optimizer.parameters().clone(), optimizer.first_moments().clone(),
                              optimizer.second_moments().clone()};
  at::Generator generator = at::detail::createCPUGenerator(8);
  for (int step = 1; step <= 10; ++step) {
    const at::Tensor gradient = at::randn({optimizer.gradients().numel()}, generator);
    optimizer.gradients().copy_(gradient);
    optimizer.Step(step, 1e-2, 1.0);
    reference.Step(gradient, step, 1e-2, options);
  }
  const double difference = (optimizer.parameters() - reference.p).abs().max().item<double>();
  EXPECT_LT(difference, 5e-7);  // two units in the last place of weights up to 2
  EXPECT_GT((leaves[0] - leaves[0].mean()).abs().max().item<double>(), 0.1);
}

TEST(FlatAdamW, Leaves_AreViewsOfTheFlatBuffers) {
  const std::vector<at::Tensor> leaves = Leaves();
  const at::Tensor before = leaves[1].detach().clone();
  FlatAdamW optimizer(leaves, {});
  EXPECT_TRUE(at::equal(leaves[1].detach(), before));
  (leaves[0] * 2).sum().backward();
  (leaves[1] * 3).sum().backward();
  (leaves[1] * 3).sum().backward();
  EXPECT_EQ(optimizer.gradients()[0].item<float>(), 2.0F);
  EXPECT_EQ(optimizer.gradients()[300 * 257].item<float>(), 6.0F);
  optimizer.Step(1, 0.5, 1.0);
  // The first Adam step moves each weight by the learning rate against the gradient's sign.
  EXPECT_NEAR((before - leaves[1].detach()).mean().item<double>(), 0.5, 1e-5);
  optimizer.ZeroGradients();
  EXPECT_EQ(leaves[0].grad().abs().max().item<float>(), 0.0F);
}

TEST(FlatAdamW, AnyNumberOfThreads_GivesTheSameBits) {
  const int threads_before = at::get_num_threads();
  std::vector<at::Tensor> results;
  std::vector<double> norms;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const std::vector<at::Tensor> leaves = Leaves();
    FlatAdamW optimizer(leaves, {.weight_decay = 0.01});
    const at::NoGradGuard no_grad;
    for (int step = 1; step <= 3; ++step) {
      optimizer.gradients().copy_(optimizer.parameters() * 0.3);
      norms.push_back(optimizer.GradientNorm());
      optimizer.Step(step, 1e-3, ClippingCoefficient(norms.back(), 1.0));
    }
    results.push_back(optimizer.parameters().clone());
  }
  at::set_num_threads(threads_before);
  EXPECT_TRUE(at::equal(results[0], results[1]));
  EXPECT_TRUE(at::equal(results[0], results[2]));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(norms[i], norms[i + 3]);
    EXPECT_EQ(norms[i], norms[i + 6]);
  }
}

TEST(GradientNorm, NanInside_IsPassedOn) {
  const std::vector<at::Tensor> leaves = Leaves();
  FlatAdamW optimizer(leaves, {});
  optimizer.gradients().fill_(2.0);
  EXPECT_NEAR(optimizer.GradientNorm(), 2.0 * std::sqrt(300.0 * 257 + 64), 1e-6);
  optimizer.gradients()[100] = std::nan("");
  EXPECT_TRUE(std::isnan(optimizer.GradientNorm()));
}

TEST(ClippingCoefficient, EqualsTorchs_AndZeroIsOff) {
  EXPECT_DOUBLE_EQ(ClippingCoefficient(0.5, 1.0), 1.0);
  EXPECT_NEAR(ClippingCoefficient(4.0, 1.0), 0.25, 1e-6);
  EXPECT_DOUBLE_EQ(ClippingCoefficient(4.0, 0.0), 1.0);
}

// One parameter by hand: two rounds in which the ranks moved from 1 by -0.4 and -0.2 (shares 1:3),
// then by nothing.
TEST(OuterStep, TwoRounds_FollowTheFormula) {
  at::Tensor leaf = at::full({1}, 1.0F);
  FlatAdamW inner({leaf}, {});
  OuterStep outer(inner, {.learning_rate = 0.5, .momentum = 0.8}, 2);
  const auto round = [&](double moved, double others_part) {
    outer.BeginRound();
    at::Tensor parameters = inner.parameters(), second = inner.second_moments();
    parameters.add_(moved);
    second.fill_(4.0F);
    at::Tensor& bucket = outer.Contribution(0.25);
    EXPECT_EQ(bucket.numel(), 5);
    bucket.narrow(0, 0, 1).add_(others_part);  // the other rank's 0.75 * (start - parameters)
    bucket.narrow(0, 2, 1).add_(0.75 * 8);
    outer.Apply();
    EXPECT_NEAR(second.item<double>(), 7.0, 1e-6);
    return leaf.item<double>();
  };
  const double delta = 0.25 * 0.4 + 0.75 * 0.2;
  const double after = 1 - 0.5 * (delta + 0.8 * delta);
  EXPECT_NEAR(round(-0.4, 0.75 * 0.2), after, 1e-6);
  EXPECT_NEAR(round(0, 0), after - 0.5 * 0.8 * 0.8 * delta, 1e-6);
  EXPECT_NEAR(outer.momentum().item<double>(), 0.8 * delta, 1e-6);
}

}  // namespace
}  // namespace offshoot::trainer
