#include "trainer/data/row_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/data/data_testing.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;

TokenRow Row(std::vector<std::int32_t> ids, std::vector<std::int32_t> labels) {
  return {std::move(ids), std::move(labels)};
}

std::shared_ptr<const RowStore> WriteTwoRows(const std::string& path) {
  RowStoreWriter writer(path);
  writer.Add(Row({1, 2, 3}, {-100, -100, 3}), 0);
  writer.Add(Row({4, 5}, {-100, 5}), 7);
  return writer.Finish({{"answer", 42}});
}

void ExpectTwoRows(const RowStore& store) {
  ASSERT_EQ(store.rows().size(), 2u);
  EXPECT_THAT(store.ids(0), ElementsAre(1, 2, 3));
  EXPECT_THAT(store.labels(0), ElementsAre(-100, -100, 3));
  EXPECT_THAT(store.ids(1), ElementsAre(4, 5));
  EXPECT_THAT(store.labels(1), ElementsAre(-100, 5));
  EXPECT_EQ(store.rows()[1].line, 7u);
  EXPECT_EQ(store.rows()[0].trained_tokens, 1u);
  EXPECT_EQ(store.facts().at("answer"), 42);
}

TEST(RowStore, InMemory_KeepsRows) { ExpectTwoRows(*WriteTwoRows("")); }

TEST(RowStore, File_KeepsRows) {
  const TemporaryDirectory directory;
  const std::string path = (directory.path() / "deep" / "a.rows").string();
  ExpectTwoRows(*WriteTwoRows(path));
  const auto again = RowStore::Open(path);
  ASSERT_NE(again, nullptr);
  ExpectTwoRows(*again);
}

TEST(RowStore, ManyRows_SpanSeveralWrites) {
  const TemporaryDirectory directory;
  RowStoreWriter writer((directory.path() / "a.rows").string());
  const std::vector<std::int32_t> long_row(100'000, 9);
  for (int i = 0; i < 30; ++i) writer.Add(Row(long_row, long_row), static_cast<std::uint64_t>(i));
  const auto store = writer.Finish(nlohmann::json::object());
  ASSERT_EQ(store->rows().size(), 30u);
  EXPECT_THAT(store->labels(29), ElementsAreArray(long_row));
}

TEST(RowStore, AnyByteChanged_IsNotRead) {
  const TemporaryDirectory directory;
  const std::string path = (directory.path() / "a.rows").string();
  WriteTwoRows(path);
  const std::string whole = ReadTestFile(path);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const bool is_padding = (i >= 12 && i < 16) || (i >= 48 && i < 64);
    if (is_padding) continue;
    std::string broken = whole;
    broken[i] = static_cast<char>(broken[i] ^ 0x40);
    directory.Write("a.rows", broken);
    EXPECT_EQ(RowStore::Open(path), nullptr) << "byte " << i;
  }
}

TEST(RowStore, CutAnywhere_IsNotRead) {
  const TemporaryDirectory directory;
  const std::string path = (directory.path() / "a.rows").string();
  WriteTwoRows(path);
  const std::string whole = ReadTestFile(path);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    directory.Write("a.rows", whole.substr(0, size));
    EXPECT_EQ(RowStore::Open(path), nullptr) << size << " bytes";
  }
}

TEST(RowStoreWriter, NotFinished_LeavesNothing) {
  const TemporaryDirectory directory;
  {
    RowStoreWriter writer((directory.path() / "a.rows").string());
    writer.Add(Row({1}, {1}), 0);
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(RowStoreWriter, NoPlaceToWrite_IsNamed) {
  const TemporaryDirectory directory;
  const std::string file = directory.Write("file", "");
  try {
    RowStoreWriter writer(file + "/a.rows");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kDiskFull);
    EXPECT_THAT(error.what(), HasSubstr(file));
  }
}

TEST(HashOfTrainedPart, OnlyTrainedLabelsCount) {
  EXPECT_EQ(HashOfTrainedPart(Row({1, 2, 3}, {-100, 2, 3})),
            HashOfTrainedPart(Row({9, 8, 2, 3}, {-100, -100, 2, 3})));
  EXPECT_NE(HashOfTrainedPart(Row({1, 2, 3}, {-100, 2, 3})),
            HashOfTrainedPart(Row({1, 2, 3}, {-100, 3, 2})));
}

}  // namespace
}  // namespace offshoot::trainer
