#include "trainer/weights/safetensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/error.h"
#include "trainer/weights/passing.h"
#include "trainer/weights/safetensors_header.h"
#include "trainer/weights/test_files.h"

namespace offshoot::trainer {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

// What ParseSafetensorsHeader says of the bytes; "" if nothing.
std::string Complaint(const std::string& bytes) {
  try {
    ParseSafetensorsHeader(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(),
                           "x.safetensors");
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadModel);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("x.safetensors: "), testing::EndsWith(".")));
    return error.what();
  }
  return "";
}

std::string WithHeader(const std::string& header, std::size_t data_bytes) {
  return Complaint(SafetensorsBytes(header, data_bytes));
}

constexpr char kGood[] =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";

TEST(SafetensorsHeader, GoodHeader_IsRead) {
  const std::string bytes = SafetensorsBytes(kGood, 16);
  const SafetensorsHeader header = ParseSafetensorsHeader(
      reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), "x");
  EXPECT_THAT(header.metadata, ElementsAre(Pair("format", "pt")));
  ASSERT_EQ(header.entries.size(), 1u);
  EXPECT_EQ(header.entries[0].info.name, "a");
  EXPECT_THAT(header.entries[0].info.shape, ElementsAre(2, 2));
  EXPECT_EQ(header.entries[0].begin, bytes.size() - 16);
  EXPECT_EQ(header.entries[0].end, bytes.size());
}

TEST(SafetensorsHeader, EmptyFile_Refused) {
  EXPECT_THAT(Complaint(""), HasSubstr("is no safetensors file: it has 0 bytes"));
}

TEST(SafetensorsHeader, AbsurdHeaderSize_Refused) {
  EXPECT_THAT(Complaint(Bytes<std::uint64_t>(~0ull) + "{}"),
              HasSubstr("claims a header of 18446744073709551615 bytes"));
}

TEST(SafetensorsHeader, HeaderLongerThanFile_Refused) {
  EXPECT_THAT(Complaint(Bytes<std::uint64_t>(1000) + "{}"), HasSubstr("is cut short"));
}

TEST(SafetensorsHeader, EveryTruncation_Refused) {
  const std::string bytes = SafetensorsBytes(kGood, 16);
  ASSERT_EQ(Complaint(bytes), "");
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(Complaint(bytes.substr(0, size)), "") << "cut to " << size << " bytes";
  }
}

TEST(SafetensorsHeader, TrailingBytes_Refused) {
  EXPECT_THAT(WithHeader(kGood, 17), HasSubstr("the last 1 bytes belong to no tensor"));
}

TEST(SafetensorsHeader, NotJson_Refused) {
  EXPECT_THAT(WithHeader("{oops", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(WithHeader("[1]", 0), HasSubstr("does not begin with '{'"));
}

TEST(SafetensorsHeader, DuplicateName_Refused) {
  EXPECT_THAT(WithHeader(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                             "a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                         2),
              HasSubstr("tensor 'a' occurs twice"));
}

TEST(SafetensorsHeader, Overlap_Refused) {
  EXPECT_THAT(WithHeader(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                             "b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                         3),
              HasSubstr("tensor 'b' overlaps"));
}

TEST(SafetensorsHeader, Hole_Refused) {
  EXPECT_THAT(WithHeader(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2),
              HasSubstr("bytes 0 to 1 of the data belong to no tensor"));
}

TEST(SafetensorsHeader, OutOfRange_Refused) {
  EXPECT_THAT(WithHeader(R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", 2),
              HasSubstr("tensor 'a' ends at byte 9 of a data section of 2 bytes"));
}

TEST(SafetensorsHeader, EndBeforeBegin_Refused) {
  EXPECT_THAT(WithHeader(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}})", 2),
              HasSubstr("before its begin"));
}

TEST(SafetensorsHeader, ShapeAndBytesDiffer_Refused) {
  EXPECT_THAT(WithHeader(R"({"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,4]}})", 4),
              HasSubstr("needs 6 bytes for its dtype and shape but its data_offsets give 4"));
}

TEST(SafetensorsHeader, ShapeOverflow_Refused) {
  const char* header =
      R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})";
  EXPECT_THAT(WithHeader(header, 0), HasSubstr("size overflows"));
  const char* hidden =
      R"({"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})";
  EXPECT_THAT(WithHeader(hidden, 0), HasSubstr("size overflows"));
}

TEST(SafetensorsHeader, UnknownDtype_Refused) {
  EXPECT_THAT(WithHeader(R"({"a":{"dtype":"F7","shape":[1],"data_offsets":[0,1]}})", 1),
              HasSubstr("has the dtype 'F7', which is not known"));
}

TEST(SafetensorsHeader, WrongKinds_Refused) {
  EXPECT_NE(WithHeader(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1), "");
  EXPECT_NE(WithHeader(R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1), "");
  EXPECT_NE(WithHeader(R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1), "");
  EXPECT_NE(WithHeader(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1), "");
  EXPECT_NE(WithHeader(R"({"a":{"dtype":"U8","shape":[1]}})", 0), "");
  EXPECT_NE(WithHeader(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
            "");
  EXPECT_NE(WithHeader(R"({"a":5})", 0), "");
  EXPECT_NE(WithHeader(R"({"a":null})", 0), "");
  EXPECT_NE(WithHeader(R"({"__metadata__":{"n":1}})", 0), "");
  EXPECT_NE(WithHeader(R"({"__metadata__":{"n":{"m":"k"}}})", 0), "");
  EXPECT_NE(WithHeader("{" + std::string(100000, '['), 0), "");
}

TEST(Safetensors, EveryDtype_RoundTrips) {
  const TemporaryDirectory directory;
  std::map<std::string, at::Tensor> tensors;
  for (const at::ScalarType dtype :
       {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kBFloat16,
        at::kFloat, at::kDouble, at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    tensors[c10::toString(dtype)] = at::arange(0, 7).to(dtype);
  }
  tensors["scalar"] = at::full({}, 2.5);
  tensors["empty"] = at::zeros({0, 3});
  tensors["strided"] = at::arange(0, 12).reshape({3, 4}).t();
  WriteSafetensors(directory.File("x.safetensors"), tensors, {{"format", "pt"}});
  EXPECT_FALSE(std::filesystem::exists(directory.File("x.safetensors.tmp")));
  const auto file = SafetensorsFile::Open(directory.File("x.safetensors"));
  EXPECT_THAT(file->metadata(), ElementsAre(Pair("format", "pt")));
  ASSERT_EQ(file->tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor read = file->Get(name);
    EXPECT_EQ(read.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(read.sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(at::equal(read.to(at::kDouble), tensor.to(at::kDouble))) << name;
    const auto address = reinterpret_cast<std::uintptr_t>(read.const_data_ptr());
    EXPECT_EQ(address % c10::elementSize(read.scalar_type()), 0u) << name;
  }
}

TEST(Safetensors, Get_OutlivesTheFile_AndTheFilesDeletion) {
  const TemporaryDirectory directory;
  WriteSafetensors(directory.File("x.safetensors"), {{"a", at::ones({1000})}});
  at::Tensor tensor = SafetensorsFile::Open(directory.File("x.safetensors"))->Get("a");
  std::filesystem::remove(directory.File("x.safetensors"));
  EXPECT_EQ(tensor.sum().item<float>(), 1000);
}

TEST(Safetensors, MisalignedTensor_IsCopied) {
  const TemporaryDirectory directory;
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  WriteBytes(directory.File("x.safetensors"),
             Bytes<std::uint64_t>(header.size()) + header + "\7" + Bytes(1.5f));
  const auto file = SafetensorsFile::Open(directory.File("x.safetensors"));
  EXPECT_EQ(file->Get("b").item<float>(), 1.5f);
  EXPECT_FALSE(file->ReleaseOf("b", at::kFloat));  // it is no part of the mapping
}

TEST(Safetensors, ReleasedPages_AreReadAgain) {
  const TemporaryDirectory directory;
  const at::Tensor values = at::arange(0, 1 << 20, at::kFloat);
  WriteSafetensors(directory.File("x.safetensors"), {{"a", values}});
  PageRelease release;
  at::Tensor read;
  {
    const auto file = SafetensorsFile::Open(directory.File("x.safetensors"));
    EXPECT_FALSE(file->ReleaseOf("a", at::kBFloat16));
    EXPECT_FALSE(file->ReleaseOf("b", at::kFloat));
    release = file->ReleaseOf("a", at::kFloat);
    read = file->Get("a");
  }
  ASSERT_TRUE(release);
  EXPECT_TRUE(at::equal(read, values));
  release(100'000, 3'000'000);
  EXPECT_TRUE(at::equal(read, values));
}

TEST(Safetensors, TensorOfSeveralPieces_IsVisitedInOrderAndCompared) {
  const TemporaryDirectory directory;
  const std::int64_t rows = 3001, width = 1000;  // 12 MB
  const at::Tensor values = at::arange(0, rows * width, at::kFloat).reshape({rows, width});
  at::Tensor other = values.clone();
  other[rows - 1][width - 1] = 7;
  WriteSafetensors(directory.File("x.safetensors"), {{"a", values}, {"b", other}});
  const auto file = SafetensorsFile::Open(directory.File("x.safetensors"));
  const at::Tensor read = file->Get("a");
  std::int64_t seen = 0, pieces = 0;
  VisitPieces(read, file->ReleaseOf("a", at::kFloat),
              [&](std::int64_t first, const at::Tensor& piece) {
                EXPECT_EQ(first, seen);
                EXPECT_TRUE(at::equal(piece, values.narrow(0, first, piece.size(0))));
                seen += piece.size(0);
                ++pieces;
              });
  EXPECT_EQ(seen, rows);
  EXPECT_EQ(pieces, 2);
  const auto equal = [&](const std::string& name, const at::Tensor& to) {
    return EqualInPieces(file->Get(name), file->ReleaseOf(name, at::kFloat), to, {});
  };
  EXPECT_TRUE(equal("a", values));
  EXPECT_FALSE(equal("b", values));
  EXPECT_FALSE(equal("a", values.narrow(0, 0, 1)));
}

TEST(Safetensors, AbsentTensor_NamedWithFile) {
  const TemporaryDirectory directory;
  WriteSafetensors(directory.File("x.safetensors"), {{"a", at::ones({1})}});
  const auto file = SafetensorsFile::Open(directory.File("x.safetensors"));
  EXPECT_FALSE(file->Has("b"));
  EXPECT_THAT(
      [&] { file->Get("b"); },
      testing::ThrowsMessage<Error>(AllOf(HasSubstr("x.safetensors"), HasSubstr("no tensor 'b'"))));
}

TEST(SafetensorsWriter, Unfinished_LeavesNothing) {
  const TemporaryDirectory directory;
  {
    SafetensorsWriter writer(directory.File("x.safetensors"), {{"a", at::kFloat, {2}}});
    writer.Write("a", at::ones({2}));
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(SafetensorsWriter, TensorForgotten_Refused) {
  const TemporaryDirectory directory;
  SafetensorsWriter writer(directory.File("x.safetensors"), {{"a", at::kFloat, {2}}});
  EXPECT_THROW(writer.Write("a", at::ones({3})), Error);
  EXPECT_THROW(writer.Write("b", at::ones({2})), Error);
  EXPECT_THAT([&] { writer.Finish(); },
              testing::ThrowsMessage<Error>(HasSubstr("'a' was never written")));
}

TEST(SafetensorsWriter, RowsAppended_AreOneTensor) {
  const TemporaryDirectory directory;
  const at::Tensor all = at::arange(0, 12, at::kFloat).reshape({4, 3});
  SafetensorsWriter writer(directory.File("x.safetensors"),
                           {{"a", at::kFloat, {4, 3}}, {"b", at::kFloat, {1}}});
  writer.Append("a", all.narrow(0, 0, 1));
  writer.Write("b", at::ones({1}));
  EXPECT_THROW(writer.Append("a", all), Error);  // a row too many
  EXPECT_THROW(writer.Append("a", all.narrow(1, 0, 2)), Error);
  EXPECT_THROW(writer.Write("a", all), Error);
  EXPECT_THAT([&] { writer.Finish(); },
              testing::ThrowsMessage<Error>(HasSubstr("'a' has rows not yet written")));
  writer.Append("a", all.narrow(0, 1, 3));
  writer.Finish();
  EXPECT_TRUE(at::equal(SafetensorsFile::Open(directory.File("x.safetensors"))->Get("a"), all));
}

TEST(SafetensorsWriter, FullDisk_NamedAsSuch) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const TemporaryDirectory directory;
  std::filesystem::create_symlink("/dev/full", directory.File("x.safetensors.tmp"));
  try {
    WriteSafetensors(directory.File("x.safetensors"), {{"a", at::ones({100})}});
    FAIL() << "a write to a full disk went unseen";
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kDiskFull);
    EXPECT_THAT(error.what(), HasSubstr("x.safetensors: the disk is full"));
  }
}

}  // namespace
}  // namespace offshoot::trainer
