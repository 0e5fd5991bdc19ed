#include "trainer/export/license_texts.h"

#include <cctype>

#include "trainer/tokenizer/tokenizer.h"

namespace offshoot::trainer {
namespace {

struct KnownText {
  const char* digest;  // of its words
  const char* id;
};

constexpr KnownText kTexts[] = {
    {"sha256:b41b69f0dea0598ca720f95f7c676dc79782779377951993e5bdd566fec422f3", "apache-2.0"},
    // Headed "MIT License", "The MIT License (MIT)", and without a heading.
    {"sha256:35a446201226de6b27cfb7106d0f6c697f63bfeac2913dcf89024911e66ef164", "mit"},
    {"sha256:6c833965e9ca4cf8095655005226f24fe8bf7b1605dbe513204837a7371fa127", "mit"},
    {"sha256:0cf21bdfd1964a97a8615e128534845826afbc887edc95aa5c925cbf64386b5c", "mit"},
    {"sha256:5272fb2d9117cba4ebb1b4a6612e61ab05ddddeff56bd30c3ac3798e23821b30", "gpl-3.0"},
    {"sha256:f82071285728ca3ec7685ee9bc4acdae0b8267142a4d20b8f1805eabedb4a98a", "mpl-2.0"},
    {"sha256:96bdc7f63190fb4bd1ae584b890300ed7517d858b34c945642a3b9b2f1612a5f", "cc0-1.0"},
};

struct KnownTitle {
  std::string_view words;
  TitledLicense license;
};

constexpr KnownTitle kTitles[] = {
    {"llama 2 community license agreement", {"llama2", ""}},
    {"meta llama 3 community license agreement", {"llama3", ""}},
    {"llama 3 1 community license agreement", {"llama3.1", ""}},
    {"llama 3 2 community license agreement", {"llama3.2", ""}},
    {"llama 3 3 community license agreement", {"llama3.3", ""}},
    {"llama 4 community license agreement", {"llama4", ""}},
    {"tongyi qianwen license agreement", {"other", "tongyi-qianwen"}},
    {"qwen license agreement", {"other", "qwen"}},
    {"qwen research license agreement", {"other", "qwen-research"}},
    {"deepseek license agreement", {"other", "deepseek"}},
    {"tencent hunyuan community license agreement", {"other", "tencent-hunyuan-community"}},
};

// Letters and digits in words parted by one space, the lines that name a copyright's owner left
// out.
std::string WordsOf(std::string_view text) {
  std::string words;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    std::string kept;
    bool in_word = false;
    for (const char character : line) {
      const auto byte = static_cast<unsigned char>(character);
      if (byte >= 0x80) continue;
      if (std::isalnum(byte) == 0) {
        in_word = false;
        continue;
      }
      if (!in_word && !kept.empty()) kept += ' ';
      kept += static_cast<char>(std::tolower(byte));
      in_word = true;
    }
    if (kept.empty() || kept == "copyright" || kept.starts_with("copyright ")) continue;
    if (!words.empty()) words += ' ';
    words += kept;
  }
  return words;
}

}  // namespace

std::string LicenseOfText(std::string_view text) {
  const std::string digest = Sha256Of(WordsOf(text));
  for (const KnownText& known : kTexts) {
    if (digest == known.digest) return known.id;
  }
  return "";
}

TitledLicense LicenseOfTitle(std::string_view text) {
  std::string title;
  while (title.empty() && !text.empty()) {
    const std::size_t end = text.find('\n');
    title = WordsOf(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  for (const KnownTitle& known : kTitles) {
    if (title == known.words) return known.license;
  }
  return {};
}

}  // namespace offshoot::trainer
