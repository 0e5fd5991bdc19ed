#include "trainer/models/rotary.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace offshoot::trainer {
namespace {

RotarySpec Spec(RotaryKind kind) {
  RotarySpec spec;
  spec.kind = kind;
  spec.width = 8;
  spec.theta = 10000.0;
  spec.factor = 4.0;
  spec.original_context = 16;
  return spec;
}

TEST(Rotary, DefaultFrequencies_FallByPowersOfTheta) {
  const std::vector<float> f = RotaryFrequencies(Spec(RotaryKind::kDefault), 0);
  ASSERT_EQ(f.size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(f[i], std::pow(10000.0, -2.0 * static_cast<double>(i) / 8.0), 1e-6);
  }
}

TEST(Rotary, LinearFrequencies_AreDividedByTheFactor) {
  const std::vector<float> plain = RotaryFrequencies(Spec(RotaryKind::kDefault), 0);
  const std::vector<float> linear = RotaryFrequencies(Spec(RotaryKind::kLinear), 0);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(linear[i], plain[i] / 4.0F);
}

TEST(Rotary, DynamicFrequencies_ChangeOnlyBeyondTheContext) {
  const RotarySpec spec = Spec(RotaryKind::kDynamic);
  EXPECT_EQ(RotaryFrequencies(spec, 16), RotaryFrequencies(Spec(RotaryKind::kDefault), 0));
  EXPECT_LT(RotaryFrequencies(spec, 17)[3], RotaryFrequencies(spec, 16)[3]);
}

TEST(Rotary, DynamicRowsPackedTogether_AreScaledEachByItsOwnLength) {
  const RotarySpec spec = Spec(RotaryKind::kDynamic);
  const at::Tensor shorter = at::arange(10, at::kLong);
  const at::Tensor longer = at::arange(40, at::kLong);
  const RotaryTables packed = MakeRotaryTables(spec, at::cat({shorter, longer}), {0, 10, 50});
  const RotaryTables first = MakeRotaryTables(spec, shorter, {0, 10});
  const RotaryTables second = MakeRotaryTables(spec, longer, {0, 40});
  EXPECT_TRUE(packed.cos.slice(0, 0, 10).equal(first.cos));
  EXPECT_TRUE(packed.sin.slice(0, 10).equal(second.sin));
}

TEST(Rotary, Llama3Frequencies_KeepHighAndStretchLowOnes) {
  RotarySpec spec = Spec(RotaryKind::kLlama3);
  spec.original_context = 8192;
  const std::vector<float> plain = RotaryFrequencies(Spec(RotaryKind::kDefault), 0);
  spec.width = 8;
  const std::vector<float> scaled = RotaryFrequencies(spec, 0);
  EXPECT_EQ(scaled[0], plain[0]);  // wavelength 6: far below 8192 / 4
  spec.original_context = 64;      // wavelength 6283 of the last: far above 64
  EXPECT_FLOAT_EQ(RotaryFrequencies(spec, 0)[3], plain[3] / 4.0F);
}

TEST(Rotary, YarnWithOneBound_DoesNotDivideByZero) {
  RotarySpec spec = Spec(RotaryKind::kYarn);
  spec.beta_fast = 1.0;
  spec.beta_slow = 1.0;
  for (const float f : RotaryFrequencies(spec, 0)) EXPECT_TRUE(std::isfinite(f));
}

TEST(Rotary, AttentionFactor_MultipliesBothTables) {
  RotarySpec spec = Spec(RotaryKind::kDefault);
  const at::Tensor positions = at::arange(5, at::kLong);
  const RotaryTables plain = MakeRotaryTables(spec, positions, {0, 5});
  spec.attention_factor = 1.5;
  const RotaryTables scaled = MakeRotaryTables(spec, positions, {0, 5});
  EXPECT_TRUE(scaled.cos.allclose(plain.cos.mul(1.5)));
  EXPECT_TRUE(scaled.sin.allclose(plain.sin.mul(1.5)));
}

}  // namespace
}  // namespace offshoot::trainer
