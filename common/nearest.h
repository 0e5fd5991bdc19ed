// The nearest right word for a wrong one, for messages. Pure, thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace offshoot {

// The candidate that most likely was meant (edits with neighbours swapped, case and '-' for '_'
// ignored), or "" when none is near. Ties go to the first.
std::string NearestWord(absl::string_view word, const std::vector<std::string>& candidates);

}  // namespace offshoot
