#include "trainer/ops/quantisation.h"

#include <ATen/ops/_unique.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "trainer/ops/ops.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

double Difference(const at::Tensor& a, const at::Tensor& b) {
  return a.to(at::kDouble).sub(b.to(at::kDouble)).abs().max().item<double>();
}

class Quantised : public testing::Test {
 protected:
  at::Tensor Vector(const std::string& name) const { return file_->Get(name); }
  const std::shared_ptr<const SafetensorsFile> file_ =
      SafetensorsFile::Open("trainer/ops/testdata/quantised.safetensors");
};

TEST_F(Quantised, Nf4_EqualsBitsandbytes) {
  const QuantisedMatrix matrix = Quantise(Vector("weight"), Quantisation::kNf4);
  EXPECT_TRUE(matrix.codes.equal(Vector("nf4_codes")));
  EXPECT_LE(Difference(Dequantise(matrix, at::kFloat), Vector("nf4")), 1e-6);
}

TEST_F(Quantised, Nf4OfBfloat16_EqualsBitsandbytes) {
  const QuantisedMatrix matrix = Quantise(Vector("weight").to(at::kBFloat16), Quantisation::kNf4);
  EXPECT_LE(Difference(Dequantise(matrix, at::kBFloat16), Vector("nf4_bfloat16")), 1e-6);
}

// A block whose magnitude is 1 is kept exactly: what comes back is a value of the code.
at::Tensor AsCode(const at::Tensor& values) {
  const at::Tensor block = at::ones({1, 64});
  block.slice(1, 1).copy_(values);
  return Dequantise(Quantise(block, Quantisation::kNf4), at::kFloat).slice(1, 1).view({63});
}

TEST_F(Quantised, Nf4_TakesTheNearestValueAndOfTwoTheLower) {
  at::Tensor code = at::ones({1});
  for (int i = 0; i < 32; ++i)
    code = at::cat({code, AsCode(at::linspace(-1, 1, 32 * 63).slice(0, i * 63, (i + 1) * 63))});
  code = std::get<0>(at::_unique(code, /*sorted=*/true));
  ASSERT_EQ(code.numel(), 16);
  const float* values = code.const_data_ptr<float>();
  for (int i = 0; i < 15; ++i) {
    // 63 neighbouring floats around the middle of two values.
    std::vector<float> around(63, (values[i] + values[i + 1]) / 2);
    for (int k = 30; k >= 0; --k) around[k] = std::nextafter(around[k + 1], -1.0F);
    for (int k = 32; k < 63; ++k) around[k] = std::nextafter(around[k - 1], 1.0F);
    const at::Tensor kept = AsCode(at::tensor(around));
    for (int k = 0; k < 63; ++k) {
      const bool lower = around[k] - values[i] <= values[i + 1] - around[k];
      EXPECT_EQ(kept[k].item<float>(), lower ? values[i] : values[i + 1]) << around[k];
    }
  }
}

TEST_F(Quantised, Int8_EqualsBitsandbytes) {
  const QuantisedMatrix matrix = Quantise(Vector("half"), Quantisation::kInt8);
  EXPECT_TRUE(matrix.codes.equal(Vector("int8_codes")));
  EXPECT_LE(Difference(Dequantise(matrix, at::kFloat), Vector("int8")), 1e-6);
}

TEST_F(Quantised, Sizes_AreAsDocumented) {
  const at::Tensor weight = at::randn({512, 512});
  EXPECT_LE(Quantise(weight, Quantisation::kNf4).bytes(), 0.5161 * 512 * 512);
  EXPECT_LE(Quantise(weight, Quantisation::kInt8).bytes(), 512 * 512 + 4 * 512);
}

TEST_F(Quantised, MatrixOfZerosOrOfOneValue_StaysFinite) {
  for (const Quantisation kind : {Quantisation::kNf4, Quantisation::kInt8}) {
    EXPECT_EQ(
        Difference(Dequantise(Quantise(at::zeros({3, 5}), kind), at::kFloat), at::zeros({3, 5})),
        0.0);
    const at::Tensor one = at::zeros({1, 1}).add(0.75);
    EXPECT_NEAR(Dequantise(Quantise(one, kind), at::kFloat).item<double>(), 0.75, 1e-6);
  }
}

// The products and their gradients are those of the dequantised weight, to the last bit; the
// adapter's gradients are exact for the model that is trained.
TEST_F(Quantised, Linear_IsItsDequantisedWeight) {
  at::manual_seed(4);
  const at::Tensor weight = Vector("weight");
  for (const Quantisation kind : {Quantisation::kNf4, Quantisation::kInt8}) {
    const at::Tensor plain = Dequantise(Quantise(weight, kind), at::kFloat);
    const auto quantised = FrozenLinear::MakeQuantised(weight, {}, kind);
    const auto dense = FrozenLinear::Make(plain);
    EXPECT_EQ(quantised->in_features(), 151);
    EXPECT_EQ(quantised->out_features(), 130);
    EXPECT_TRUE(quantised->Weight().equal(plain));
    std::vector<at::Tensor> gradients;
    for (const auto& base : {quantised, dense}) {
      at::manual_seed(5);
      const at::Tensor x = at::randn({7, 151}).requires_grad_(true);
      LoraWeights adapter;
      adapter.a = at::randn({3, 151}).requires_grad_(true);
      adapter.b = at::randn({130, 3}).requires_grad_(true);
      adapter.scaling = 0.5;
      LoraLinear(x, base, &adapter).pow(2).sum().backward();
      gradients.insert(gradients.end(), {x.grad(), adapter.a.grad(), adapter.b.grad()});
    }
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(gradients[i].equal(gradients[i + 3])) << i;
    }
  }
}

// A matrix that products take in several pieces, the last one of odd size; with a bias, and two
// layers of one group. The pieces' sums come in another order.
TEST(QuantisedInPieces, Linear_IsItsDequantisedWeight) {
  for (const Quantisation kind : {Quantisation::kNf4, Quantisation::kInt8}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      at::manual_seed(4);
      const at::Tensor weight = at::randn({7501, 600}).to(type), bias = at::randn({7501}).to(type);
      const auto quantised = FrozenLinear::MakeQuantised(weight, bias, kind);
      const auto dense = FrozenLinear::Make(Dequantise(Quantise(weight, kind), type), bias);
      ASSERT_LT(quantised->rows_at_once(), 7501);
      const std::int64_t last = 7501 / quantised->rows_at_once() * quantised->rows_at_once();
      EXPECT_TRUE(quantised->Rows(last, 7501 - last).equal(dense->Rows(last, 7501 - last)));
      std::vector<at::Tensor> results;
      for (const auto& base : {quantised, dense}) {
        at::manual_seed(5);
        const at::Tensor x = at::randn({7, 600}).to(type).requires_grad_(true);
        LoraWeights adapter;
        adapter.a = at::randn({3, 600}).requires_grad_(true);
        adapter.b = at::randn({7501, 3}).requires_grad_(true);
        const std::vector<at::Tensor> out =
            LoraLinearGroup(x, {{base, &adapter}, {base, &adapter}}, {});
        out[0].add(out[1], 2).pow(2).sum().backward();
        results.insert(results.end(), {out[0].detach(), x.grad(), adapter.a.grad(),
                                       adapter.b.grad(), base->BackwardInput(out[0].detach())});
      }
      for (std::size_t i = 0; i < 5; ++i) {
        const double spread = results[i].sub(results[i + 5]).norm().item<double>();
        EXPECT_LE(spread, (type == at::kFloat ? 1e-6 : 4e-3) * results[i + 5].norm().item<double>())
            << i;
      }
    }
  }
}

}  // namespace
}  // namespace offshoot::trainer
