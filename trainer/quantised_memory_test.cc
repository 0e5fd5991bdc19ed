// What training on a frozen base in 4 bits takes, all of the process from its start to its end, on
// a random model of Qwen2.5-1.5B's sizes: less than 40 % of the base's weights in bfloat16.

#include <gtest/gtest.h>

#include <cstdio>

#include "trainer/random_model.h"
#include "trainer/testing.h"
#include "trainer/trainer_process.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

constexpr double kMostOfWeights = 0.4;
constexpr std::int64_t kVocabulary = 151'936, kRows = 1, kRowTokens = 32;

class QuantisedMemoryTest : public ::testing::Test {
 protected:
  // The most that a trainer command had resident.
  std::int64_t PeakOf(std::vector<std::string> arguments) const {
    TrainerOptions options;
    options.arguments = std::move(arguments);
    options.log_path = directory_.File("log");
    options.events = options.control = false;
    TrainerProcess process(options);
    EXPECT_EQ(process.Wait(), 0) << ReadWholeFile(directory_.File("log"));
    return process.peak_bytes();
  }

  void ExpectLittle(const char* what, std::int64_t peak, std::int64_t weights) const {
    const double part = static_cast<double>(peak) / static_cast<double>(weights);
    std::printf("%s: %.0f MB, %.1f %% of %.0f MB of weights\n", what,
                static_cast<double>(peak) / 1e6, 100 * part, static_cast<double>(weights) / 1e6);
    EXPECT_LT(part, kMostOfWeights) << what;
  }

  const TemporaryDirectory directory_, model_;
};

TEST_F(QuantisedMemoryTest, InFourBits_WholeProcess_TakesLessThanFortyPercentOfTheWeights) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer's own memory is more than what is measured";
#endif
  const std::int64_t weights = WriteRandomLlama(model_, {.hidden = 1536,
                                                         .layers = 28,
                                                         .intermediate = 8960,
                                                         .vocabulary = kVocabulary,
                                                         .heads = 12,
                                                         .key_heads = 2,
                                                         .head_width = 128});
  const Json spec = {
      {"spec_version", 1},
      {"job_id", "job-memory"},
      {"base_model", {{"path", model_.path()}}},
      {"datasets",
       {{{"path", directory_.Write("rows.jsonl", RandomRows(kRows, kRowTokens, kVocabulary))},
         {"type", "pretokenized"}}}},
      {"sequence_len", kRowTokens},
      {"per_device_train_batch_size", kRows},
      {"gradient_checkpointing", true},
      {"load_in_4bit", true},
      {"lora_r", 16},
      {"lora_target_modules", {"q_proj", "v_proj"}},
      {"max_steps", 1},
      {"save_steps", 0},
      {"threads", 2}};
  directory_.Write("spec.json", spec.dump());
  const std::string work = directory_.File("work");
  ExpectLittle("training and export",
               PeakOf({"train", "--spec", directory_.File("spec.json"), "--work-dir", work}),
               weights);
  ExpectLittle(
      "verification",
      PeakOf({"verify", "--result", work + "/result", "--base", model_.path(), "--threads", "2"}),
      weights);
}

}  // namespace
}  // namespace offshoot::trainer
