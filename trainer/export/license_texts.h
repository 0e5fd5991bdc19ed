// Licences known by their text: terms differ within a family of models, so that nothing but the
// text of the licence file tells which one it is. Pure; thread-safe.
#pragma once

#include <string>
#include <string_view>

namespace offshoot::trainer {

// The hub's id of a licence (apache-2.0, mit, ...); "" when the text is none of those known, were
// it only by a word. Case, punctuation, line breaks and the lines that begin with "Copyright" do
// not count.
std::string LicenseOfText(std::string_view text);

}  // namespace offshoot::trainer
