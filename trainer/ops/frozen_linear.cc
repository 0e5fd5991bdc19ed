#include <c10/util/Exception.h>

#include <utility>

#include "trainer/ops/ops.h"
#include "trainer/ops/products.h"

namespace offshoot::trainer {
namespace {

// The weight as it came: on CPU the products pack panels of it as they go, which costs a few
// instructions per hundred multiplications and no memory; elsewhere LibTorch multiplies.
class DenseLinear final : public FrozenLinear {
 public:
  DenseLinear(at::Tensor weight, at::Tensor bias)
      : weight_(weight.detach().contiguous()), bias_(std::move(bias)) {
    TORCH_CHECK(weight_.dim() == 2, "a linear weight has two dimensions");
    TORCH_CHECK(!bias_.defined() || (bias_.dim() == 1 && bias_.size(0) == weight_.size(0)),
                "a linear bias has one value per output");
  }

  std::int64_t in_features() const override { return weight_.size(1); }
  std::int64_t out_features() const override { return weight_.size(0); }
  at::ScalarType dtype() const override { return weight_.scalar_type(); }
  at::Tensor Weight() const override { return weight_; }
  at::Tensor Bias() const override { return bias_; }
  std::int64_t stored_bytes() const override { return static_cast<std::int64_t>(weight_.nbytes()); }

  at::Tensor Forward(const at::Tensor& x) const override {
    return Multiply({{x, weight_, /*b_transposed=*/true}}, bias_);
  }
  at::Tensor BackwardInput(const at::Tensor& grad) const override {
    return Multiply({{grad, weight_}});
  }

 private:
  at::Tensor weight_;
  at::Tensor bias_;
};

class QuantisedLinear final : public FrozenLinear {
 public:
  QuantisedLinear(QuantisedMatrix matrix, at::ScalarType dtype, at::Tensor bias)
      : matrix_(std::move(matrix)), dtype_(dtype), bias_(std::move(bias)) {}

  std::int64_t in_features() const override { return matrix_.shape[1]; }
  std::int64_t out_features() const override { return matrix_.shape[0]; }
  at::ScalarType dtype() const override { return dtype_; }
  at::Tensor Weight() const override { return Dequantise(matrix_, dtype_); }
  at::Tensor Bias() const override { return bias_; }
  std::int64_t stored_bytes() const override { return matrix_.bytes(); }

  at::Tensor Forward(const at::Tensor& x) const override {
    return Multiply({{x, Weight(), /*b_transposed=*/true}}, bias_);
  }
  at::Tensor BackwardInput(const at::Tensor& grad) const override {
    return Multiply({{grad, Weight()}});
  }

 private:
  const QuantisedMatrix matrix_;
  const at::ScalarType dtype_;
  const at::Tensor bias_;
};

}  // namespace

std::shared_ptr<const FrozenLinear> FrozenLinear::MakeQuantised(const at::Tensor& weight,
                                                                at::Tensor bias, Quantisation kind,
                                                                const at::Device& device) {
  return std::make_shared<QuantisedLinear>(Quantise(weight, kind).To(device), weight.scalar_type(),
                                           std::move(bias));
}

std::shared_ptr<const FrozenLinear> FrozenLinear::Make(at::Tensor weight, at::Tensor bias) {
  return std::make_shared<DenseLinear>(std::move(weight), std::move(bias));
}

}  // namespace offshoot::trainer
