#include "common/job_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/files.h"
#include "common/job_spec_table.h"

namespace offshoot {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kSmall[] =
    "base_model: /models/smol\n"
    "datasets:\n"
    "  - path: data.jsonl\n"
    "    type: chat\n";

std::string With(const std::string& lines) { return kSmall + lines; }

// The faults of a small right file with these lines added, one a line.
std::string FaultsWith(const std::string& lines) {
  std::string text;
  for (const SpecFault& fault : CheckJobSpec(With(lines)).faults) text += fault.ToString() + "\n";
  return text;
}

TEST(ParseJobSpec, AutomaticBatch_IsKeptThroughFormattingAndForTheTrainer) {
  const auto spec = ParseJobSpec(With("per_device_train_batch_size: auto\n"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->per_device_train_batch_size, kAutomaticRows);
  const auto again = ParseJobSpec(FormatJobSpec(*spec));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->per_device_train_batch_size, kAutomaticRows);
}

TEST(JobSpec, Smallest_GetsEveryDefault) {
  const auto spec = ParseJobSpec(kSmall);
  ASSERT_TRUE(spec.ok()) << spec.status();
  JobSpec expected;
  expected.base_model = "/models/smol";
  expected.datasets = {{"data.jsonl", "chat"}};
  EXPECT_EQ(*spec, expected);
}

TEST(JobSpec, EveryKey_IsTaken) {
  const auto spec = ParseJobSpec(
      "name: demo\nteam: research\npriority: -3\nlabels: {purpose: test, n: 1}\n"
      "base_model: Qwen/Qwen3-0.6B@main\nbase_model_id: Qwen/Qwen3-0.6B\ninit_adapter: ./a\n"
      "datasets: [{path: a.jsonl, type: text}, {path: b.jsonl}]\n"
      "val_set_size: 0.1\nsequence_len: 256\nsample_packing: true\nshuffle: false\n"
      "dtype: float32\nload_in_4bit: true\nlora_r: 8\nlora_alpha: 16.5\nlora_dropout: 0.05\n"
      "lora_target_modules: [q_proj, v_proj]\nuse_rslora: true\noptimizer: adamw\n"
      "learning_rate: 1e-4\nweight_decay: 0.01\nadam_beta1: 0.8\nadam_beta2: 0.95\n"
      "adam_epsilon: 1e-6\nlr_scheduler_type: cosine\nwarmup_steps: 3\nmax_grad_norm: 0\n"
      "num_train_epochs: 2.5\nmax_steps: 40\nper_device_train_batch_size: 4\n"
      "gradient_accumulation_steps: 2\ngradient_checkpointing: True\n"
      "recompute_granularity: selective\nlogging_steps: 5\n"
      "save_steps: 10\nsave_total_limit: 3\neval_steps: 20\nseed: 7\nreproducible: false\n"
      "max_runtime: 2h\nresources: {ranks: 2, device: cpu, min_memory: 8GiB}\n"
      "sync: {local_steps: 20, outer_momentum: 0.8}\n"
      "publish: {name: out, formats: [adapter, merged, gguf], gguf_type: Q8_0}\n");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->name, "demo");
  EXPECT_EQ(spec->priority, -3);
  EXPECT_EQ(spec->labels.at("n"), "1");
  EXPECT_EQ(spec->datasets[0].type, "text");
  EXPECT_EQ(spec->datasets[1].type, "chat");
  EXPECT_DOUBLE_EQ(spec->val_set_size, 0.1);
  EXPECT_THAT(spec->lora_target_modules, ElementsAre("q_proj", "v_proj"));
  EXPECT_DOUBLE_EQ(spec->learning_rate, 1e-4);
  EXPECT_TRUE(spec->gradient_checkpointing);
  EXPECT_EQ(spec->recompute_granularity, "selective");
  EXPECT_EQ(spec->max_runtime_seconds, 7200);
  EXPECT_EQ(spec->resources.min_memory_bytes, 8LL << 30);
  EXPECT_TRUE(spec->load_in_4bit);
  EXPECT_EQ(spec->sync.local_steps, 20);
  EXPECT_DOUBLE_EQ(spec->sync.outer_momentum, 0.8);
  EXPECT_THAT(spec->publish.formats, ElementsAre("adapter", "merged", "gguf"));
  EXPECT_EQ(spec->publish.gguf_type, "Q8_0");
  // And what it was made into is the same again.
  const auto again = ParseJobSpec(FormatJobSpec(*spec));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, *spec);
}

TEST(JobSpec, SyncEveryStep_IsTheDefaultInWords) {
  const std::string rest = "base_model: /m\ndatasets: [{path: a.jsonl}]\n";
  const auto plain = ParseJobSpec(rest);
  const auto said = ParseJobSpec(rest + "sync: every_step\n");
  ASSERT_TRUE(said.ok()) << said.status();
  EXPECT_EQ(FormatJobSpec(*said), FormatJobSpec(*plain));
  EXPECT_THAT(FaultsWith("sync: sometimes\n"), HasSubstr("give every_step, or local_steps: N"));
  EXPECT_THAT(FaultsWith("sync: {local_steps: many}\n"), HasSubstr("sync.local_steps"));
}

TEST(JobSpec, ManyFaults_AllComeAtOnceWithTheirLines) {
  const auto spec = ParseJobSpec(
      "base_model: /m\n"
      "datasets:\n"
      "  - path: a.jsonl\n"
      "    typ: chat\n"
      "lora_r: many\n"
      "learning_rte: 1e-4\n"
      "dtype: bf16\n"
      "seed: -1\n");
  ASSERT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string text(spec.status().message());
  EXPECT_THAT(text, HasSubstr("5 faults"));
  EXPECT_THAT(text, HasSubstr("line 4: datasets[0].typ: is not a key here; did you mean type?"));
  EXPECT_THAT(text, HasSubstr("line 5: lora_r: \"many\" is not right; give a whole number from 1"));
  EXPECT_THAT(text,
              HasSubstr("line 6: learning_rte: is not a key here; did you mean learning_rate?"));
  EXPECT_THAT(text, HasSubstr("line 7: dtype: \"bf16\" is not one of float32, bfloat16"));
  EXPECT_THAT(text, HasSubstr("line 8: seed: \"-1\" is out of range"));
}

TEST(JobSpec, KeyOfAnotherTool_IsAnsweredWithOurs) {
  EXPECT_THAT(FaultsWith("micro_batch_size: 4\n"), HasSubstr("write per_device_train_batch_size"));
  EXPECT_THAT(FaultsWith("lr: 1\n"), HasSubstr("write learning_rate"));
  EXPECT_THAT(FaultsWith("bf16: true\n"), HasSubstr("write dtype: bfloat16"));
  EXPECT_THAT(FaultsWith("output_dir: x\n"), HasSubstr("--output"));
  EXPECT_THAT(FaultsWith("xyzzy: 1\n"), HasSubstr("offshoot validate --keys"));
}

TEST(JobSpec, RemediesForForeignKeys_NameKeysThatExist) {
  JobSpec spec;
  std::vector<std::string> keys{"datasets"};
  for (const BoundKey& key : BindJobKeys(spec)) keys.emplace_back(key.info->key);
  for (const char* foreign : {"lr", "batch_size", "optim", "packing", "r", "bf16", "epochs"}) {
    std::string remedy = RemedyForForeignKey(foreign);
    ASSERT_EQ(remedy.rfind("write ", 0), 0u) << foreign;
    remedy = remedy.substr(
        6, remedy.find(':') == std::string::npos ? std::string::npos : remedy.find(':') - 6);
    EXPECT_THAT(keys, testing::Contains(remedy)) << foreign;
  }
}

TEST(JobSpec, RepeatedKey_NamesBothLines) {
  EXPECT_THAT(FaultsWith("seed: 1\nseed: 2\n"),
              HasSubstr("line 6: seed: is given again (first in line 5)"));
  EXPECT_THAT(FaultsWith("datasets: []\n"), HasSubstr("line 5: datasets: is given again"));
}

TEST(JobSpec, MissingParts_AreNamed) {
  std::string text(ParseJobSpec("seed: 1\n").status().message());
  EXPECT_THAT(text, HasSubstr("base_model: is missing"));
  EXPECT_THAT(text, HasSubstr("datasets: is missing"));
  text =
      std::string(ParseJobSpec("base_model: /m\ndatasets:\n  - type: chat\n").status().message());
  EXPECT_THAT(text, HasSubstr("line 3: datasets[0].path: is missing"));
  EXPECT_THAT(std::string(ParseJobSpec("").status().message()), HasSubstr("the file is empty"));
}

TEST(JobSpec, WrongTypes_AreRefused) {
  EXPECT_THAT(FaultsWith("lora_r: \"16\"\n"), HasSubstr("(quoted, so a text)"));
  EXPECT_THAT(FaultsWith("lora_r: 16.5\n"), HasSubstr("whole number"));
  EXPECT_THAT(FaultsWith("lora_r: [1]\n"), HasSubstr("a list is not right"));
  EXPECT_THAT(FaultsWith("lora_r:\n"), HasSubstr("has no value"));
  EXPECT_THAT(FaultsWith("learning_rate: fast\n"), HasSubstr("a number above 0"));
  EXPECT_THAT(FaultsWith("learning_rate: nan\n"), HasSubstr("a number above 0"));
  EXPECT_THAT(FaultsWith("learning_rate: 0\n"), HasSubstr("out of range"));
  EXPECT_THAT(FaultsWith("adam_beta1: 1\n"), HasSubstr("to below 1"));
  EXPECT_THAT(FaultsWith("shuffle: yes\n"), HasSubstr("true or false"));
  EXPECT_THAT(FaultsWith("resources: 2\n"), HasSubstr("is not a map"));
  EXPECT_THAT(FaultsWith("resources: {rank: 2}\n"), HasSubstr("did you mean ranks?"));
  EXPECT_THAT(FaultsWith("max_runtime: soon\n"), HasSubstr("30m, 2h"));
  EXPECT_THAT(FaultsWith("lora_target_modules: []\n"), HasSubstr("has 0 entries"));
  EXPECT_THAT(FaultsWith("lora_target_modules: [q_proj, q_proj]\n"), HasSubstr("named twice"));
  EXPECT_THAT(FaultsWith("lora_target_modules: 'q proj'\n"), HasSubstr("not a module's name"));
  EXPECT_THAT(FaultsWith("name: ../x\n"), HasSubstr("not a name"));
  EXPECT_THAT(FaultsWith("init_adapter: sha256:12\n"), HasSubstr("64 lower-case hex digits"));
  EXPECT_THAT(FaultsWith("per_device_train_batch_size: 0\n"), HasSubstr("or auto"));
  EXPECT_THAT(FaultsWith("[a]: 1\n"), HasSubstr("cannot be a key"));
}

TEST(JobSpec, NoneForOptionalText_IsTheDefault) {
  EXPECT_EQ(FaultsWith("init_adapter: null\nbase_model_id:\n"), "");
}

TEST(JobSpec, ImpossibleCombinations_AreRefused) {
  EXPECT_THAT(FaultsWith("warmup_steps: 2\nwarmup_ratio: 0.1\n"), HasSubstr("keep one"));
  EXPECT_THAT(FaultsWith("max_steps: 5\nwarmup_steps: 6\n"), HasSubstr("more than max_steps 5"));
  EXPECT_THAT(FaultsWith("eval_steps: 5\n"), HasSubstr("set val_set_size"));
  EXPECT_THAT(FaultsWith("val_set_size: 1.5\n"), HasSubstr("neither a fraction below 1"));
  EXPECT_THAT(FaultsWith("sample_packing: true\ngroup_by_length: true\n"), HasSubstr("keep one"));
  EXPECT_THAT(FaultsWith("publish: {formats: [merged]}\n"), HasSubstr("[adapter, merged]"));
  EXPECT_THAT(
      std::string(ParseJobSpec("base_model: m.bin\ndatasets: [{path: a}]").status().message()),
      HasSubstr("pickle"));
  EXPECT_THAT(
      std::string(
          ParseJobSpec("base_model: m\ndatasets: [{path: a},{path: a}]").status().message()),
      HasSubstr("named twice"));
}

TEST(JobSpec, Reproducible_FollowsRanksUnlessGiven) {
  EXPECT_TRUE(ParseJobSpec(With(""))->reproducible);
  EXPECT_FALSE(ParseJobSpec(With("resources: {ranks: 2}\n"))->reproducible);
  EXPECT_TRUE(ParseJobSpec(With("resources: {ranks: 2}\nreproducible: true\n"))->reproducible);
}

TEST(JobSpec, HundredsOfFaults_AreBounded) {
  std::string lines;
  for (int i = 0; i < 500; ++i) lines += absl::StrCat("wrong", i, ": 1\n");
  const JobSpecResult result = CheckJobSpec(With(lines));
  EXPECT_EQ(result.faults.size(), kMaxSpecFaults);
  EXPECT_THAT(result.faults.back().message, HasSubstr("more faults"));
}

TEST(FormatJobSpec, EqualSpecs_GiveEqualBytesAndDigest) {
  const auto a = ParseJobSpec(With("seed: 42\nlora_r: 8   # comment\n"));
  const auto b = ParseJobSpec("lora_r: 8\n" + std::string(kSmall));
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(FormatJobSpec(*a), FormatJobSpec(*b));
  EXPECT_EQ(SpecDigest(*a), SpecDigest(*b));
  EXPECT_NE(SpecDigest(*a), SpecDigest(*ParseJobSpec(kSmall)));
}

TEST(FormatJobSpec, AwkwardTexts_ComeBack) {
  JobSpec spec;
  spec.base_model = "/a b/\"c\": #d\\";
  spec.datasets = {{"~/caf\xC3\xA9 'x'.jsonl", "text"}};
  spec.labels = {{"true", "null"}, {"", ""}};
  spec.labels.erase("");
  const auto again = ParseJobSpec(FormatJobSpec(spec));
  ASSERT_TRUE(again.ok()) << again.status() << FormatJobSpec(spec);
  EXPECT_EQ(*again, spec);
}

TEST(JobSpec, MutatedFiles_NeverCrashAndRoundTrip) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  const std::string start = With(
      "labels: {a: b}\nlora_target_modules: [q_proj]\nresources: {ranks: 2}\nmax_runtime: 2h\n");
  int right = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string text = start;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int edit = 0; edit < edits; ++edit) {
      const std::size_t at = random() % text.size();
      constexpr char kBytes[] = "{}[]:,#&*!|>'\"%@`\n\t -ax01~\xff\\";
      if (random() % 2 == 0) {
        text[at] = kBytes[random() % (sizeof(kBytes) - 1)];
      } else {
        text.erase(at, 1 + random() % 4);
      }
    }
    const JobSpecResult result = CheckJobSpec(text);
    ASSERT_EQ(result.spec.has_value(), result.faults.empty()) << text;
    if (!result.spec.has_value()) continue;
    ++right;
    const JobSpecResult again = CheckJobSpec(FormatJobSpec(*result.spec));
    ASSERT_TRUE(again.spec.has_value()) << text << "\n" << FormatJobSpec(*result.spec);
    ASSERT_EQ(*again.spec, *result.spec) << text;
  }
  EXPECT_GT(right, 0);
}

TEST(ClassifyReference, EachForm_IsTold) {
  EXPECT_EQ(ClassifyReference("/a/b"), ReferenceKind::kPath);
  EXPECT_EQ(ClassifyReference("./b"), ReferenceKind::kPath);
  EXPECT_EQ(ClassifyReference("~/m"), ReferenceKind::kPath);
  EXPECT_EQ(ClassifyReference("m.gguf"), ReferenceKind::kPath);
  EXPECT_EQ(ClassifyReference("data/x.jsonl"), ReferenceKind::kPath);
  EXPECT_EQ(ClassifyReference("sha256:00"), ReferenceKind::kDigest);
  EXPECT_EQ(ClassifyReference("Qwen/Qwen3-0.6B@main"), ReferenceKind::kName);
}

// docs/job-file.md holds the table as it is. OFFSHOOT_WRITE_DOCS=1 brings the page up to date.
TEST(JobFilePage, Table_IsTheOneInTheCode) {
  const std::string path = "docs/job-file.md";
  auto page = ReadFile(path);
  ASSERT_TRUE(page.ok()) << page.status();
  const std::string begin = "<!-- keys: begin -->\n", end = "<!-- keys: end -->\n";
  const std::size_t from = page->find(begin), to = page->find(end);
  ASSERT_NE(from, std::string::npos);
  ASSERT_NE(to, std::string::npos);
  const std::size_t table = from + begin.size();
  if (std::getenv("OFFSHOOT_WRITE_DOCS") != nullptr) {
    std::string text = *page;
    text.replace(table, to - table, JobFileTables());
    ASSERT_TRUE(WriteFileAtomically(path, text).ok());
    return;
  }
  EXPECT_EQ(page->substr(table, to - table), JobFileTables())
      << "write the page anew: OFFSHOOT_WRITE_DOCS=1 job_spec_test";
}

}  // namespace
}  // namespace offshoot
