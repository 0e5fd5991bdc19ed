#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "trainer/ops/ops.h"
#include "trainer/ops/products.h"

namespace offshoot::trainer {
namespace {

// The weight as it came: on CPU the products pack panels of it as they go, which costs a few
// instructions per hundred multiplications and no memory; elsewhere LibTorch multiplies.
class DenseLinear : public FrozenLinear {
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
  at::Tensor InMemory() const override { return weight_; }
  at::Tensor Rows(std::int64_t first, std::int64_t count) const override {
    return weight_.narrow(0, first, count);
  }
  std::int64_t rows_at_once() const override { return std::max<std::int64_t>(1, out_features()); }
  std::int64_t stored_bytes() const override { return static_cast<std::int64_t>(weight_.nbytes()); }

 private:
  const at::Tensor weight_, bias_;
};

// Rows of about kWidenedBytes, in whole steps.
std::int64_t RowsInPiece(std::int64_t row_bytes) {
  return std::max<std::int64_t>(1,
                                kWidenedBytes / std::max<std::int64_t>(1, row_bytes) / kRowStep) *
         kRowStep;
}

// The same in a mapped file.
class PassingLinear final : public DenseLinear {
 public:
  PassingLinear(const at::Tensor& weight, at::Tensor bias, Release release)
      : DenseLinear(weight, std::move(bias)), release_(std::move(release)) {
    TORCH_CHECK(weight.is_contiguous(), "a passing weight is contiguous");
  }

  at::Tensor Rows(std::int64_t first, std::int64_t count) const override {
    const at::Tensor rows = DenseLinear::Rows(first, count);
    const auto begin = static_cast<std::size_t>(first * RowBytes());
    return at::from_blob(
        rows.data_ptr(), rows.sizes(),
        [weight = Weight(), release = release_, begin, end = begin + rows.nbytes()](void*) {
          release(begin, end);
        },
        rows.options());
  }
  std::int64_t rows_at_once() const override { return RowsInPiece(RowBytes()); }
  at::Tensor InMemory() const override { return {}; }
  std::int64_t stored_bytes() const override { return 0; }

 private:
  std::int64_t RowBytes() const { return in_features() * Weight().element_size(); }

  const Release release_;
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
  at::Tensor InMemory() const override { return {}; }
  at::Tensor Rows(std::int64_t first, std::int64_t count) const override {
    return DequantiseRows(matrix_, dtype_, first, count);
  }
  std::int64_t rows_at_once() const override {
    if (!matrix_.codes.is_cpu()) return std::max<std::int64_t>(1, out_features());
    return RowsInPiece(in_features() * static_cast<std::int64_t>(c10::elementSize(dtype_)));
  }
  std::int64_t stored_bytes() const override { return matrix_.bytes(); }

 private:
  const QuantisedMatrix matrix_;
  const at::ScalarType dtype_;
  const at::Tensor bias_;
};

// Calls body(first, count) for each piece of the weight.
template <typename Body>
void ForEachPiece(const FrozenLinear& weight, const Body& body) {
  const std::int64_t rows = weight.out_features(), step = weight.rows_at_once();
  for (std::int64_t first = 0; first < rows; first += step) {
    body(first, std::min(step, rows - first));
  }
}

}  // namespace

at::Tensor MultiplyWeight(const at::Tensor& x, const FrozenLinear& weight, const Addend* more) {
  const at::Tensor bias = weight.Bias();
  const at::Tensor out = at::empty({x.size(0), weight.out_features()}, x.options());
  ForEachPiece(weight, [&](std::int64_t first, std::int64_t count) {
    std::vector<Addend> addends = {{x, weight.Rows(first, count), /*b_transposed=*/true}};
    if (more != nullptr) addends.push_back({more->a, more->b.narrow(0, first, count), true});
    MultiplyInto(out.narrow(1, first, count), addends,
                 bias.defined() ? bias.narrow(0, first, count) : bias);
  });
  return out;
}

at::Tensor MultiplyWeightsBack(const std::vector<WeightPart>& parts,
                               const std::vector<Addend>& more) {
  std::vector<Addend> addends;
  const bool whole = std::all_of(parts.begin(), parts.end(), [](const WeightPart& part) {
    return part.weight->rows_at_once() >= part.weight->out_features();
  });
  if (whole) {
    for (const WeightPart& part : parts)
      addends.push_back({part.grad, part.weight->Rows(0, part.weight->out_features())});
    addends.insert(addends.end(), more.begin(), more.end());
    return Multiply(addends);
  }
  const WeightPart& some = parts.at(0);
  const at::Tensor sum = at::zeros({some.grad.size(0), some.weight->in_features()},
                                   some.grad.options().dtype(at::kFloat));
  for (const WeightPart& part : parts) {
    ForEachPiece(*part.weight, [&](std::int64_t first, std::int64_t count) {
      MultiplyAdding(sum, {{part.grad.narrow(1, first, count), part.weight->Rows(first, count)}});
    });
  }
  if (!more.empty()) MultiplyAdding(sum, more);
  return sum.to(some.grad.scalar_type());
}

at::Tensor FrozenLinear::Forward(const at::Tensor& x) const { return MultiplyWeight(x, *this); }

at::Tensor FrozenLinear::BackwardInput(const at::Tensor& grad) const {
  return MultiplyWeightsBack({{grad, this}});
}

std::shared_ptr<const FrozenLinear> FrozenLinear::MakeQuantised(const at::Tensor& weight,
                                                                at::Tensor bias, Quantisation kind,
                                                                const at::Device& device) {
  return std::make_shared<QuantisedLinear>(Quantise(weight, kind).To(device), weight.scalar_type(),
                                           std::move(bias));
}

std::shared_ptr<const FrozenLinear> FrozenLinear::MakePassing(at::Tensor weight, at::Tensor bias,
                                                              Release release) {
  return std::make_shared<PassingLinear>(weight, std::move(bias), std::move(release));
}

std::shared_ptr<const FrozenLinear> FrozenLinear::Make(at::Tensor weight, at::Tensor bias) {
  return std::make_shared<DenseLinear>(std::move(weight), std::move(bias));
}

}  // namespace offshoot::trainer
