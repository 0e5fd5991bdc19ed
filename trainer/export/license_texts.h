// Licences known by their text: terms differ within a family of models, so that nothing but the
// licence file itself tells which one it is: its whole text, or a title. Pure; thread-safe.
#pragma once

#include <string>
#include <string_view>

namespace offshoot::trainer {

// The hub's id of a licence (apache-2.0, mit, ...); "" when the text is none of those known, were
// it only by a word. Case, punctuation, line breaks and the lines that begin with "Copyright" do
// not count.
std::string LicenseOfText(std::string_view text);

struct TitledLicense {
  std::string_view id;    // the hub's: llama3.2, or other
  std::string_view name;  // license_name, where the id is other
};

// The licences that belong to models and say by their first line which one they are, version and
// all: Llama's, Qwen's, DeepSeek's, Tencent Hunyuan's. Empty: no such title.
TitledLicense LicenseOfTitle(std::string_view text);

}  // namespace offshoot::trainer
