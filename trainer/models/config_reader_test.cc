#include "trainer/models/config_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/testing.h"

namespace offshoot::trainer {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST(ConfigReader, KeyNobodyRead_IsRefusedByName) {
  const json config = {{"model_type", "llama"}, {"attn_logit_softcapping", 50.0}};
  ConfigReader reader(config);
  const std::string message = MessageOf(Reason::kBadModel, [&] { reader.Finish(); });
  EXPECT_THAT(message, HasSubstr("`attn_logit_softcapping`"));
  EXPECT_THAT(message, HasSubstr("llama"));
}

TEST(ConfigReader, KeyThatIsOffOrHarmless_IsAccepted) {
  const json config = {{"model_type", "llama"},     {"use_mrope", false},
                       {"quantization", nullptr},   {"pruned_heads", json::object()},
                       {"torch_dtype", "bfloat16"}, {"_name_or_path", "x"},
                       {"image_token_id", 7},       {"transformers_version", "4.1"}};
  ConfigReader reader(config);
  EXPECT_NO_THROW(reader.Finish());
}

TEST(ConfigReader, CountThatIsNone_IsRefusedByName) {
  const json config = {
      {"model_type", "llama"}, {"a", "eight"}, {"b", 1.5}, {"c", 0}, {"d", 1e300}, {"e", -3}};
  ConfigReader reader(config);
  for (const char* key : {"a", "b", "c", "d", "e", "missing"}) {
    EXPECT_THAT(MessageOf(Reason::kBadModel, [&] { reader.Count(key); }),
                HasSubstr("`" + std::string(key) + "`"));
  }
}

TEST(ConfigReader, WholeNumberWrittenAsFraction_IsRead) {
  const json config = {{"model_type", "llama"}, {"heads", 8.0}};
  ConfigReader reader(config);
  EXPECT_EQ(reader.Count("heads"), 8);
}

TEST(ConfigReader, RequiredValueThatDiffers_IsRefused) {
  const json config = {{"model_type", "x"}, {"hidden_act", "gelu"}};
  ConfigReader reader(config);
  EXPECT_THAT(MessageOf(Reason::kBadModel, [&] { reader.Require("hidden_act", "silu"); }),
              HasSubstr("gelu"));
}

}  // namespace
}  // namespace offshoot::trainer
