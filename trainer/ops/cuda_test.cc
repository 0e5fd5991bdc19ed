// Each operation on a GPU against the same on the CPU in float32, values and gradients.
#include <ATen/Context.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

class CudaTest : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "there is no NVIDIA GPU here";
  }

  // Values that both types hold exactly.
  static at::Tensor Random(at::IntArrayRef sizes, double size = 1.0) {
    return at::randn(sizes).mul_(size).to(at::kBFloat16).to(at::kFloat);
  }
  at::Tensor There(const at::Tensor& t) const {
    return t.to(t.options().device(at::kCUDA).dtype(GetParam()));
  }
  static at::Tensor Wide(const at::Tensor& t) { return t.to(at::kCUDA); }

  void ExpectNear(const at::Tensor& got, const at::Tensor& want, const std::string& what) const {
    ASSERT_EQ(got.sizes(), want.sizes()) << what;
    const double size = std::max(1e-3, want.abs().max().item<double>());
    const double off = got.cpu().to(at::kFloat).sub(want).abs().max().item<double>();
    EXPECT_LE(off / size, GetParam() == at::kFloat ? 1e-4 : 3e-2) << what;
  }

  // `run` on the inputs here and there; `adapters` stay float32 there, too.
  using Operation = std::function<at::Tensor(const std::vector<at::Tensor>&)>;
  void Compare(const std::vector<at::Tensor>& inputs, const Operation& here, const Operation& there,
               std::size_t adapters = 0) const {
    std::vector<at::Tensor> mine, theirs;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      mine.push_back(inputs[i].clone().set_requires_grad(true));
      const bool wide = i + adapters >= inputs.size();
      theirs.push_back(
          (wide ? Wide(inputs[i]) : There(inputs[i])).detach().set_requires_grad(true));
    }
    const at::Tensor want = here(mine), got = there(theirs);
    ExpectNear(got.detach(), want.detach(), "value");
    const at::Tensor seed = Random(want.sizes());
    const auto wanted = torch::autograd::grad({want}, mine, {seed});
    const auto gradients =
        torch::autograd::grad({got}, theirs, {seed.to(got.options().requires_grad(false))});
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_EQ(gradients[i].scalar_type(), theirs[i].scalar_type());
      ExpectNear(gradients[i], wanted[i], "gradient " + std::to_string(i));
    }
  }
};

TEST_P(CudaTest, CausalAttention_GroupsWindowsAndUnequalWidths_AsOnTheCpu) {
  struct Case {
    std::int64_t query_heads, key_heads, width, value_width, window;
  };
  for (const Case& c : {Case{8, 8, 64, 64, 0}, Case{8, 2, 64, 64, 0}, Case{4, 1, 80, 80, 7},
                        Case{4, 4, 96, 64, 0}, Case{2, 2, 20, 12, 0}, Case{2, 1, 256, 256, 0}}) {
    const Operation run = [&](const std::vector<at::Tensor>& in) {
      return CausalAttention(in[0], in[1], in[2], {0, 37, 38, 102}, 0.125, c.window);
    };
    Compare({Random({102, c.query_heads, c.width}), Random({102, c.key_heads, c.width}),
             Random({102, c.key_heads, c.value_width})},
            run, run);
  }
}

TEST_P(CudaTest, LoraLinear_AsOnTheCpu) {
  const at::Tensor weight = Random({96, 64}, 0.1), bias = Random({96});
  const auto run = [](const std::shared_ptr<const FrozenLinear>& base) -> Operation {
    return [base](const std::vector<at::Tensor>& in) {
      LoraWeights adapter;
      adapter.a = in[1];
      adapter.b = in[2];
      adapter.scaling = 1.5;
      return LoraLinear(in[0], base, &adapter);
    };
  };
  Compare({Random({33, 64}), Random({16, 64}, 0.1), Random({96, 16}, 0.1)},
          run(FrozenLinear::Make(weight, bias)),
          run(FrozenLinear::Make(There(weight), There(bias))),
          /*adapters=*/2);
}

TEST_P(CudaTest, CrossEntropySum_LabelsOnTheCpu_AsOnTheCpu) {
  const at::Tensor weight = Random({300, 32}, 0.3);
  const auto run = [](const std::shared_ptr<const FrozenLinear>& head,
                      const at::Tensor& labels) -> Operation {
    return [=](const std::vector<at::Tensor>& in) { return CrossEntropySum(in[0], head, labels); };
  };
  for (const at::Tensor& labels :
       {at::tensor({3, -100, 299, 0, -100}, at::kLong), at::tensor({3, 4, 299, 0, 7}, at::kLong)}) {
    Compare({Random({5, 32})}, run(FrozenLinear::Make(weight), labels),
            run(FrozenLinear::Make(There(weight)), labels));
  }
}

TEST_P(CudaTest, NormsRotaryAndSwiGlu_AsOnTheCpu) {
  const at::Tensor norm = Random({64}), angles = Random({19, 8});
  const auto run = [](const at::Tensor& weight, const at::Tensor& turns) -> Operation {
    return [=](const std::vector<at::Tensor>& in) {
      const ResidualNorm joined = ResidualRmsNorm(in[0], in[1], weight, 1e-6);
      const at::Tensor turned = Rotary(joined.normed.view({19, 4, 16}), at::cos(turns),
                                       at::sin(turns), RotaryPairing::kHalfSplit);
      return SwiGlu(turned.flatten(1), joined.sum);
    };
  };
  Compare({Random({19, 64}), Random({19, 64})}, run(norm, angles), run(There(norm), Wide(angles)));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaTest, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) {
                           return std::string(info.param == at::kFloat ? "Float32" : "BFloat16");
                         });

}  // namespace
}  // namespace offshoot::trainer
