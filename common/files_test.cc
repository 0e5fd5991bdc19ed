#include "common/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "common/temporary_directory.h"

namespace offshoot {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(WriteFileAtomically, WrittenTwice_HoldsTheSecondAndNothingBesideIt) {
  TemporaryDirectory directory;
  const std::string path = directory.File("state");
  ASSERT_TRUE(WriteFileAtomically(path, "one").ok());
  ASSERT_TRUE(WriteFileAtomically(path, std::string("t\0wo", 4)).ok());
  EXPECT_EQ(ReadFile(path).value(), std::string("t\0wo", 4));
  EXPECT_THAT(ListFilesBelow(directory.path()).value(), ElementsAre("state"));
}

TEST(WriteFileAtomically, DirectoryMissing_NamesThePath) {
  const absl::Status status = WriteFileAtomically("/nowhere/at/all", "x");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/at/all"));
}

TEST(ErrnoStatus, FullDisk_SaysSoAndWhatToDo) {
  const absl::Status status = ErrnoStatus(ENOSPC, "cannot write /x");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/x: the disk is full; free some space"));
}

TEST(ReadFile, Missing_IsNotFound) {
  EXPECT_EQ(ReadFile("/nowhere").status().code(), absl::StatusCode::kNotFound);
}

TEST(ReadFile, Directory_IsRefused) { EXPECT_FALSE(ReadFile("/tmp").ok()); }

TEST(ListFilesBelow, Tree_IsSortedAndFollowsLinksToFiles) {
  TemporaryDirectory directory;
  ASSERT_TRUE(MakeDirectories(directory.File("b/c")).ok());
  std::ofstream(directory.File("z")) << "z";
  std::ofstream(directory.File("b/c/y")) << "y";
  std::filesystem::create_symlink(directory.File("z"), directory.File("b/link"));
  EXPECT_THAT(ListFilesBelow(directory.path()).value(), ElementsAre("b/c/y", "b/link", "z"));
}

TEST(ListFilesBelow, LinkToNothing_IsNamed) {
  TemporaryDirectory directory;
  std::filesystem::create_symlink("/nowhere/blob", directory.File("model.safetensors"));
  const auto files = ListFilesBelow(directory.path());
  EXPECT_EQ(files.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(files.status().message()), HasSubstr("model.safetensors"));
}

TEST(RemoveTree, AbsentOrFull_IsGoneAfterwards) {
  TemporaryDirectory directory;
  ASSERT_TRUE(MakeDirectories(directory.File("a/b")).ok());
  std::ofstream(directory.File("a/b/c")) << "c";
  EXPECT_TRUE(RemoveTree(directory.File("a")).ok());
  EXPECT_FALSE(PathExists(directory.File("a")));
  EXPECT_TRUE(RemoveTree(directory.File("a")).ok());
}

TEST(MakeDirectories, OverAFile_IsRefused) {
  TemporaryDirectory directory;
  std::ofstream(directory.File("f")) << "x";
  EXPECT_FALSE(MakeDirectories(directory.File("f")).ok());
}

TEST(PathIsInside, LinksAndDots_AreResolved) {
  TemporaryDirectory directory;
  const std::string root = directory.File("root");
  ASSERT_TRUE(MakeDirectories(root + "/models").ok());
  ASSERT_TRUE(MakeDirectories(directory.File("rooted")).ok());
  std::filesystem::create_symlink(directory.File("rooted"), root + "/out");
  EXPECT_TRUE(PathIsInside(root + "/models/a", root));
  EXPECT_TRUE(PathIsInside(root, root));
  EXPECT_TRUE(PathIsInside(root + "/x", "/"));
  EXPECT_FALSE(PathIsInside(root + "/../rooted", root));
  EXPECT_FALSE(PathIsInside(directory.File("rooted"), root));
  EXPECT_FALSE(PathIsInside(root + "/out/secret", root));
}

TEST(IsSafeRelativePath, AnythingThatLeavesTheRoot_IsFalse) {
  EXPECT_TRUE(IsSafeRelativePath("merged/model.safetensors"));
  for (const char* path : {"", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/"}) {
    EXPECT_FALSE(IsSafeRelativePath(path)) << path;
  }
  EXPECT_FALSE(IsSafeRelativePath(absl::string_view("a\0b", 3)));
}

TEST(FileLock, HeldByOne_IsRefusedToAnotherUntilReleased) {
  TemporaryDirectory directory;
  const std::string path = directory.File("lock");
  {
    auto first = FileLock::Acquire(path);
    ASSERT_TRUE(first.ok()) << first.status();
    const auto second = FileLock::Acquire(path);
    EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(second.status().message()), HasSubstr(path));
  }
  EXPECT_TRUE(FileLock::Acquire(path).ok());
}

}  // namespace
}  // namespace offshoot
