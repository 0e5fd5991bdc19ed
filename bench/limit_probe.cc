// The machine's limit for one model shape: the frozen products alone, forward and backward to the
// inputs, each layer with weights of its own as in a real step. Three ways: LibTorch's products,
// oneDNN's with weights packed before (left out where it packs none of this type: bfloat16 without
// AVX-512), and ours. Prints one JSON line of tokens per second.
//
//   limit_probe --hidden 576 --layers 30 --query 576 --key 192 --intermediate 1536 --vocab 49152
//               --tokens 1024 --dtype bfloat16 --threads 2 --rounds 3
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/stack.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

using Settings = std::map<std::string, std::string>;

std::int64_t Number(const Settings& settings, const std::string& name) {
  return std::atoll(settings.at(name).c_str());
}

// One product: forward or backward, prepared in one way.
struct Layer {
  at::Tensor weight;            // [O, I]
  at::Tensor packed, packed_t;  // oneDNN's, of the weight and its transpose
  std::shared_ptr<const FrozenLinear> frozen;
};

at::Tensor Pack(const at::Tensor& weight, std::int64_t tokens) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_reorder_linear_weight", "");
  torch::jit::Stack stack = {weight, tokens};
  op.callBoxed(&stack);
  return stack[0].toTensor();
}

at::Tensor PackedProduct(const at::Tensor& x, const at::Tensor& packed) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "");
  torch::jit::Stack stack = {x,
                             packed,
                             c10::IValue(),
                             "none",
                             c10::List<std::optional<at::Scalar>>(),
                             c10::IValue(std::string())};
  op.callBoxed(&stack);
  return stack[0].toTensor();
}

bool CanPack(at::TensorOptions options) {
  try {
    return Pack(at::randn({64, 64}, options), 64).defined();
  } catch (const c10::Error&) {
    return false;
  }
}

double Seconds(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Probe(const Settings& settings) {
  const at::NoGradGuard no_grad;
  const auto type = settings.at("dtype") == "float32" ? at::kFloat : at::kBFloat16;
  const auto options = at::TensorOptions().dtype(type);
  const std::int64_t hidden = Number(settings, "hidden"), tokens = Number(settings, "tokens");
  const std::int64_t query = Number(settings, "query"), key = Number(settings, "key");
  const std::int64_t intermediate = Number(settings, "intermediate");
  at::set_num_threads(static_cast<int>(Number(settings, "threads")));
  const bool can_pack = CanPack(options);
  std::vector<Layer> layers;
  const auto add = [&](std::int64_t out, std::int64_t in) {
    Layer layer;
    layer.weight = at::randn({out, in}, options);
    if (can_pack) {
      layer.packed = Pack(layer.weight, tokens);
      layer.packed_t = Pack(layer.weight.t().contiguous(), tokens);
    }
    layer.frozen = FrozenLinear::Make(layer.weight);
    layers.push_back(std::move(layer));
  };
  for (std::int64_t i = 0; i < Number(settings, "layers"); ++i) {
    add(query, hidden);
    add(key, hidden);
    add(key, hidden);
    add(hidden, query);
    add(intermediate, hidden);
    add(intermediate, hidden);
    add(hidden, intermediate);
  }
  add(Number(settings, "vocab"), hidden);

  std::map<std::int64_t, at::Tensor> inputs;
  for (const Layer& layer : layers) {
    for (const std::int64_t width : {layer.weight.size(0), layer.weight.size(1)}) {
      if (!inputs.contains(width)) inputs[width] = at::randn({tokens, width}, options);
    }
  }
  struct Way {
    const char* name;
    std::function<at::Tensor(const Layer&, const at::Tensor&)> forward, backward;
    std::vector<double> seconds = {};
  };
  std::vector<Way> ways = {
      {"libtorch", [](const Layer& l, const at::Tensor& x) { return at::mm(x, l.weight.t()); },
       [](const Layer& l, const at::Tensor& g) { return at::mm(g, l.weight); }},
      {"offshoot", [](const Layer& l, const at::Tensor& x) { return l.frozen->Forward(x); },
       [](const Layer& l, const at::Tensor& g) { return l.frozen->BackwardInput(g); }}};
  if (can_pack) {
    ways.push_back(
        {"onednn_packed",
         [](const Layer& l, const at::Tensor& x) { return PackedProduct(x, l.packed); },
         [](const Layer& l, const at::Tensor& g) { return PackedProduct(g, l.packed_t); }});
  }
  const std::int64_t rounds = Number(settings, "rounds");
  for (std::int64_t round = 0; round <= rounds; ++round) {
    for (Way& way : ways) {
      const double seconds = Seconds([&] {
        for (const Layer& layer : layers) way.forward(layer, inputs[layer.weight.size(1)]);
        for (auto it = layers.rbegin(); it != layers.rend(); ++it) {
          way.backward(*it, inputs[it->weight.size(0)]);
        }
      });
      if (round > 0) way.seconds.push_back(seconds);  // the first warms caches
    }
  }
  std::printf("{");
  for (const Way& way : ways) {
    std::printf("%s\"%s\": %.1f", way.name == ways[0].name ? "" : ", ", way.name,
                static_cast<double>(tokens) / Median(way.seconds));
  }
  std::printf("}\n");
  return 0;
}

}  // namespace
}  // namespace offshoot::trainer

int main(int argc, char** argv) {
  std::map<std::string, std::string> settings = {
      {"hidden", "576"},        {"layers", "30"},   {"query", "576"},   {"key", "192"},
      {"intermediate", "1536"}, {"vocab", "49152"}, {"tokens", "1024"}, {"dtype", "bfloat16"},
      {"threads", "2"},         {"rounds", "3"}};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = std::string(argv[i]).substr(2);
    if (!settings.contains(name)) {
      std::fprintf(stderr, "limit_probe: no option --%s\n", name.c_str());
      return 2;
    }
    settings[name] = argv[i + 1];
  }
  return offshoot::trainer::Probe(settings);
}
