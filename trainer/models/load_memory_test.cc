// How much memory loading takes: the model's final size and its largest tensor, no more. Each
// measurement is a process of its own, so that nothing freed before can hide what loading takes.
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <functional>
#include <map>
#include <string>

#include "trainer/models/decoder.h"
#include "trainer/testing.h"
#include "trainer/weights/gguf_writer.h"
#include "trainer/weights/safetensors.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kMebibyte = 1 << 20;
// Page tables, headers, the strip being converted and the threads' stacks: of no model's size.
constexpr std::int64_t kFixedBytes = 3 * kMebibyte;

// A line of /proc/self/status, "VmHWM:     1234 kB".
std::int64_t StatusBytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return -1;
}

// Runs the action in a child process and returns the number it gives; -1 if it failed.
std::int64_t InProcess(const std::function<std::int64_t()>& action) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    std::int64_t result = -1;
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);  // huge pages would round every small use up
    try {
      result = action();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    const bool written = write(ends[1], &result, sizeof result) == sizeof result;
    _exit(written ? 0 : 1);
  }
  close(ends[1]);
  std::int64_t result = -1;
  if (read(ends[0], &result, sizeof result) != sizeof result) result = -1;
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return result;
}

// A Qwen3-MoE of a sparse layer and a dense one, which has the largest tensors and is loaded last,
// when all others are there.
struct Shape {
  std::int64_t vocab, hidden, intermediate, expert_width, experts;
};
constexpr Shape kMeasured = {1024, 512, 12288, 256, 16};
constexpr Shape kWarmUp = {64, 64, 64, 32, 2};

nlohmann::json ConfigOf(const Shape& shape) {
  return {{"model_type", "qwen3_moe"},
          {"vocab_size", shape.vocab},
          {"hidden_size", shape.hidden},
          {"intermediate_size", shape.intermediate},
          {"moe_intermediate_size", shape.expert_width},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 4},
          {"head_dim", shape.hidden / 4},
          {"num_experts", shape.experts},
          {"num_experts_per_tok", 1},
          {"mlp_only_layers", {1}},
          {"tie_word_embeddings", true}};
}

using Store = std::function<void(const std::string& name, std::int64_t rows, std::int64_t columns)>;

void ForEachMatrix(const Shape& shape, const Store& store) {
  store("model.embed_tokens", shape.vocab, shape.hidden);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string path = "model.layers." + std::to_string(layer) + ".";
    for (const char* part : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      store(path + "self_attn." + part, shape.hidden, shape.hidden);
    }
    const auto mlp = [&](const std::string& place, std::int64_t width) {
      store(place + "gate_proj", width, shape.hidden);
      store(place + "up_proj", width, shape.hidden);
      store(place + "down_proj", shape.hidden, width);
    };
    if (layer == 1) mlp(path + "mlp.", shape.intermediate);
    for (std::int64_t e = 0; layer == 0 && e < shape.experts; ++e) {
      mlp(path + "mlp.experts." + std::to_string(e) + ".", shape.expert_width);
    }
  }
}

enum class Stored { kBfloat16, kFloat32, kFp8 };

void WriteModel(const std::string& directory, const Shape& shape, Stored stored) {
  nlohmann::json config = ConfigOf(shape);
  if (stored == Stored::kFp8) config["quantization_config"] = {{"quant_method", "fp8"}};
  std::ofstream(directory + "/config.json") << config.dump();
  std::map<std::string, at::Tensor> tensors;
  const at::ScalarType plain = stored == Stored::kFloat32 ? at::kFloat : at::kBFloat16;
  ForEachMatrix(shape, [&](const std::string& path, std::int64_t rows, std::int64_t columns) {
    const at::Tensor values = at::randn({rows, columns});
    const bool fp8 = stored == Stored::kFp8 && path != "model.embed_tokens";
    tensors[path + ".weight"] = values.to(fp8 ? at::kFloat8_e4m3fn : plain);
    if (fp8) {
      tensors[path + ".weight_scale_inv"] = at::ones({(rows + 127) / 128, (columns + 127) / 128});
    }
  });
  const auto vector = [&](const std::string& name, std::int64_t size) {
    tensors[name + ".weight"] = at::ones({size}, plain);
  };
  vector("model.norm", shape.hidden);
  for (const std::string path : {"model.layers.0.", "model.layers.1."}) {
    vector(path + "input_layernorm", shape.hidden);
    vector(path + "post_attention_layernorm", shape.hidden);
    vector(path + "self_attn.q_norm", shape.hidden / 4);
    vector(path + "self_attn.k_norm", shape.hidden / 4);
  }
  tensors["model.layers.0.mlp.gate.weight"] = at::ones({shape.experts, shape.hidden}, plain);
  WriteSafetensors(directory + "/model.safetensors", tensors);
}

// The same sizes as a dense Llama in a GGUF file of 8-bit blocks.
void WriteGguf(const std::string& path, const Shape& shape, const char* type) {
  GgufMetadata metadata;
  const auto number = [&](const char* key, std::int64_t value) {
    metadata.Uint32(std::string("llama.") + key, static_cast<std::uint32_t>(value));
  };
  metadata.Text("general.architecture", "llama");
  number("block_count", 2);
  number("context_length", 128);
  number("embedding_length", shape.hidden);
  number("feed_forward_length", shape.intermediate);
  number("attention.head_count", 4);
  number("attention.head_count_kv", 4);
  number("vocab_size", shape.vocab);
  metadata.Float32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  std::vector<GgufSlot> slots;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> sizes, const char* of) {
    slots.push_back({name + ".weight", std::move(sizes), FindGgmlType(of)});
  };
  add("token_embd", {shape.vocab, shape.hidden}, type);
  add("output_norm", {shape.hidden}, "F32");
  for (int layer = 0; layer < 2; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    add(block + "attn_norm", {shape.hidden}, "F32");
    add(block + "ffn_norm", {shape.hidden}, "F32");
    for (const char* part : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
      add(block + part, {shape.hidden, shape.hidden}, type);
    }
    add(block + "ffn_gate", {shape.intermediate, shape.hidden}, type);
    add(block + "ffn_up", {shape.intermediate, shape.hidden}, type);
    add(block + "ffn_down", {shape.hidden, shape.intermediate}, type);
  }
  GgufWriter writer(path, metadata, slots);
  for (std::size_t i = 0; i < slots.size(); ++i) writer.Write(i, at::randn(slots[i].shape));
  writer.Finish();
}

struct Expectation {
  std::int64_t final_bytes = 0, largest_bytes = 0;
};

Expectation SizesOf(const std::string& path, std::int64_t element_bytes) {
  Expectation sizes;
  const BaseModelFiles files = OpenBaseModel(path);
  for (const TensorInfo& info : files.tensors->List()) {
    std::int64_t bytes = element_bytes;
    for (const std::int64_t size : info.shape) bytes *= size;
    sizes.final_bytes += bytes;
    sizes.largest_bytes = std::max(sizes.largest_bytes, bytes);
  }
  return sizes;
}

std::unique_ptr<Decoder> Load(const std::string& path, const DecoderOptions& options) {
  return Decoder::Load(OpenBaseModel(path), options);
}

// The bytes by which loading raised the process's largest resident set, code and file pages among
// them. A small model of the same kind is loaded first: it brings in the code that loading runs.
std::int64_t LoadingPeak(const std::string& warm_up, const std::string& path,
                         const DecoderOptions& options) {
  at::set_num_threads(2);
  Load(warm_up, options);
  std::ofstream("/proc/self/clear_refs") << "5";  // the largest resident set counts from here
  const std::int64_t before = StatusBytes("VmHWM");
  const auto decoder = Load(path, options);
  return StatusBytes("VmHWM") - before;
}

class LoadMemory : public testing::Test {
 protected:
  LoadMemory() {
    std::filesystem::create_directories(small_);
    std::filesystem::create_directories(large_);
  }
  void WriteBoth(Stored stored) {
    ASSERT_EQ(InProcess([&] {
                WriteModel(small_, kWarmUp, stored);
                WriteModel(large_, kMeasured, stored);
                return 0;
              }),
              0);
  }
  void WriteBothAsGguf(const char* type) {
    ASSERT_EQ(InProcess([&] {
                WriteGguf(small_ + "/model.gguf", kWarmUp, type);
                WriteGguf(large_ + "/model.gguf", kMeasured, type);
                return 0;
              }),
              0);
  }
  // spare: what the peak may be above the limit.
  void ExpectWithinLimit(at::ScalarType dtype, Quantisation quantisation = Quantisation::kNone,
                         std::int64_t spare = 0) {
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP()
        << "the address sanitizer keeps freed memory for a while, so that peaks tell nothing";
#endif
    Expectation sizes = SizesOf(large_, static_cast<std::int64_t>(c10::elementSize(dtype)));
    const std::int64_t whole = sizes.final_bytes;
    DecoderOptions options{.dtype = dtype, .quantisation = quantisation};
    if (quantisation != Quantisation::kNone) {
      options.load_weights = false;
      sizes.final_bytes = Load(large_, options)->weight_bytes();
      options.load_weights = true;
    }
    ASSERT_GT(sizes.final_bytes, sizes.largest_bytes);
    const std::int64_t limit = sizes.final_bytes + sizes.largest_bytes + kFixedBytes + spare;
    if (quantisation != Quantisation::kNone) {
      ASSERT_LT(limit, whole * 9 / 10);
    }
    const std::int64_t peak = InProcess([&] { return LoadingPeak(small_, large_, options); });
    ASSERT_GE(peak, 0);
    EXPECT_LE(peak, limit) << "final " << sizes.final_bytes << ", largest " << sizes.largest_bytes;
    RecordProperty("spare_bytes", std::to_string(limit - peak));
    RecordProperty("peak_over_final", std::to_string(static_cast<double>(peak) /
                                                     static_cast<double>(sizes.final_bytes)));
  }
  const TemporaryDirectory directory_;
  const std::string small_ = directory_.File("small"), large_ = directory_.File("large");
};

TEST_F(LoadMemory, Bfloat16AsStored_StaysBelowTheLimit) {
  WriteBoth(Stored::kBfloat16);
  ExpectWithinLimit(at::kBFloat16);
}

TEST_F(LoadMemory, Float32ToBfloat16_StaysBelowTheLimit) {
  WriteBoth(Stored::kFloat32);
  ExpectWithinLimit(at::kBFloat16);
}

TEST_F(LoadMemory, Bfloat16ToFloat32_StaysBelowTheLimit) {
  WriteBoth(Stored::kBfloat16);
  ExpectWithinLimit(at::kFloat);
}

TEST_F(LoadMemory, Fp8BlocksToBfloat16_StaysBelowTheLimit) {
  WriteBoth(Stored::kFp8);
  ExpectWithinLimit(at::kBFloat16);
}

// One tensor is dequantised at a time, never the model.
TEST_F(LoadMemory, Fp8BlocksToFourBits_StaysFarBelowTheDequantisedModel) {
  WriteBoth(Stored::kFp8);
  const std::int64_t spare = 3 * kMebibyte;
  ExpectWithinLimit(at::kBFloat16, Quantisation::kNf4, spare);
}

TEST_F(LoadMemory, Bfloat16ToFourBits_StaysBelowTheLimit) {
  WriteBoth(Stored::kBfloat16);
  ExpectWithinLimit(at::kBFloat16, Quantisation::kNf4);
}

TEST_F(LoadMemory, Float32ToEightBits_StaysBelowTheLimit) {
  WriteBoth(Stored::kFloat32);
  ExpectWithinLimit(at::kBFloat16, Quantisation::kInt8);
}

// A forward pass reads every matrix but those of experts that no token chose.
TEST_F(LoadMemory, PassingModel_AnswersAsAnyOtherAndDoesNotStay) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer keeps freed memory for a while";
#endif
  WriteBoth(Stored::kBfloat16);
  const auto answer = [](const std::string& path, bool passing) {
    const auto decoder = Load(path, {.dtype = at::kBFloat16, .passing = passing});
    TokenBatch batch;
    batch.tokens = at::arange(0, 32, at::kLong);
    batch.positions = at::arange(0, 32, at::kLong);
    batch.row_offsets = {0, 32};
    const at::NoGradGuard no_grad;
    return decoder->head()->Forward(decoder->Forward(batch, nullptr, {}));
  };
  // The bytes that a pass takes, the code that it runs having been brought in.
  const auto peak = [&](bool passing) {
    return InProcess([&] {
      at::set_num_threads(2);
      answer(small_, passing);
      std::ofstream("/proc/self/clear_refs") << "5";
      const std::int64_t before = StatusBytes("VmHWM");
      const at::Tensor logits = answer(large_, passing);
      const std::int64_t bytes = StatusBytes("VmHWM") - before;
      return at::equal(logits, answer(large_, !passing)) ? bytes : -1;
    });
  };
  const std::int64_t passing = peak(true), staying = peak(false);
  ASSERT_GE(passing, 0);
  EXPECT_LT(passing, staying - SizesOf(large_, 2).final_bytes / 2);
}

TEST_F(LoadMemory, GgufBlocksToBfloat16_StaysBelowTheLimit) {
  WriteBothAsGguf("Q8_0");
  ExpectWithinLimit(at::kBFloat16);
}

TEST_F(LoadMemory, GgufFloat32ToBfloat16_StaysBelowTheLimit) {
  WriteBothAsGguf("F32");
  ExpectWithinLimit(at::kBFloat16);
}

}  // namespace
}  // namespace offshoot::trainer
