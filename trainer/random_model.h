// A model of random weights in bfloat16, of the sizes that its config.json names: for tests that
// measure memory, where what the weights are does not matter.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "trainer/testing.h"

namespace offshoot::trainer {

struct RandomModelSizes {
  std::int64_t hidden = 0, layers = 0, intermediate = 0, vocabulary = 0;
  std::int64_t heads = 0, key_heads = 0, head_width = 0;
};

// Tied embeddings. Returns the bytes of all weights.
inline std::int64_t WriteRandomLlama(const TemporaryDirectory& directory,
                                     const RandomModelSizes& sizes) {
  using Json = nlohmann::json;
  directory.Write("config.json", Json{{"model_type", "llama"},
                                      {"architectures", {"LlamaForCausalLM"}},
                                      {"hidden_size", sizes.hidden},
                                      {"num_hidden_layers", sizes.layers},
                                      {"intermediate_size", sizes.intermediate},
                                      {"num_attention_heads", sizes.heads},
                                      {"num_key_value_heads", sizes.key_heads},
                                      {"head_dim", sizes.head_width},
                                      {"vocab_size", sizes.vocabulary},
                                      {"rms_norm_eps", 1e-5},
                                      {"rope_theta", 10000.0},
                                      {"hidden_act", "silu"},
                                      {"tie_word_embeddings", true},
                                      {"max_position_embeddings", 4096}}
                                     .dump());
  Json header;
  std::int64_t end = 0;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    std::int64_t bytes = 2;
    for (const std::int64_t size : shape) bytes *= size;
    header[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {end, end + bytes}}};
    end += bytes;
  };
  const std::int64_t queries = sizes.heads * sizes.head_width;
  const std::int64_t keys = sizes.key_heads * sizes.head_width;
  add("model.embed_tokens.weight", {sizes.vocabulary, sizes.hidden});
  add("model.norm.weight", {sizes.hidden});
  for (std::int64_t layer = 0; layer < sizes.layers; ++layer) {
    const std::string path = "model.layers." + std::to_string(layer) + ".";
    add(path + "input_layernorm.weight", {sizes.hidden});
    add(path + "post_attention_layernorm.weight", {sizes.hidden});
    add(path + "self_attn.q_proj.weight", {queries, sizes.hidden});
    add(path + "self_attn.k_proj.weight", {keys, sizes.hidden});
    add(path + "self_attn.v_proj.weight", {keys, sizes.hidden});
    add(path + "self_attn.o_proj.weight", {sizes.hidden, queries});
    add(path + "mlp.gate_proj.weight", {sizes.intermediate, sizes.hidden});
    add(path + "mlp.up_proj.weight", {sizes.intermediate, sizes.hidden});
    add(path + "mlp.down_proj.weight", {sizes.hidden, sizes.intermediate});
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::ofstream file(directory.File("model.safetensors"), std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text;
  // A million values again and again: bfloat16 of either sign between 1/64 and 1/32.
  std::mt19937 random(7);
  std::vector<std::uint16_t> values(std::size_t{1} << 20);
  for (std::uint16_t& value : values) {
    value = static_cast<std::uint16_t>(0x3C80 | (random() & 0x807F));
  }
  const auto block = static_cast<std::int64_t>(values.size() * sizeof(values[0]));
  for (std::int64_t begin = 0; begin < end; begin += block) {
    file.write(reinterpret_cast<const char*>(values.data()), std::min(block, end - begin));
  }
  EXPECT_TRUE(file.flush()) << directory.path() << " has no room for the model";
  return end;
}

// Rows of random tokens, all of them trained, as a pretokenized data set.
inline std::string RandomRows(std::int64_t rows, std::int64_t tokens, std::int64_t vocabulary) {
  std::mt19937 random(3);
  std::string text;
  for (std::int64_t row = 0; row < rows; ++row) {
    std::vector<int> ids;
    for (std::int64_t t = 0; t < tokens; ++t) {
      ids.push_back(static_cast<int>(random() % static_cast<std::uint32_t>(vocabulary)));
    }
    text += nlohmann::json{{"input_ids", ids}, {"labels", ids}}.dump() + "\n";
  }
  return text;
}

}  // namespace offshoot::trainer
