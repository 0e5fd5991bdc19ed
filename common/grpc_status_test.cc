#include "common/grpc_status.h"

#include <gtest/gtest.h>

#include <string>

namespace offshoot {
namespace {

TEST(GrpcStatus, ThereAndBack_IsTheSame) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why");
    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status) << code;
  }
}

TEST(GrpcStatus, LongMessage_IsCutBetweenCharacters) {
  std::string text;
  while (text.size() < 3 * kMaxStatusMessageBytes)
    text += "\xE2\x82\xAC";  // euro sign, three bytes
  const grpc::Status status = ToGrpcStatus(absl::InternalError(text));
  const std::string cut = status.error_message().substr(0, status.error_message().size() - 4);
  EXPECT_LE(cut.size(), static_cast<std::size_t>(kMaxStatusMessageBytes));
  EXPECT_EQ(cut.size() % 3, 0u);
}

}  // namespace
}  // namespace offshoot
