// Each operation against a plain autograd formula of the same mathematics, values and gradients.
#include "trainer/ops/ops.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "trainer/data/token_batch.h"
#include "trainer/ops/cpu/parallel.h"
#include "trainer/ops/dropout.h"

namespace offshoot::trainer {
namespace {

class OpsTest : public testing::TestWithParam<at::ScalarType> {
 protected:
  at::ScalarType dtype() const { return GetParam(); }
  // bfloat16 has 8 bits: a result of size 1 is off by up to 2^-9, and sums of them by a bit more.
  double tolerance() const {
    return dtype() == at::kFloat ? 2e-5 : dtype() == at::kHalf ? 3e-3 : 3e-2;
  }

  at::Generator generator_ = at::detail::createCPUGenerator(20240607);

  at::Tensor Random(at::IntArrayRef sizes, double size = 1.0) {
    return at::randn(sizes, generator_, at::TensorOptions().dtype(at::kFloat)).mul_(size);
  }
  // Exact in both dtypes, so that the reference in float32 starts from the same numbers.
  at::Tensor Input(at::IntArrayRef sizes, double size = 1.0) {
    return Random(sizes, size).to(dtype()).set_requires_grad(true);
  }
  static at::Tensor Reference(const at::Tensor& t) {
    return t.detach().to(at::kFloat).clone().set_requires_grad(true);
  }

  // Relative to the largest value of the expectation.
  void ExpectNear(const at::Tensor& got, const at::Tensor& want, const char* what) const {
    ASSERT_EQ(got.sizes(), want.sizes()) << what;
    const double size = std::max(1e-3, want.abs().max().item<double>());
    const double off = got.to(at::kFloat).sub(want).abs().max().item<double>();
    EXPECT_LE(off / size, tolerance()) << what;
  }

  static std::vector<at::Tensor> Gradients(const at::Tensor& out, const at::Tensor& seed,
                                           const std::vector<at::Tensor>& inputs) {
    return torch::autograd::grad({out}, inputs, {seed.to(out.scalar_type())});
  }

  // Compares value and gradients of `got(inputs)` with those of `want(float32 inputs)`.
  void Compare(const std::vector<at::Tensor>& inputs,
               const std::function<at::Tensor(const std::vector<at::Tensor>&)>& got,
               const std::function<at::Tensor(const std::vector<at::Tensor>&)>& want) {
    std::vector<at::Tensor> references;
    for (const at::Tensor& input : inputs) references.push_back(Reference(input));
    const at::Tensor out = got(inputs);
    const at::Tensor expected = want(references);
    ExpectNear(out, expected, "value");
    const at::Tensor seed = Random(out.sizes()).to(dtype()).to(at::kFloat);
    const auto gradients = Gradients(out, seed, inputs);
    const auto expected_gradients = Gradients(expected, seed, references);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_EQ(gradients[i].scalar_type(), inputs[i].scalar_type());
      ExpectNear(gradients[i], expected_gradients[i], ("gradient " + std::to_string(i)).c_str());
    }
  }
};

TEST_P(OpsTest, LoraLinear_WithAdapter_MatchesPlainFormula) {
  for (const auto& [tokens, in, out, rank] : std::vector<std::array<std::int64_t, 4>>{
           {5, 7, 3, 2}, {33, 64, 96, 16}, {130, 576, 192, 8}}) {
    const at::Tensor weight = Random({out, in}, 0.1).to(dtype());
    const at::Tensor bias = Random({out}).to(dtype());
    const auto base = FrozenLinear::Make(weight.clone(), bias);
    const at::Tensor x = Input({tokens, in});
    at::Tensor a = Random({rank, in}, 0.1).to(at::kBFloat16).to(at::kFloat).set_requires_grad(true);
    at::Tensor b =
        Random({out, rank}, 0.1).to(at::kBFloat16).to(at::kFloat).set_requires_grad(true);
    Compare(
        {x, a, b},
        [&](const std::vector<at::Tensor>& in) {
          LoraWeights adapter;
          adapter.a = in[1];
          adapter.b = in[2];
          adapter.scaling = 1.5;
          return LoraLinear(in[0], base, &adapter);
        },
        [&](const std::vector<at::Tensor>& in) {
          return at::mm(in[0], weight.to(at::kFloat).t()) + bias.to(at::kFloat) +
                 1.5 * at::mm(at::mm(in[0], in[1].t()), in[2].t());
        });
  }
}

TEST_P(OpsTest, LoraLinear_WithoutAdapter_GivesInputGradientOnly) {
  const at::Tensor weight = Random({24, 40}, 0.1).to(dtype());
  const auto base = FrozenLinear::Make(weight.clone());
  Compare(
      {Input({9, 40})},
      [&](const std::vector<at::Tensor>& in) { return LoraLinear(in[0], base, nullptr); },
      [&](const std::vector<at::Tensor>& in) { return at::mm(in[0], weight.to(at::kFloat).t()); });
}

TEST_P(OpsTest, LoraLinear_WithDropout_UsesTheSameMaskInBackward) {
  // With W = 0 and A = B = 1 the output counts the kept elements of a row: y = kept / (1 - p), and
  // the gradient to x of the sum of one row is 1 / (1 - p) where kept, else 0.
  const std::int64_t tokens = 64, in = 256;
  const auto base = FrozenLinear::Make(at::zeros({1, in}, at::TensorOptions().dtype(dtype())));
  LoraWeights adapter;
  adapter.a = at::ones({1, in}).set_requires_grad(true);
  adapter.b = at::ones({1, 1}).set_requires_grad(true);
  adapter.dropout = 0.5;
  adapter.dropout_seed = 77;
  const at::Tensor x =
      at::ones({tokens, in}, at::TensorOptions().dtype(dtype())).set_requires_grad(true);
  const at::Tensor y = LoraLinear(x, base, &adapter);
  const at::Tensor grad = Gradients(y, at::ones({tokens, 1}), {x})[0].to(at::kFloat);
  const at::Tensor kept = grad.ne(0).sum(1).to(at::kFloat);
  ExpectNear(y.squeeze(1), kept.mul(2), "kept");
  EXPECT_NEAR(kept.mean().item<double>() / in, 0.5, 0.02);
  EXPECT_TRUE(at::equal(y, LoraLinear(x, base, &adapter)));
  adapter.dropout_seed = 78;
  EXPECT_FALSE(at::equal(y, LoraLinear(x, base, &adapter)));
}

TEST_P(OpsTest, RmsNorm_AnyWidth_MatchesPlainFormula) {
  for (const std::int64_t width : {3, 64, 576, 1000}) {
    const at::Tensor weight = Random({width}).to(dtype());
    Compare(
        {Input({7, 2, width})},
        [&](const std::vector<at::Tensor>& in) { return RmsNorm(in[0], weight, 1e-5); },
        [&](const std::vector<at::Tensor>& in) {
          return in[0] * at::rsqrt(in[0].square().mean(-1, true) + 1e-5) * weight.to(at::kFloat);
        });
  }
}

TEST_P(OpsTest, ResidualRmsNorm_BothOutputsUsed_SumsGradients) {
  const at::Tensor weight = Random({72}).to(dtype());
  Compare(
      {Input({11, 72}), Input({11, 72})},
      [&](const std::vector<at::Tensor>& in) {
        const ResidualNorm out = ResidualRmsNorm(in[0], in[1], weight, 1e-5);
        return at::cat({out.sum, out.normed}, 1);
      },
      [&](const std::vector<at::Tensor>& in) {
        const at::Tensor sum = in[0] + in[1];
        return at::cat(
            {sum, sum * at::rsqrt(sum.square().mean(-1, true) + 1e-5) * weight.to(at::kFloat)}, 1);
      });
}

TEST_P(OpsTest, Rotary_BothPairingsAndPartial_MatchComplexRotation) {
  for (const auto pairing : {RotaryPairing::kHalfSplit, RotaryPairing::kInterleaved}) {
    for (const std::int64_t half : {4, 16, 32}) {
      const at::Tensor angle = Random({9, half});
      const at::Tensor cos = at::cos(angle), sin = at::sin(angle);
      Compare(
          {Input({9, 3, 64})},
          [&](const std::vector<at::Tensor>& in) { return Rotary(in[0], cos, sin, pairing); },
          [&](const std::vector<at::Tensor>& in) {
            std::vector<at::Tensor> parts(64);
            for (std::int64_t d = 0; d < 64; ++d) parts[d] = in[0].select(-1, d);
            const std::vector<at::Tensor> old = parts;
            for (std::int64_t i = 0; i < half; ++i) {
              const bool split = pairing == RotaryPairing::kHalfSplit;
              const std::int64_t one = split ? i : 2 * i, two = split ? i + half : 2 * i + 1;
              const at::Tensor c = cos.select(1, i).unsqueeze(1), s = sin.select(1, i).unsqueeze(1);
              parts[one] = old[one] * c - old[two] * s;
              parts[two] = old[two] * c + old[one] * s;
            }
            return at::stack(parts, -1);
          });
    }
  }
}

TEST_P(OpsTest, SwiGlu_AnySize_MatchesPlainFormula) {
  Compare(
      {Input({13, 37}, 3.0), Input({13, 37})},
      [](const std::vector<at::Tensor>& in) { return SwiGlu(in[0], in[1]); },
      [](const std::vector<at::Tensor>& in) { return in[0] * at::sigmoid(in[0]) * in[1]; });
}

at::Tensor PlainAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const std::vector<std::int64_t>& offsets, double scale,
                          std::int64_t window) {
  std::vector<at::Tensor> rows;
  const std::int64_t group = q.size(1) / k.size(1);
  for (std::size_t r = 0; r + 1 < offsets.size(); ++r) {
    const std::int64_t begin = offsets[r], length = offsets[r + 1] - begin;
    if (length == 0) continue;
    std::vector<at::Tensor> heads;
    const at::Tensor index = at::arange(length);
    const at::Tensor distance = index.unsqueeze(1) - index.unsqueeze(0);
    at::Tensor hidden = distance.lt(0);
    if (window > 0) hidden = hidden.logical_or(distance.ge(window));
    for (std::int64_t h = 0; h < q.size(1); ++h) {
      const at::Tensor queries = q.narrow(0, begin, length).select(1, h);
      const at::Tensor keys = k.narrow(0, begin, length).select(1, h / group);
      const at::Tensor values = v.narrow(0, begin, length).select(1, h / group);
      const at::Tensor scores = at::mm(queries, keys.t())
                                    .mul(scale)
                                    .masked_fill(hidden, -std::numeric_limits<double>::infinity());
      heads.push_back(at::mm(at::softmax(scores, 1), values));
    }
    rows.push_back(at::stack(heads, 1));
  }
  return at::cat(rows, 0);
}

TEST_P(OpsTest, CausalAttention_RaggedRows_MatchesEachRowAlone) {
  struct Case {
    std::vector<std::int64_t> offsets;
    std::int64_t query_heads, key_heads, width, value_width, window;
  };
  const std::vector<Case> cases = {
      {{0, 1, 18, 18, 61}, 9, 3, 64, 64, 0},
      {{0, 130}, 4, 4, 32, 32, 0},
      {{0, 70, 90}, 6, 2, 24, 16, 7},
      {{0, 200, 333}, 2, 1, 128, 128, 0},
      {{0, 5}, 2, 1, 20, 12, 0},
  };
  for (const Case& c : cases) {
    const std::int64_t tokens = c.offsets.back();
    Compare(
        {Input({tokens, c.query_heads, c.width}), Input({tokens, c.key_heads, c.width}),
         Input({tokens, c.key_heads, c.value_width})},
        [&](const std::vector<at::Tensor>& in) {
          return CausalAttention(in[0], in[1], in[2], c.offsets, 0.2, c.window);
        },
        [&](const std::vector<at::Tensor>& in) {
          return PlainAttention(in[0], in[1], in[2], c.offsets, 0.2, c.window);
        });
  }
}

TEST_P(OpsTest, CrossEntropySum_SomeLabelsIgnored_MatchesLogSoftmax) {
  for (const std::int64_t tokens : {6, 300}) {
    const std::int64_t vocab = 517, width = 48;
    const at::Tensor weight = Random({vocab, width}, 0.3).to(dtype());
    const auto head = FrozenLinear::Make(weight.clone());
    at::Tensor labels =
        at::randint(vocab, {tokens}, generator_, at::TensorOptions().dtype(at::kLong));
    labels[1] = kIgnoredLabel;
    labels[tokens - 1] = kIgnoredLabel;
    const at::Tensor kept = labels.ne(kIgnoredLabel).to(at::kFloat);
    const auto losses = [&](const at::Tensor& hidden) {
      const at::Tensor logits = at::mm(hidden, weight.to(at::kFloat).t());
      return at::log_softmax(logits, 1)
          .gather(1, labels.clamp_min(0).unsqueeze(1))
          .squeeze(1)
          .mul(-kept);
    };
    const at::Tensor hidden = Input({tokens, width});
    Compare(
        {hidden},
        [&](const std::vector<at::Tensor>& in) { return CrossEntropySum(in[0], head, labels); },
        [&](const std::vector<at::Tensor>& in) { return losses(in[0]).sum(); });
    ExpectNear(TokenLosses(hidden, head, labels), losses(Reference(hidden)), "token losses");
  }
}

TEST_P(OpsTest, CrossEntropySum_NoLabelAtAll_IsZeroWithZeroGradient) {
  const auto head = FrozenLinear::Make(Random({50, 16}).to(dtype()));
  const at::Tensor hidden = Input({4, 16});
  const at::Tensor loss = CrossEntropySum(
      hidden, head, at::full({4}, kIgnoredLabel, at::TensorOptions().dtype(at::kLong)));
  EXPECT_EQ(loss.item<float>(), 0.0F);
  EXPECT_EQ(Gradients(loss, at::ones({}), {hidden})[0].abs().max().item<float>(), 0.0F);
}

// A head that passes through memory in pieces, the last one of odd size: loss, gradient and logits
// are those of one that stays, to the last bit, and every piece is given back.
TEST_P(OpsTest, PassingHead_EqualsOneThatStays_AndIsGivenBack) {
  const std::int64_t vocab = 30'001, width = 200;
  const at::Tensor weight = Random({vocab, width}, 0.3).to(dtype());
  const at::Tensor bias = Random({vocab}).to(dtype());
  std::vector<bool> held(static_cast<std::size_t>(vocab));
  const auto bytes = static_cast<std::size_t>(width * weight.element_size());
  const auto passing =
      FrozenLinear::MakePassing(weight, bias, [&](std::size_t begin, std::size_t end) {
        for (std::size_t row = begin / bytes; row < end / bytes; ++row) held[row] = false;
      });
  ASSERT_LT(passing->rows_at_once(), vocab);
  const auto staying = FrozenLinear::Make(weight, bias);
  at::Tensor labels = at::randint(vocab, {99}, generator_, at::TensorOptions().dtype(at::kLong));
  labels[0] = vocab - 1;
  const at::Tensor hidden = Input({99, width});
  std::vector<std::vector<at::Tensor>> results;
  for (const auto& head : {passing, staying}) {
    held.assign(held.size(), true);
    const at::Tensor loss = CrossEntropySum(hidden, head, labels);
    const bool given_back = std::find(held.begin(), held.end(), true) == held.end();
    EXPECT_EQ(given_back, head == passing);
    results.push_back(torch::autograd::grad({loss}, {hidden}));
    results.back().push_back(loss.detach());
    results.back().push_back(TokenLosses(hidden, head, labels));
    results.back().push_back(head->Forward(hidden.detach()));
  }
  for (std::size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_TRUE(at::equal(results[0][i], results[1][i])) << i;
  }
}

// Which thread takes which range of tasks is chance.
TEST_P(OpsTest, WholeLayer_AnyNumberOfThreads_IsTheSameBitForBit) {
  const at::Tensor weight = Random({517, 64}, 0.3).to(dtype());
  const auto head = FrozenLinear::Make(weight);
  const at::Tensor labels =
      at::randint(517, {333}, generator_, at::TensorOptions().dtype(at::kLong));
  const at::Tensor q = Input({333, 4, 16}), k = Input({333, 2, 16}), v = Input({333, 2, 16});
  const at::Tensor norm_weight = Random({64}).to(dtype());
  const auto square = FrozenLinear::Make(Random({64, 64}, 0.2).to(dtype()));
  LoraWeights adapter;
  adapter.a = Random({4, 64}, 0.2).set_requires_grad(true);
  adapter.b = Random({64, 4}, 0.2).set_requires_grad(true);
  std::vector<std::vector<at::Tensor>> results;
  const int before = at::get_num_threads();
  for (const int threads : {1, 4, 4, 3}) {
    at::set_num_threads(threads);
    const at::Tensor out = CausalAttention(q, k, v, {0, 200, 210, 333}, 0.25);
    const at::Tensor normed = RmsNorm(out.flatten(1), norm_weight, 1e-5);
    const at::Tensor projected = LoraLinear(normed, square, &adapter);
    const at::Tensor loss = CrossEntropySum(SwiGlu(projected, normed), head, labels);
    results.push_back(torch::autograd::grad({loss}, {q, k, v, adapter.a, adapter.b}));
    results.back().push_back(loss.detach());
  }
  at::set_num_threads(before);
  for (std::size_t run = 1; run < results.size(); ++run) {
    for (std::size_t i = 0; i < results[0].size(); ++i) {
      EXPECT_TRUE(at::equal(results[0][i], results[run][i])) << run << ": " << i;
    }
  }
}

TEST(ParallelTasks, EveryTask_RunsOnce) {
  const int before = at::get_num_threads();
  at::set_num_threads(4);
  const std::vector<cpu::Ranges> kinds = {
      {}, {.least = 8}, {.least = 7, .run = 22}, {.most = 1}, {.least = 100, .run = 1000}};
  for (const std::int64_t tasks : {0, 1, 3, 9, 100, 792}) {
    for (const cpu::Ranges& ranges : kinds) {
      std::vector<std::atomic<int>> times(static_cast<std::size_t>(tasks));
      cpu::ParallelTasks(
          tasks, 64,
          [&](std::int64_t begin, std::int64_t end, void* scratch) {
            ASSERT_NE(scratch, nullptr);
            for (std::int64_t i = begin; i < end; ++i) ++times[static_cast<std::size_t>(i)];
          },
          ranges);
      for (const std::atomic<int>& count : times) EXPECT_EQ(count, 1);
    }
  }
  at::set_num_threads(before);
}

// A NaN anywhere must reach the loss: it stops the job.
TEST_P(OpsTest, CrossEntropySum_NanInput_IsNan) {
  const auto head = FrozenLinear::Make(Random({50, 16}).to(dtype()));
  at::Tensor hidden = Input({4, 16}).detach().clone();
  hidden[2][3] = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor labels = at::full({4}, 1, at::TensorOptions().dtype(at::kLong));
  EXPECT_TRUE(std::isnan(CrossEntropySum(hidden, head, labels).item<float>()));
}

TEST_P(OpsTest, LoraLinearGroup_ThreeMembers_EqualsEachAlone) {
  const at::Tensor x = Input({37, 48});
  std::vector<LoraWeights> adapters(3);
  std::vector<LoraMember> members;
  const std::int64_t widths[] = {48, 16, 80};
  for (std::size_t i = 0; i < 3; ++i) {
    adapters[i].a = Random({4, 48}, 0.2).set_requires_grad(true);
    adapters[i].b = Random({widths[i], 4}, 0.2).set_requires_grad(true);
    adapters[i].scaling = 0.5 + static_cast<double>(i);
    members.push_back({FrozenLinear::Make(Random({widths[i], 48}, 0.2).to(dtype())),
                       i == 1 ? nullptr : &adapters[i]});
  }
  const auto together = LoraLinearGroup(x, members);
  std::vector<at::Tensor> seeds, alone;
  for (std::size_t i = 0; i < 3; ++i) {
    alone.push_back(LoraLinear(x, members[i].base, members[i].adapter));
    ExpectNear(together[i], alone[i].to(at::kFloat), "member");
    seeds.push_back(Random(alone[i].sizes()).to(dtype()));
  }
  const std::vector<at::Tensor> inputs = {x, adapters[0].a, adapters[0].b, adapters[2].a,
                                          adapters[2].b};
  const auto got = torch::autograd::grad(together, inputs, seeds);
  const auto want = torch::autograd::grad(alone, inputs, seeds);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    ExpectNear(got[i], want[i].to(at::kFloat), "gradient of the group");
  }
}

TEST_P(OpsTest, MakeAgain_NormAndSwiGlu_BitForBitWhatTheyWere) {
  const at::Tensor x = Input({9, 37}), residual = Input({9, 37}), weight = Random({37}).to(dtype());
  const ResidualNorm norm = ResidualRmsNorm(x, residual, weight, 1e-5);
  EXPECT_TRUE(at::equal(MakeAgain(norm.remake), norm.normed.detach()));
  const at::Tensor gate = Input({9, 37}), up = Input({9, 37});
  EXPECT_TRUE(at::equal(MakeAgain({Remake::Kind::kSwiGlu, {gate, up}}), SwiGlu(gate, up).detach()));
}

// The input made again in the backward pass gives the very gradients of the input kept.
TEST_P(OpsTest, LoraLinear_InputMadeAgain_SameGradients) {
  const at::Tensor gate = Input({21, 32}), up = Input({21, 32});
  LoraWeights adapter;
  adapter.a = Random({4, 32}, 0.2).set_requires_grad(true);
  adapter.b = Random({48, 4}, 0.2).set_requires_grad(true);
  const auto base = FrozenLinear::Make(Random({48, 32}, 0.2).to(dtype()));
  const at::Tensor seed = Random({21, 48}).to(dtype());
  std::vector<std::vector<at::Tensor>> gradients;
  for (const Remake& remake : {Remake{}, Remake{Remake::Kind::kSwiGlu, {gate, up}}}) {
    const at::Tensor out = LoraLinear(SwiGlu(gate, up), base, &adapter, remake);
    gradients.push_back(torch::autograd::grad({out}, {gate, up, adapter.a, adapter.b}, {seed}));
  }
  for (std::size_t i = 0; i < gradients[0].size(); ++i) {
    EXPECT_TRUE(at::equal(gradients[0][i], gradients[1][i])) << i;
  }
}

// float16, which the CPU kernels do not take, goes a GPU's way: by LibTorch's operations. Norms are
// not here: their backward pass is only there on a GPU.
class WithoutKernels : public OpsTest {
 protected:
  using Run = std::function<at::Tensor(const std::vector<at::Tensor>&, at::ScalarType)>;
  void ExpectAsWithThem(const std::vector<at::Tensor>& inputs, const Run& run) {
    Compare(
        inputs, [&](const std::vector<at::Tensor>& in) { return run(in, at::kHalf); },
        [&](const std::vector<at::Tensor>& in) { return run(in, at::kFloat); });
  }
};

TEST_P(WithoutKernels, RotaryAndSwiGlu_AsWithThem) {
  const at::Tensor angle = Random({9, 4});
  for (const auto pairing : {RotaryPairing::kHalfSplit, RotaryPairing::kInterleaved}) {
    for (const std::int64_t width : {8, 11}) {
      ExpectAsWithThem({Input({9, 3, width})}, [&](const std::vector<at::Tensor>& in, auto) {
        return Rotary(in[0], at::cos(angle), at::sin(angle), pairing);
      });
    }
  }
  ExpectAsWithThem({Input({13, 37}, 3.0), Input({13, 37})},
                   [](const std::vector<at::Tensor>& in, auto) { return SwiGlu(in[0], in[1]); });
}

TEST_P(WithoutKernels, LoraLinearAndLoss_AsWithThem) {
  const at::Tensor weight = Random({96, 64}, 0.1).to(at::kHalf);
  const at::Tensor a = Random({8, 64}, 0.1).to(at::kHalf).to(at::kFloat).set_requires_grad(true);
  const at::Tensor b = Random({96, 8}, 0.1).to(at::kHalf).to(at::kFloat).set_requires_grad(true);
  ExpectAsWithThem({Input({33, 64}), a, b},
                   [&](const std::vector<at::Tensor>& in, at::ScalarType type) {
                     LoraWeights adapter;
                     adapter.a = in[1];
                     adapter.b = in[2];
                     adapter.scaling = 1.5;
                     return LoraLinear(in[0], FrozenLinear::Make(weight.to(type)), &adapter);
                   });
  at::Tensor labels = at::randint(96, {700}, generator_, at::TensorOptions(at::kLong));
  labels[3] = kIgnoredLabel;
  ExpectAsWithThem({Input({700, 64})}, [&](const std::vector<at::Tensor>& in, at::ScalarType type) {
    return CrossEntropySum(in[0], FrozenLinear::Make(weight.to(type)), labels);
  });
}

TEST_P(WithoutKernels, Dropout_LeavesTheSameElements) {
  const at::Tensor ones = at::ones({70, 1001});
  const auto dropped = [&](at::ScalarType type) { return DropoutCopy(ones.to(type), 0.3, 5); };
  EXPECT_TRUE(at::equal(dropped(at::kHalf).ne(0), dropped(at::kFloat).ne(0)));
  EXPECT_NEAR(dropped(at::kHalf).to(at::kFloat).mean().item<double>(), 1, 0.01);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, WithoutKernels, testing::Values(at::kHalf),
                         [](const auto&) { return "Float16"; });

INSTANTIATE_TEST_SUITE_P(Dtypes, OpsTest, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) {
                           return info.param == at::kFloat ? "Float32" : "BFloat16";
                         });

}  // namespace
}  // namespace offshoot::trainer
