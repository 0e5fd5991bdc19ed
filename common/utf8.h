// UTF-8: is it, and cutting it between characters. Pure, thread-safe.
#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"

namespace offshoot {

// The offset of the first byte that is not valid UTF-8 (overlong forms and surrogates included), or
// npos.
std::size_t FirstInvalidUtf8(absl::string_view text);
// The longest prefix of at most `bytes` bytes that does not part a character.
absl::string_view Utf8Prefix(absl::string_view text, std::size_t bytes);

}  // namespace offshoot
