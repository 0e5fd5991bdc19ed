// The decoder, the adapters, the loss and AdamW against transformers and PEFT, on every fixture.
// The limits are several times the rounding noise of the reference itself (float64 weights, other
// kernels) and far below what any mistake in the mathematics moves.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tests/parity/fixture.h"
#include "trainer/lora/lora_set.h"
#include "trainer/models/generate.h"
#include "trainer/optim/adamw.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

constexpr double kLogitLimit = 1e-4;
constexpr double kLossLimit = 5e-5;
constexpr double kGradientLimit = 5e-5;
constexpr double kNormLimit = 2e-4;  // relative
constexpr double kAdapterLimit = 1e-3;

at::Tensor Logits(const Decoder& decoder, const TokenBatch& batch, const Adapters* adapters,
                  const ForwardOptions& options = {}) {
  const at::NoGradGuard no_grad;
  return decoder.head()->Forward(decoder.Forward(batch, adapters, options)).to(at::kFloat);
}

// The loss of the batch as transformers computes it, with autograd.
at::Tensor MeanLoss(const Decoder& decoder, const TokenBatch& batch, const Adapters* adapters,
                    ForwardOptions options = {}) {
  options.training = true;
  at::Tensor router_loss;
  options.router_loss = &router_loss;
  const at::Tensor hidden = decoder.Forward(batch, adapters, options);
  at::Tensor loss = CrossEntropySum(hidden, decoder.head(), batch.labels)
                        .div(static_cast<double>(batch.trained_tokens));
  return router_loss.defined() ? loss.add(router_loss) : loss;
}

class Parity : public testing::TestWithParam<std::string> {
 protected:
  Parity() : fixture_(ReadFixture(GetParam())) { as_padded_.rotary_length = fixture_.width(); }
  const Fixture fixture_;
  ForwardOptions as_padded_;  // the reference ran a padded batch
};

TEST_P(Parity, BaseLogits_BothConfigSpellings_EqualTransformers) {
  const at::Tensor expected =
      fixture_.Packed(SafetensorsFile::Open(fixture_.File("outputs.safetensors"))->Get("logits"));
  for (const std::string& config : fixture_.ConfigFiles()) {
    const auto decoder = fixture_.Load(config);
    const double difference =
        LargestDifference(Logits(*decoder, fixture_.Batch(), nullptr, as_padded_), expected);
    EXPECT_LE(difference, kLogitLimit) << config;
    RecordProperty("logits_" + config, std::to_string(difference));
  }
}

TEST_P(Parity, BaseLoss_PackedRows_EqualsTransformers) {
  const auto decoder = fixture_.Load();
  const at::NoGradGuard no_grad;
  const double loss = MeanLoss(*decoder, fixture_.Batch(), nullptr, as_padded_).item<double>();
  EXPECT_NEAR(loss, fixture_.expected["loss"].get<double>(), kLossLimit);
}

TEST_P(Parity, BaseLogits_RowsPackedOrAlone_AreTheSame) {
  const auto decoder = fixture_.Load();
  const TokenBatch batch = fixture_.Batch();
  const at::Tensor packed = Logits(*decoder, batch, nullptr);
  for (std::int64_t row = 0; row < fixture_.rows(); ++row) {
    const auto index = static_cast<std::size_t>(row);
    const at::Tensor part = packed.slice(0, batch.row_offsets[index], batch.row_offsets[index + 1]);
    EXPECT_LE(LargestDifference(part, Logits(*decoder, fixture_.Row(row), nullptr)), 2e-5) << row;
  }
}

TEST_P(Parity, BaseLogits_DecodedTokenByTokenWithCache_EqualTheWholeRow) {
  const auto decoder = fixture_.Load();
  const TokenBatch row = fixture_.Row(0);
  DecoderCache cache = decoder->MakeCache();
  std::vector<at::Tensor> parts;
  std::int64_t length = row.tokens.size(0);
  // Beyond the context length, dynamic rope turns cached keys by other angles than a whole row's
  // (transformers does the same).
  for (const RotarySpec& rotary : decoder->spec().rotaries) {
    if (rotary.kind == RotaryKind::kDynamic) length = std::min(length, rotary.original_context);
  }
  TokenBatch cut = row;
  cut.tokens = row.tokens.slice(0, 0, length);
  cut.positions = row.positions.slice(0, 0, length);
  cut.row_offsets = {0, length};
  const at::Tensor whole = Logits(*decoder, cut, nullptr);
  // A prefix, a piece of several tokens, then one at a time.
  for (std::int64_t begin = 0; begin < length;) {
    const std::int64_t end = begin == 0 ? 4 : begin == 4 ? 9 : begin + 1;
    const at::Tensor hidden = decoder->Extend(row.tokens.slice(0, begin, end), nullptr, cache);
    EXPECT_LE(LargestDifference(decoder->head()->Forward(hidden), whole.slice(0, begin, end)), 5e-5)
        << "tokens " << begin << " to " << end;
    begin = end;
  }
  EXPECT_EQ(cache.length, length);
  // Latent attention keeps its latents and the shared rotated key, not each head's keys and values.
  for (std::size_t i = 0; i < cache.layers.size(); ++i) {
    const auto* latent = std::get_if<LatentAttentionSpec>(&decoder->spec().layers[i].attention);
    if (latent == nullptr) continue;
    EXPECT_EQ(cache.layers[i].first.numel(), length * latent->key_value_rank);
    EXPECT_EQ(cache.layers[i].second.numel(), length * latent->rotary_dim);
  }
}

TEST_P(Parity, GreedyAnswer_WithCache_EqualsTransformers) {
  if (!fixture_.expected.contains("greedy")) GTEST_SKIP() << "this fixture has no answer";
  const auto decoder = fixture_.Load();
  const nlohmann::json& greedy = fixture_.expected["greedy"];
  GenerateOptions options;
  options.max_new_tokens = static_cast<std::int64_t>(greedy["ids"].size());
  const Generation answer = Generate(*decoder, nullptr, greedy["prompt"], options);
  EXPECT_EQ(answer.ids, greedy["ids"].get<std::vector<std::int64_t>>());
}

TEST_P(Parity, BaseLogits_InBfloat16_StayNearFloat32) {
  const auto decoder = fixture_.Load("config.json", at::kBFloat16);
  const at::Tensor expected =
      fixture_.Packed(SafetensorsFile::Open(fixture_.File("outputs.safetensors"))->Get("logits"));
  const at::Tensor logits = Logits(*decoder, fixture_.Batch(), nullptr, as_padded_);
  // bf16 has 8 bits: an error of some percent of the logits' spread, not more.
  const double spread = expected.std().item<double>();
  const double error = logits.sub(expected).abs().mean().item<double>();
  EXPECT_LE(error, 0.05 * spread);
  RecordProperty("relative_error", std::to_string(error / spread));
}

TEST_P(Parity, LoraLogits_AllVariants_EqualPeft) {
  const auto decoder = fixture_.Load();
  for (const std::string variant : {"lora", "lora_experts", "lora_fused"}) {
    if (!fixture_.HasFile(variant)) continue;
    const auto adapters = LoraSet::Load(*decoder, fixture_.File(variant));
    const at::Tensor expected = fixture_.Packed(
        SafetensorsFile::Open(fixture_.File(variant + "_outputs.safetensors"))->Get("logits"));
    EXPECT_LE(
        LargestDifference(Logits(*decoder, fixture_.Batch(), adapters.get(), as_padded_), expected),
        kLogitLimit)
        << variant;
  }
}

TEST_P(Parity, Gradients_FirstStep_EqualPeft) {
  const auto decoder = fixture_.Load();
  for (const std::string& variant : fixture_.TrainedVariants()) {
    const auto adapters = LoraSet::Load(*decoder, fixture_.File(variant));
    MeanLoss(*decoder, fixture_.Batch(), adapters.get(), as_padded_).backward();
    const auto expected = SafetensorsFile::Open(fixture_.File(variant + "_outputs.safetensors"));
    int compared = 0;
    for (const auto& parameter : adapters->parameters()) {
      if (!expected->Has("grad." + parameter.name)) continue;
      ++compared;
      EXPECT_LE(LargestDifference(parameter.tensor.grad(), expected->Get("grad." + parameter.name)),
                kGradientLimit)
          << variant << " " << parameter.name;
    }
    EXPECT_GT(compared, 0) << variant;
  }
}

TEST_P(Parity, Gradients_ActivationsRecomputed_AreTheSame) {
  const auto decoder = fixture_.Load();
  for (const std::string& variant : fixture_.TrainedVariants()) {
    const auto kept = LoraSet::Load(*decoder, fixture_.File(variant));
    kept->SetDropout(0.2);
    ForwardOptions options;
    options.dropout_seed = 77;
    const at::Tensor kept_loss = MeanLoss(*decoder, fixture_.Batch(), kept.get(), options);
    kept_loss.backward();
    for (const Recomputed what : {Recomputed::kFeedForward, Recomputed::kLayers}) {
      const auto recomputed = LoraSet::Load(*decoder, fixture_.File(variant));
      recomputed->SetDropout(0.2);
      options.recomputed = what;
      const at::Tensor loss = MeanLoss(*decoder, fixture_.Batch(), recomputed.get(), options);
      loss.backward();
      EXPECT_LE(LargestDifference(loss, kept_loss), 1e-6) << variant;
      for (std::size_t i = 0; i < kept->parameters().size(); ++i) {
        const auto& parameter = kept->parameters()[i];
        const at::Tensor other = recomputed->parameters()[i].tensor.grad();
        // An expert that no token chose has no gradient.
        ASSERT_EQ(other.defined(), parameter.tensor.grad().defined()) << variant << parameter.name;
        if (!other.defined()) continue;
        // Sums over the residual stream go in another order: some units in the last place.
        const double size = std::max(1.0, parameter.tensor.grad().abs().max().item<double>());
        EXPECT_LE(LargestDifference(parameter.tensor.grad(), other), 1e-6 * size)
            << variant << " " << parameter.name;
      }
    }
  }
}

// The traces of a base in 4 and 8 bits, of the same adapter: PEFT on the dequantised weights.
TEST_P(Parity, LossTrace_QuantisedBase_EqualsPeftOnItsValues) {
  if (!fixture_.expected.contains("quantised")) GTEST_SKIP() << "this fixture has no such trace";
  for (const auto& [name, expected] : fixture_.expected["quantised"].items()) {
    const auto decoder = fixture_.Load("config.json", at::kFloat, *FindQuantisation(name));
    const auto adapters = LoraSet::Load(*decoder, fixture_.File("lora"));
    std::vector<at::Tensor> leaves;
    for (const auto& parameter : adapters->parameters()) leaves.push_back(parameter.tensor);
    AdamWOptions options;
    options.weight_decay = fixture_.expected["optimizer"]["weight_decay"];
    FlatAdamW optimizer(leaves, options);
    for (std::size_t step = 0; step < expected["losses"].size(); ++step) {
      optimizer.ZeroGradients();
      const at::Tensor loss = MeanLoss(*decoder, fixture_.Batch(), adapters.get(), as_padded_);
      loss.backward();
      EXPECT_NEAR(loss.item<double>(), expected["losses"][step].get<double>(), kLossLimit)
          << name << " step " << step;
      const double norm = expected["grad_norms"][step];
      EXPECT_NEAR(optimizer.GradientNorm(), norm, kNormLimit * norm) << name << " step " << step;
      optimizer.Step(static_cast<std::int64_t>(step) + 1, fixture_.expected["optimizer"]["lr"],
                     1.0);
    }
  }
}

double Larger(const nlohmann::json& spread, const char* one, const char* other) {
  return std::max(spread[one].get<double>(), spread[other].get<double>());
}

// The tokens of make_fixtures.py's drawn_tokens.
TokenBatch DrawnTokens(std::int64_t vocab_size) {
  constexpr std::int64_t kRows = 24, kWidth = 32;
  TokenBatch batch;
  std::vector<std::int64_t> tokens, positions;
  batch.row_offsets = {0};
  for (std::int64_t i = 0; i < kRows * kWidth; ++i) {
    const std::int64_t draw = (i * 2654435761 % (std::int64_t{1} << 32)) / 256;
    tokens.push_back(draw % (vocab_size - 3) + 3);
    positions.push_back(i % kWidth);
  }
  for (std::int64_t row = 0; row < kRows; ++row) {
    batch.rows.push_back(row);
    batch.row_offsets.push_back((row + 1) * kWidth);
  }
  batch.tokens = at::tensor(tokens, at::kLong);
  batch.positions = at::tensor(positions, at::kLong);
  return batch;
}

// Not farther from float32 than transformers is with one or the other attention: over all logits
// of 768 tokens, or, where there are experts, for the median token. Rounding sends a few tokens to
// another expert than float32 does; those decide any mean (transformers' own varies twofold from
// one draw of 768 tokens to the next), so they are counted: the first of each row, as later tokens
// attend to it and may be off for that alone, against what transformers' rate gives for as many
// tokens. Such a count has a Poisson error. The exact logits are our own in float32, which other
// tests hold against the reference.
TEST_P(Parity, Bfloat16_IsWithinTransformersOwnSpread) {
  if (!fixture_.expected.contains("bfloat16")) GTEST_SKIP() << "this fixture has no spread";
  const nlohmann::json& spread = fixture_.expected["bfloat16"];
  const auto exact = fixture_.Load();
  const auto rounded = fixture_.Load("config.json", at::kBFloat16);
  const TokenBatch batch = DrawnTokens(exact->spec().vocab_size);
  ForwardOptions forward;
  forward.rotary_length = batch.row_offsets[1];
  const at::Tensor errors = Logits(*rounded, batch, nullptr, forward)
                                .sub(Logits(*exact, batch, nullptr, forward))
                                .pow(2)
                                .mean(-1);
  if (!spread.contains("flip_error")) {
    const double rms = errors.mean().sqrt().item<double>();
    const double limit = Larger(spread, "eager_rms", "sdpa_rms");
    EXPECT_LE(rms, limit);
    RecordProperty("part_of_spread", std::to_string(rms / limit));
    return;
  }
  const double median = errors.median().sqrt().item<double>();
  const double limit = Larger(spread, "eager_median", "sdpa_median");
  EXPECT_LE(median, 1.02 * limit);  // two medians of 768 tokens differ by so much by chance
  RecordProperty("part_of_spread", std::to_string(median / limit));
  const double flip_error = spread["flip_error"].get<double>();
  const at::Tensor flipped = errors.sqrt().gt(flip_error).view({-1, forward.rotary_length});
  std::int64_t flips = 0, tokens = 0;  // tokens up to the first flip of each row, with it
  for (std::int64_t row = 0; row < flipped.size(0); ++row) {
    bool found = false;
    for (std::int64_t i = 0; i < flipped.size(1) && !found; ++i, ++tokens) {
      found = flipped[row][i].item<bool>();
    }
    if (found) ++flips;
  }
  const double expected =
      Larger(spread, "eager_flips_per_token", "sdpa_flips_per_token") * static_cast<double>(tokens);
  EXPECT_LE(static_cast<double>(flips), expected + 3.0 * std::sqrt(expected + 1.0));
  RecordProperty("flips_and_reference", std::to_string(flips) + " of " + std::to_string(expected));
}

double Bfloat16LossError(const Fixture& fixture) {
  const at::NoGradGuard no_grad;
  const auto decoder = fixture.Load("config.json", at::kBFloat16);
  ForwardOptions as_padded;
  as_padded.rotary_length = fixture.width();
  const double loss = MeanLoss(*decoder, fixture.Batch(), nullptr, as_padded).item<double>();
  return std::abs(loss - fixture.expected["loss"].get<double>());
}

// One loss is one draw of rounding noise, so all fixtures together are compared.
TEST(ParityOfAll, Bfloat16Losses_AreWithinTransformersOwnSpread) {
  double errors = 0.0, limits = 0.0;
  for (const std::string& path : FixturePaths()) {
    const Fixture fixture = ReadFixture(path);
    if (!fixture.expected.contains("bfloat16")) continue;
    errors += Bfloat16LossError(fixture);
    limits += Larger(fixture.expected["bfloat16"], "eager_loss_error", "sdpa_loss_error");
  }
  EXPECT_GT(limits, 0.0);
  EXPECT_LE(errors, limits);
}

void TrainAndCompare(const Fixture& fixture, const std::string& variant,
                     const ForwardOptions& forward) {
  const auto decoder = fixture.Load();
  const auto adapters = LoraSet::Load(*decoder, fixture.File(variant));
  const nlohmann::json& settings = fixture.expected["optimizer"];
  const nlohmann::json& expected = fixture.expected[variant];
  std::vector<at::Tensor> leaves;
  for (const auto& parameter : adapters->parameters()) leaves.push_back(parameter.tensor);
  AdamWOptions options;
  options.weight_decay = settings["weight_decay"];
  FlatAdamW optimizer(leaves, options);
  const auto steps = expected["loss_trace"].size();
  for (std::size_t step = 0; step < steps; ++step) {
    optimizer.ZeroGradients();
    const at::Tensor loss = MeanLoss(*decoder, fixture.Batch(), adapters.get(), forward);
    loss.backward();
    EXPECT_NEAR(loss.item<double>(), expected["loss_trace"][step].get<double>(), kLossLimit)
        << variant << " step " << step;
    const double norm = expected["grad_norm_trace"][step];
    EXPECT_NEAR(optimizer.GradientNorm(), norm, kNormLimit * norm) << variant << " step " << step;
    optimizer.Step(static_cast<std::int64_t>(step) + 1, settings["lr"], 1.0);
  }
  const at::NoGradGuard no_grad;
  const at::Tensor after = MeanLoss(*decoder, fixture.Batch(), adapters.get(), forward);
  EXPECT_NEAR(after.item<double>(), expected["loss_after"].get<double>(), kLossLimit) << variant;
  const auto final =
      SafetensorsFile::Open(fixture.File(variant + "_final/adapter_model.safetensors"));
  for (const auto& parameter : adapters->parameters()) {
    ASSERT_TRUE(final->Has(parameter.name)) << parameter.name;
    EXPECT_LE(LargestDifference(parameter.tensor, final->Get(parameter.name)), kAdapterLimit)
        << variant << " " << parameter.name;
  }
  EXPECT_EQ(final->tensors().size(), adapters->parameters().size());
}

TEST_P(Parity, LossTrace_AdamWSteps_EqualsPeft) {
  for (const std::string& variant : fixture_.TrainedVariants()) {
    TrainAndCompare(fixture_, variant, as_padded_);
  }
}

TEST_P(Parity, Adapter_SavedAndLoaded_IsTheSame) {
  const auto decoder = fixture_.Load();
  const auto root = std::filesystem::temp_directory_path() /
                    ("offshoot_parity_" + std::to_string(::getpid()) + fixture_.name);
  std::filesystem::create_directories(root);
  for (const std::string& variant : fixture_.TrainedVariants()) {
    const auto adapters = LoraSet::Load(*decoder, fixture_.File(variant));
    adapters->Save(root.string(), "org/base", "main");
    const auto again = LoraSet::Load(*decoder, root.string());
    ASSERT_EQ(again->parameters().size(), adapters->parameters().size());
    EXPECT_EQ(LargestDifference(Logits(*decoder, fixture_.Batch(), adapters.get()),
                                Logits(*decoder, fixture_.Batch(), again.get())),
              0.0);
  }
  std::filesystem::remove_all(root);
}

std::string CaseName(const testing::TestParamInfo<std::string>& info) {
  const std::filesystem::path path(info.param);
  // Cases of several roots may share a name.
  return path.filename().string() + (info.param.starts_with("tests/") ? "" : "_extra");
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Parity, testing::ValuesIn(FixturePaths()), CaseName);

}  // namespace
}  // namespace offshoot::trainer
