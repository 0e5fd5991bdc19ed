#include "trainer/models/generate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kPrefillTokens = 1024;  // of a prompt per forward pass: bounds the memory

double Uniform(std::mt19937_64& engine) { return static_cast<double>(engine() >> 11) * 0x1.0p-53; }

void CheckPrompt(const std::vector<std::int64_t>& prompt, std::int64_t vocab_size) {
  if (prompt.empty()) {
    throw Error(Reason::kBadData, "The prompt has no token; give some text.");
  }
  for (const std::int64_t id : prompt) {
    if (id >= 0 && id < vocab_size) continue;
    throw Error(Reason::kBadData, "The prompt has token " + std::to_string(id) +
                                      ", but the model knows ids from 0 to " +
                                      std::to_string(vocab_size - 1) +
                                      "; use the tokenizer that belongs to the model.");
  }
}

void AddIds(const nlohmann::json& config, std::set<std::int64_t>& ids) {
  if (!config.is_object()) return;
  const auto value = config.find("eos_token_id");
  if (value == config.end()) return;
  for (const nlohmann::json& id : value->is_array() ? *value : nlohmann::json{*value}) {
    if (id.is_number_integer()) ids.insert(id.get<std::int64_t>());
  }
}

// The token that the template writes right after an assistant's words, if it is a special one.
void AddEndOfTurn(const Tokenizer& tokenizer, std::set<std::int64_t>& ids) {
  const std::string marker = "offshoot-answer";
  std::string text;
  try {
    text = tokenizer
               .ApplyChatTemplate(
                   nlohmann::json::array({{{"role", "user"}, {"content", "question"}},
                                          {{"role", "assistant"}, {"content", marker}}}),
                   /*add_generation_prompt=*/false)
               .text;
  } catch (const Error&) {
    return;  // a template that wants other roles: the configured ends have to do
  }
  const std::size_t place = text.rfind(marker);
  if (place == std::string::npos) return;
  for (const std::int64_t id :
       tokenizer.Encode(text.substr(place + marker.size()), /*add_special_tokens=*/false)) {
    if (!tokenizer.IsSpecial(id)) continue;
    ids.insert(id);
    return;
  }
}

}  // namespace

std::int64_t ChooseToken(const at::Tensor& logits, const GenerateOptions& options, double uniform) {
  if (options.temperature <= 0.0) return logits.argmax().item<std::int64_t>();
  const at::Tensor scaled =
      logits.to(at::kCPU).to(at::kDouble).div(options.temperature).contiguous();
  const double* values = scaled.const_data_ptr<double>();
  std::vector<std::int64_t> order(static_cast<std::size_t>(scaled.numel()));
  std::iota(order.begin(), order.end(), 0);
  // Ties by id, so that the order is the same everywhere.
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  });
  if (options.top_k > 0 && static_cast<std::size_t>(options.top_k) < order.size()) {
    order.resize(static_cast<std::size_t>(options.top_k));
  }
  std::vector<double> weights;
  for (const std::int64_t id : order) weights.push_back(std::exp(values[id] - values[order[0]]));
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (options.top_p < 1.0) {
    double reached = 0.0;
    std::size_t kept = 0;
    while (kept < weights.size() && (kept == 0 || reached < options.top_p * total)) {
      reached += weights[kept++];
    }
    weights.resize(kept);
    total = reached;
  }
  double rest = uniform * total;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    rest -= weights[i];
    if (rest < 0.0) return order[i];
  }
  return order[weights.size() - 1];
}

Generation Generate(const Decoder& decoder, const Adapters* adapters,
                    const std::vector<std::int64_t>& prompt, const GenerateOptions& options,
                    const std::function<void(std::int64_t)>& on_token) {
  CheckPrompt(prompt, decoder.spec().vocab_size);
  const at::NoGradGuard no_grad;
  std::mt19937_64 engine(options.seed);
  DecoderCache cache = decoder.MakeCache();
  const at::Tensor tokens = at::tensor(prompt, at::kLong);
  at::Tensor hidden;
  for (std::int64_t begin = 0; begin < tokens.size(0); begin += kPrefillTokens) {
    hidden = decoder.Extend(
        tokens.slice(0, begin, std::min(begin + kPrefillTokens, tokens.size(0))), adapters, cache);
  }
  Generation result;
  while (static_cast<std::int64_t>(result.ids.size()) < options.max_new_tokens) {
    const at::Tensor last = hidden.slice(0, hidden.size(0) - 1);
    const at::Tensor logits = decoder.head()->Forward(last).view({-1}).to(at::kFloat);
    const std::int64_t id = ChooseToken(logits, options, Uniform(engine));
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) {
      result.stopped = true;
      break;
    }
    result.ids.push_back(id);
    if (on_token) on_token(id);
    if (static_cast<std::int64_t>(result.ids.size()) == options.max_new_tokens) break;
    hidden = decoder.Extend(at::tensor(std::vector<std::int64_t>{id}, at::kLong), adapters, cache);
  }
  return result;
}

std::vector<std::int64_t> EncodePrompt(const Tokenizer& tokenizer, const std::string& prompt,
                                       bool raw) {
  if (raw || !tokenizer.has_chat_template()) {
    return tokenizer.Encode(prompt, /*add_special_tokens=*/true);
  }
  const ChatRendering chat =
      tokenizer.ApplyChatTemplate(nlohmann::json::array({{{"role", "user"}, {"content", prompt}}}),
                                  /*add_generation_prompt=*/true);
  // The template writes BOS itself where the model wants one.
  return tokenizer.Encode(chat.text, /*add_special_tokens=*/false);
}

std::vector<std::int64_t> StopIds(const Tokenizer& tokenizer, const BaseModelFiles& files) {
  std::set<std::int64_t> ids;
  AddIds(files.config, ids);
  AddIds(files.generation_config, ids);
  if (tokenizer.eos_id()) ids.insert(*tokenizer.eos_id());
  if (tokenizer.has_chat_template()) AddEndOfTurn(tokenizer, ids);
  return {ids.begin(), ids.end()};
}

}  // namespace offshoot::trainer
