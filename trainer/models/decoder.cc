#include "trainer/models/decoder.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "trainer/models/attention.h"
#include "trainer/models/family.h"
#include "trainer/models/feed_forward.h"
#include "trainer/models/module_loader.h"
#include "trainer/models/recompute.h"
#include "trainer/models/router_loss.h"
#include "trainer/weights/passing.h"

namespace offshoot::trainer {
namespace {

// Of an embedding that passes through memory: each brings 64 KiB of a mapped file with it.
constexpr std::int64_t kLookedUpTokens = 64;

struct Layer {
  at::Tensor attention_norm, feed_forward_norm;
  std::unique_ptr<Attention> attention;
  std::unique_ptr<FeedForward> feed_forward;
  ResidualSpec attention_residual, feed_forward_residual;
  // Of Decoder::linear_modules(): those of attention, then those of the feed-forward part.
  std::size_t first_module = 0, first_feed_forward = 0, end_module = 0;
};

// The residual stream and its norm, as the next part reads them.
struct Stream {
  at::Tensor sum;
  LayerInput normed;
};

at::Tensor Scaled(const at::Tensor& x, double factor) { return factor == 1.0 ? x : x.mul(factor); }

Stream Join(const Stream& stream, const at::Tensor& branch, const ResidualSpec& residual,
            const at::Tensor& norm, double epsilon) {
  const at::Tensor& kept = residual.from_normed ? stream.normed.value : stream.sum;
  ResidualNorm joined =
      ResidualRmsNorm(Scaled(branch, residual.branch), Scaled(kept, residual.skip), norm, epsilon);
  return {std::move(joined.sum), {std::move(joined.normed), std::move(joined.remake)}};
}

at::Tensor JoinSum(const Stream& stream, const at::Tensor& branch, const ResidualSpec& residual) {
  const at::Tensor& kept = residual.from_normed ? stream.normed.value : stream.sum;
  return at::add(Scaled(branch, residual.branch), Scaled(kept, residual.skip));
}

class DecoderImpl final : public Decoder {
 public:
  DecoderImpl(ArchSpec spec, const DecoderOptions& options, ModuleLoader& loader)
      : spec_(std::move(spec)), device_(options.device) {
    LoadEmbeddingAndHead(loader);
    for (std::size_t i = 0; i < spec_.layers.size(); ++i) {
      layers_.push_back(BuildLayer(spec_.layers[i], i, loader));
    }
    final_norm_ = loader.Tensor(spec_.final_norm_name + ".weight", {spec_.hidden_size});
    modules_ = std::move(loader.modules());
    parameter_count_ = loader.parameter_count();
    weight_bytes_ = (parameter_count_ - passing_elements_) *
                    static_cast<std::int64_t>(c10::elementSize(options.dtype));
    if (options.quantisation == Quantisation::kNone) return;
    for (const LinearModule& module : modules_) {
      const std::int64_t count = module.in_features * module.out_features;
      weight_bytes_ += QuantisedBytes(count, module.out_features, options.quantisation) -
                       count * static_cast<std::int64_t>(c10::elementSize(options.dtype));
    }
  }

  const ArchSpec& spec() const override { return spec_; }
  const std::shared_ptr<const FrozenLinear>& head() const override { return head_; }
  const std::vector<LinearModule>& linear_modules() const override { return modules_; }
  std::int64_t parameter_count() const override { return parameter_count_; }
  std::int64_t weight_bytes() const override { return weight_bytes_; }
  std::string device() const override { return device_; }
  DecoderCache MakeCache() const override {
    return {std::vector<LayerCache>(spec_.layers.size()), 0};
  }

  at::Tensor Forward(const TokenBatch& batch, const Adapters* adapters,
                     const ForwardOptions& options) const override {
    TORCH_CHECK(head_ != nullptr, "this decoder was loaded without weights");
    auto context = std::make_shared<ForwardContext>();
    context->row_offsets = batch.row_offsets;
    context->adapters = adapters;
    context->training = options.training;
    context->dropout_seed = options.dropout_seed;
    context->router_statistics =
        options.router_loss != nullptr && spec_.router_loss_coefficient != 0.0;
    FillRotaries(batch.positions.to(c10::Device(device_)), options.rotary_length, *context);
    RouterLoss router_loss;
    const at::Tensor embedded = Embed(batch.tokens);
    Rerun rerun;
    if (options.recomputed != Recomputed::kNothing) {
      auto again = std::make_shared<ForwardContext>(*context);
      again->result_unread = true;
      rerun = {context, std::move(again)};
    }
    const at::Tensor hidden = options.recomputed == Recomputed::kLayers
                                  ? RunRecomputing(embedded, rerun, router_loss)
                                  : Run(embedded, *context, nullptr, router_loss, rerun);
    if (context->router_statistics) {
      *options.router_loss = router_loss.Value(spec_.router_loss_coefficient);
    }
    return hidden;
  }

  at::Tensor Extend(const at::Tensor& tokens, const Adapters* adapters,
                    DecoderCache& cache) const override {
    TORCH_CHECK(head_ != nullptr, "this decoder was loaded without weights");
    const at::NoGradGuard no_grad;
    const std::int64_t fresh = tokens.size(0);
    ForwardContext context;
    context.row_offsets = {0, fresh};
    context.adapters = adapters;
    FillRotaries(at::arange(cache.length, cache.length + fresh,
                            at::TensorOptions(at::kLong).device(c10::Device(device_))),
                 0, context);
    RouterLoss unused;
    const at::Tensor hidden = Run(Embed(tokens), context, &cache, unused);
    cache.length += fresh;
    return hidden;
  }

 private:
  void LoadEmbeddingAndHead(ModuleLoader& loader) {
    const std::vector<std::int64_t> shape = {spec_.vocab_size, spec_.hidden_size};
    const std::string embedding_name = spec_.embedding_name + ".weight";
    const std::string head_name = spec_.head_name + ".weight";
    // Tied files may hold either tensor or both; two that differ are not tied after all, whatever
    // the config says (transformers decides the same way).
    const bool has_embedding = loader.Has(embedding_name);
    const bool has_head = loader.Has(head_name);
    const bool only_head = spec_.tied_head && !has_embedding && has_head;
    const bool only_embedding = spec_.tied_head && !has_head;
    const std::string& name = only_head ? head_name : embedding_name;
    embedding_ = loader.Tensor(name, shape);
    release_embedding_ = loader.ReleaseOf(name);
    at::Tensor head = embedding_;
    PageRelease release_head = release_embedding_;
    if (!only_head && !only_embedding) {
      head = loader.Tensor(head_name, shape);
      release_head = loader.ReleaseOf(head_name);
      if (release_head) passing_elements_ += spec_.vocab_size * spec_.hidden_size;
      if (spec_.tied_head && head.defined() &&
          EqualInPieces(head, release_head, embedding_, release_embedding_)) {
        head = embedding_;
        release_head = release_embedding_;
      }
    }
    if (release_embedding_) passing_elements_ += spec_.vocab_size * spec_.hidden_size;
    at::Tensor bias;
    if (spec_.head_bias) bias = loader.Tensor(spec_.head_name + ".bias", {spec_.vocab_size});
    if (!loader.loading()) return;
    if (release_embedding_) release_embedding_(0, embedding_.nbytes());
    head_ = release_head ? FrozenLinear::MakePassing(head, bias, std::move(release_head))
                         : FrozenLinear::Make(head, bias);
  }

  Layer BuildLayer(const LayerSpec& layer_spec, std::size_t index, ModuleLoader& loader) const {
    const std::string path = spec_.layers_path + "." + std::to_string(index);
    const auto make_attention = [&](const auto& part) {
      return MakeAttention(part, spec_.hidden_size, path, loader);
    };
    const auto make_feed_forward = [&](const auto& part) {
      return MakeFeedForward(part, spec_.hidden_size, path, loader);
    };
    Layer layer;
    layer.first_module = loader.modules().size();
    layer.attention_norm =
        loader.Tensor(path + "." + layer_spec.attention_norm_name + ".weight", {spec_.hidden_size});
    layer.attention = std::visit(make_attention, layer_spec.attention);
    layer.first_feed_forward = loader.modules().size();
    layer.feed_forward_norm = loader.Tensor(
        path + "." + layer_spec.feed_forward_norm_name + ".weight", {spec_.hidden_size});
    layer.feed_forward = std::visit(make_feed_forward, layer_spec.feed_forward);
    layer.attention_residual = layer_spec.attention_residual;
    layer.feed_forward_residual = layer_spec.feed_forward_residual;
    layer.end_module = loader.modules().size();
    return layer;
  }

  void FillRotaries(const at::Tensor& positions, std::int64_t row_length,
                    ForwardContext& context) const {
    for (const RotarySpec& rotary : spec_.rotaries) {
      context.rotaries.push_back(
          MakeRotaryTables(rotary, positions, context.row_offsets, row_length));
    }
  }

  at::Tensor Embed(const at::Tensor& tokens) const {
    const at::Tensor rows = tokens.to(embedding_.device());
    if (!release_embedding_) return at::index_select(embedding_, 0, rows);
    const at::Tensor embedded = at::empty({rows.size(0), spec_.hidden_size}, embedding_.options());
    for (std::int64_t first = 0; first < rows.size(0); first += kLookedUpTokens) {
      const std::int64_t count = std::min(kLookedUpTokens, rows.size(0) - first);
      embedded.narrow(0, first, count)
          .copy_(at::index_select(embedding_, 0, rows.narrow(0, first, count)));
      release_embedding_(0, embedding_.nbytes());
    }
    return embedded;
  }

  // The contexts of a segment's two passes; null if nothing is computed again.
  struct Rerun {
    std::shared_ptr<const ForwardContext> first, again;
    const ForwardContext& Context(bool is_again) const { return is_again ? *again : *first; }
  };

  at::Tensor Run(const at::Tensor& embedded, const ForwardContext& context, DecoderCache* cache,
                 RouterLoss& router_loss, const Rerun& rerun = {}) const {
    Stream stream{embedded, RmsNorm(embedded, layers_[0].attention_norm, spec_.norm_epsilon)};
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      const at::Tensor attended = layer.attention->Forward(
          stream.normed, context, cache == nullptr ? nullptr : &cache->layers[i]);
      stream = Join(stream, attended, layer.attention_residual, layer.feed_forward_norm,
                    spec_.norm_epsilon);
      const FeedForwardResult result = rerun.first == nullptr
                                           ? layer.feed_forward->Forward(stream.normed, context)
                                           : FeedForwardRecomputing(layer, stream.sum, rerun);
      router_loss.Add(result.router_sums, embedded.size(0));
      const bool last = i + 1 == layers_.size();
      stream = Join(stream, result.output, layer.feed_forward_residual,
                    last ? final_norm_ : layers_[i + 1].attention_norm, spec_.norm_epsilon);
    }
    return stream.normed.value;
  }

  // One layer as a segment: the residual stream in, the residual stream out (and router sums).
  std::vector<at::Tensor> RunLayer(const Layer& layer, const at::Tensor& x,
                                   const ForwardContext& context) const {
    Stream stream{x, RmsNorm(x, layer.attention_norm, spec_.norm_epsilon)};
    const at::Tensor attended = layer.attention->Forward(stream.normed, context, nullptr);
    stream = Join(stream, attended, layer.attention_residual, layer.feed_forward_norm,
                  spec_.norm_epsilon);
    const FeedForwardResult result = layer.feed_forward->Forward(stream.normed, context);
    std::vector<at::Tensor> outputs = {JoinSum(stream, result.output, layer.feed_forward_residual)};
    if (result.router_sums.defined()) outputs.push_back(result.router_sums);
    return outputs;
  }

  // Of modules [first, end).
  static std::vector<at::Tensor> Parameters(std::size_t first, std::size_t end,
                                            const Adapters* adapters) {
    std::vector<at::Tensor> parameters;
    for (std::size_t m = first; adapters != nullptr && m < end; ++m) {
      const LoraWeights* weights = adapters->Find(m);
      if (weights == nullptr || !weights->enabled || !weights->a.requires_grad()) continue;
      parameters.push_back(weights->a);
      parameters.push_back(weights->b);
    }
    return parameters;
  }

  // The feed-forward part of the residual stream x, not normed yet, as a segment.
  FeedForwardResult FeedForwardRecomputing(const Layer& layer, const at::Tensor& x,
                                           const Rerun& rerun) const {
    const Segment segment = [this, &layer, rerun](const at::Tensor& input, bool again) {
      const FeedForwardResult result = layer.feed_forward->Forward(
          RmsNorm(input, layer.feed_forward_norm, spec_.norm_epsilon), rerun.Context(again));
      std::vector<at::Tensor> outputs = {result.output};
      if (result.router_sums.defined()) outputs.push_back(result.router_sums);
      return outputs;
    };
    const std::vector<at::Tensor> outputs = Recompute(
        segment, x, Parameters(layer.first_feed_forward, layer.end_module, rerun.first->adapters));
    return {outputs[0], outputs.size() > 1 ? outputs[1] : at::Tensor()};
  }

  at::Tensor RunRecomputing(const at::Tensor& embedded, const Rerun& rerun,
                            RouterLoss& router_loss) const {
    at::Tensor x = embedded;
    for (const Layer& layer : layers_) {
      const Segment segment = [this, &layer, rerun](const at::Tensor& input, bool again) {
        return RunLayer(layer, input, rerun.Context(again));
      };
      const std::vector<at::Tensor> outputs = Recompute(
          segment, x, Parameters(layer.first_module, layer.end_module, rerun.first->adapters));
      x = outputs[0];
      if (outputs.size() > 1) router_loss.Add(outputs[1], embedded.size(0));
    }
    return RmsNorm(x, final_norm_, spec_.norm_epsilon);
  }

  const ArchSpec spec_;
  const std::string device_;
  at::Tensor embedding_, final_norm_;
  PageRelease release_embedding_;      // empty if the embedding stays in memory
  std::int64_t passing_elements_ = 0;  // of weights that do not
  std::shared_ptr<const FrozenLinear> head_;
  std::vector<Layer> layers_;
  std::vector<LinearModule> modules_;
  std::int64_t parameter_count_ = 0, weight_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Decoder> Decoder::Load(const BaseModelFiles& files, const DecoderOptions& options) {
  ArchSpec spec = ReadArchSpec(files.config);
  ModuleLoader check(*files.tensors, options, ModuleLoader::Mode::kCheck);
  auto described = std::make_unique<DecoderImpl>(spec, options, check);
  check.Finish(files.path, spec.ignored_tensors);
  if (!options.load_weights) return described;
  ModuleLoader loader(*files.tensors, options, ModuleLoader::Mode::kLoad);
  return std::make_unique<DecoderImpl>(std::move(spec), options, loader);
}

}  // namespace offshoot::trainer
