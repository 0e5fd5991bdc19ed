#include "trainer/export/model_card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "trainer/testing.h"

namespace offshoot::trainer {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

ModelCard Full() {
  ModelCard card;
  card.name = "glosses";
  card.base_model_id = "HuggingFaceTB/SmolLM2-135M-Instruct";
  card.base_digest = "sha256:12";
  card.license = {"other", "llama3.2", "https://example.com/LICENSE"};
  card.dataset_ids = {"org/data"};
  card.base_eval_loss = 4.25;
  card.eval_loss = 2.5;
  card.eval_tokens = 1000;
  card.steps = 40;
  card.settings = {{"lora_r", 16}};
  return card;
}

TEST(ModelCard, Full_HasTheFrontMatterOfHubs) {
  EXPECT_THAT(FormatModelCard(Full()), StartsWith(R"(---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
base_model_relation: adapter
license: other
license_name: llama3.2
license_link: "https://example.com/LICENSE"
library_name: peft
pipeline_tag: text-generation
datasets:
- org/data
tags:
- lora
- offshoot
model-index:
- name: glosses
  results:
  - task:
      type: text-generation
    dataset:
      type: held-out
      name: Held-out rows of the training data
    metrics:
    - type: loss
      name: Held-out loss
      value: 2.5000
---

# glosses
)"));
}

TEST(ModelCard, WithoutAnId_ClaimsNoBase) {
  ModelCard card = Full();
  card.base_model_id = "";
  const std::string text = FormatModelCard(card);
  EXPECT_THAT(text, Not(HasSubstr("base_model")));
  EXPECT_THAT(text, HasSubstr("sha256:12"));
}

TEST(ModelCard, UnknownLicence_IsNotGuessed) {
  ModelCard card = Full();
  card.license = {};
  EXPECT_THAT(FormatModelCard(card), Not(HasSubstr("license")));
}

TEST(ModelCard, LossThatIsNoNumber_IsLeftOut) {
  ModelCard card = Full();
  card.eval_loss = std::nan("");
  EXPECT_THAT(FormatModelCard(card), Not(HasSubstr("model-index")));
}

TEST(ModelCard, NameThatYamlWouldMisread_IsQuoted) {
  ModelCard card = Full();
  card.name = "a: b";
  EXPECT_THAT(FormatModelCard(card), HasSubstr("- name: \"a: b\"\n"));
  card.name = "no";
  EXPECT_THAT(FormatModelCard(card), HasSubstr("- name: \"no\"\n"));
}

TEST(FindLicense, FrontMatterOfTheBasesCard_IsRead) {
  const TemporaryDirectory directory;
  BaseModelFiles base;
  base.path = directory.path();
  EXPECT_EQ(FindLicense(base).id, "");
  directory.Write("README.md",
                  "---\nlanguage: en\nlicense: other\nlicense_name: 'llama3.1'\n---\n"
                  "license: mit\n");
  EXPECT_EQ(FindLicense(base).id, "other");
  EXPECT_EQ(FindLicense(base).name, "llama3.1");
  directory.Write("README.md", "# No front matter\nlicense: mit\n");
  EXPECT_EQ(FindLicense(base).id, "");
  directory.Write("LICENSE", "Apache-2.0, or so somebody says");
  EXPECT_EQ(FindLicense(base).id, "");
}

TEST(FindLicense, ApacheText_IsKnownByItsBytes) {
  const std::string text = "/usr/share/common-licenses/Apache-2.0";
  if (!std::filesystem::exists(text)) GTEST_SKIP() << "no licence texts on this machine";
  const TemporaryDirectory directory;
  std::filesystem::copy_file(text, directory.File("LICENSE"));
  BaseModelFiles base;
  base.path = directory.path();
  EXPECT_EQ(FindLicense(base).id, "apache-2.0");
}

TEST(FindLicense, TitleOfAModelsLicence_IsTheHubsId) {
  const std::tuple<const char*, const char*, const char*> titles[] = {
      {"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date: September 25, "
       "2024\n",
       "llama3.2", ""},
      {"\n**META LLAMA 3 COMMUNITY LICENSE AGREEMENT**\r\nMeta Llama 3 Version", "llama3", ""},
      {"Llama 3.1 Community License Agreement", "llama3.1", ""},
      {"# Qwen RESEARCH LICENSE AGREEMENT\n\nmore", "other", "qwen-research"},
      {"Qwen LICENSE AGREEMENT\n", "other", "qwen"},
      {"DEEPSEEK LICENSE AGREEMENT\n\nVersion 1.0, 23 October 2023\n", "other", "deepseek"},
      {"TENCENT HUNYUAN COMMUNITY LICENSE AGREEMENT\nTencent Hunyuan Release Date: ", "other",
       "tencent-hunyuan-community"},
      // Not a title, another version, another licence.
      {"This model is under the LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n", "", ""},
      {"LLAMA 3.9 COMMUNITY LICENSE AGREEMENT\n", "", ""},
      {"Terms\nQwen LICENSE AGREEMENT\n", "", ""}};
  for (const auto& [text, id, name] : titles) {
    const TemporaryDirectory directory;
    BaseModelFiles base;
    base.path = directory.path();
    directory.Write("LICENSE", text);
    EXPECT_EQ(FindLicense(base).id, id) << text;
    EXPECT_EQ(FindLicense(base).name, name) << text;
  }
}

TEST(FindLicense, LicenceOfTheModel_GoesBeforeThatOfTheCode) {
  const TemporaryDirectory directory;
  BaseModelFiles base;
  base.path = directory.path();
  directory.Write("LICENSE", "Qwen LICENSE AGREEMENT\n");
  directory.Write("LICENSE-MODEL", "DEEPSEEK LICENSE AGREEMENT\n");
  EXPECT_EQ(FindLicense(base).name, "deepseek");
  directory.Write("LICENSE-MODEL", "Terms of ours\n");
  EXPECT_EQ(FindLicense(base).id, "");
}

TEST(FindLicense, MitText_IsKnownWhoeverOwnsTheCopyright) {
  const std::string text =
      "MIT License\n\nCopyright (c) 2025 Somebody\n\nPermission is hereby granted, free of charge, "
      "to "
      "any person obtaining a copy of this software and associated documentation files (the "
      "\"Software\"), to deal in the Software without restriction, including without limitation "
      "the "
      "rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of "
      "the "
      "Software, and to permit persons to whom the Software is furnished to do so, subject to the "
      "following conditions:\n\nThe above copyright notice and this permission notice shall be "
      "included in all copies or substantial portions of the Software.\n\nTHE SOFTWARE IS PROVIDED "
      "\"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO "
      "THE "
      "WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO "
      "EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER "
      "LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN "
      "CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.\n";
  const TemporaryDirectory directory;
  BaseModelFiles base;
  base.path = directory.path();
  directory.Write("LICENSE", text);
  EXPECT_EQ(FindLicense(base).id, "mit");
  // As Kimi K2's: the same words and one condition more.
  directory.Write("LICENSE",
                  text + "If the Software is used by more than 100 million people, say so.\n");
  EXPECT_EQ(FindLicense(base).id, "");
}

TEST(FindLicense, GgufMetadata_IsRead) {
  BaseModelFiles base;
  base.is_gguf = true;
  base.gguf_metadata = {{"general.license", "apache-2.0"}};
  EXPECT_EQ(FindLicense(base).id, "apache-2.0");
}

}  // namespace
}  // namespace offshoot::trainer
