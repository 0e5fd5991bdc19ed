#include "trainer/lora/lora_targets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/testing.h"

namespace offshoot::trainer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Two layers: attention, then a dense MLP in the first and experts with a shared MLP in the second.
LinearModules SomeModules() {
  LinearModules modules;
  const auto add = [&](const std::string& path, ModuleGroup group) {
    modules.push_back({path, nullptr, 8, 8, group});
  };
  add("model.layers.0.self_attn.q_proj", ModuleGroup::kAttention);    // 0
  add("model.layers.0.self_attn.o_proj", ModuleGroup::kAttention);    // 1
  add("model.layers.0.mlp.up_proj", ModuleGroup::kMlp);               // 2
  add("model.layers.1.self_attn.q_proj", ModuleGroup::kAttention);    // 3
  add("model.layers.1.self_attn.o_proj", ModuleGroup::kAttention);    // 4
  add("model.layers.1.mlp.experts.0.up_proj", ModuleGroup::kExpert);  // 5
  add("model.layers.1.mlp.experts.1.up_proj", ModuleGroup::kExpert);  // 6
  add("model.layers.1.mlp.shared_mlp.up_proj", ModuleGroup::kMlp);    // 7
  return modules;
}

std::vector<std::size_t> Select(const std::vector<std::string>& targets) {
  return SelectTargets(SomeModules(), targets);
}

TEST(LoraTargets, Presets_SelectTheirGroups) {
  EXPECT_THAT(Select({"attention"}), ElementsAre(0, 1, 3, 4));
  EXPECT_THAT(Select({"mlp"}), ElementsAre(2, 7));
  EXPECT_THAT(Select({"experts"}), ElementsAre(5, 6));
  EXPECT_EQ(Select({"all-linear"}).size(), SomeModules().size());
}

TEST(LoraTargets, Names_MatchWholePartsAtTheEnd) {
  EXPECT_THAT(Select({"q_proj"}), ElementsAre(0, 3));
  EXPECT_THAT(Select({"shared_mlp.up_proj", "q_proj"}), ElementsAre(0, 3, 7));
  EXPECT_THAT(Select({"up_proj"}), ElementsAre(2, 5, 6, 7));
}

TEST(LoraTargets, RegularExpression_MatchesTheWholePath) {
  EXPECT_THAT(Select({R"(.*\.1\.self_attn\.(q|o)_proj)"}), ElementsAre(3, 4));
}

TEST(LoraTargets, TargetWithoutMatch_IsAnErrorThatNamesWhatThereIs) {
  for (const char* target : {"proj", "q_pro", "w1", R"(.*\.layers\.9\..*)"}) {
    const std::string message = MessageOf(Reason::kBadSpec, [&] { Select({"q_proj", target}); });
    EXPECT_THAT(message, HasSubstr(std::string("`") + target + "`"));
    EXPECT_THAT(message, HasSubstr("up_proj"));
    EXPECT_THAT(message, HasSubstr("experts"));
  }
}

TEST(LoraTargets, BadRegularExpression_IsAnError) {
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [] { Select({"(q_proj"}); }), HasSubstr("(q_proj"));
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [] { Select({std::string(5000, '(')}); }),
              HasSubstr("longer"));
}

// The modules that PEFT adapts by this description: a bare name beside routed experts means them
// and the attention, a parameter means the module it belongs to.
std::vector<std::size_t> AsPeftReads(const TargetNames& names) {
  const LinearModules modules = SomeModules();
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    bool hit = false;
    if (modules[i].group == ModuleGroup::kMlp) {
      for (const std::string& parameter : names.parameters) {
        hit = hit || (modules[i].path + ".weight").ends_with("." + parameter) ||
              modules[i].path + ".weight" == parameter;
      }
    } else {
      for (const std::string& name : names.names) hit = hit || TargetMatches(name, modules[i].path);
      if (!names.pattern.empty()) hit = hit || TargetMatches(names.pattern, modules[i].path);
    }
    if (hit) found.push_back(i);
  }
  return found;
}

TEST(LoraTargets, Described_MeanTheSameModulesToPeft) {
  const LinearModules modules = SomeModules();
  const std::vector<std::vector<std::size_t>> selections = {
      {0, 1, 3, 4}, {5, 6}, {2, 7}, {2, 5, 6, 7}, {0}, {5}, {1, 6, 7}, {2}, {0, 3, 7}};
  for (const auto& selection : selections) {
    EXPECT_EQ(AsPeftReads(DescribeTargets(modules, selection)), selection) << selection.size();
  }
}

TEST(LoraTargets, DescribedByLastNames_WhereTheyAreEnough) {
  const TargetNames names = DescribeTargets(SomeModules(), {0, 1, 3, 4});
  EXPECT_THAT(names.names, ElementsAre("o_proj", "q_proj"));
  EXPECT_THAT(names.pattern, IsEmpty());
  EXPECT_THAT(names.parameters, IsEmpty());
}

TEST(LoraTargets, DescribedWithSharedMlp_NamesItAsParameter) {
  const TargetNames names = DescribeTargets(SomeModules(), {2, 5, 6, 7});
  EXPECT_THAT(names.names, ElementsAre("up_proj"));
  EXPECT_THAT(names.parameters, ElementsAre("mlp.shared_mlp.up_proj.weight", "mlp.up_proj.weight"));
}

}  // namespace
}  // namespace offshoot::trainer
