// What `offshoot run` says at the end: the losses side by side, the sample prompts answered by
// both.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "offshoot/v1/models.pb.h"

namespace offshoot::cli {

// offshoot_json: the derivative's own; what it does not have, or has wrong, is left out.
std::string FormatRunReport(const v1::Derivative& derivative, absl::string_view offshoot_json,
                            const std::string& directory);

}  // namespace offshoot::cli
