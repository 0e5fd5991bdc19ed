// A derivative's files from the coordinator into a directory: resumable, each checked by its
// digest, and the directory appears all at once.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"
#include "offshoot/v1/models.pb.h"

namespace offshoot::cli {

enum class Existing {
  kKeep,     // a directory with other contents is left alone: FAILED_PRECONDITION
  kReplace,  // one that holds an earlier derivative (an offshoot.json) is replaced
};

// OK if a pull into it could be done now: absent, empty, or replaceable.
absl::Status CheckPullTarget(const std::string& directory, Existing existing);

// Files are first written below "<directory>.partial"; what an interrupted pull left there is gone
// on with. A directory that already holds just these files is left as it is.
absl::Status PullDerivative(Client& client, const v1::Derivative& derivative,
                            const std::string& directory, Existing existing);

absl::StatusOr<v1::Derivative> GetDerivative(Client& client, const std::string& derivative_id);

}  // namespace offshoot::cli
