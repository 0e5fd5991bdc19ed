#include "trainer/weights/gguf_architectures.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

// The numbers that a name has where its pattern has %d and %e.
struct Numbers {
  std::string layer, expert;
};

// Splits "blk.12.attn_q" by the pattern "blk.%d.attn_q"; nullopt if it does not match.
std::optional<Numbers> Match(std::string_view pattern, std::string_view text) {
  Numbers numbers;
  while (!pattern.empty()) {
    if (pattern[0] != '%') {
      if (text.empty() || text[0] != pattern[0]) return std::nullopt;
      pattern.remove_prefix(1);
      text.remove_prefix(1);
      continue;
    }
    const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
    if (digits == 0) return std::nullopt;
    (pattern[1] == 'd' ? numbers.layer : numbers.expert) = text.substr(0, digits);
    pattern.remove_prefix(2);
    text.remove_prefix(digits);
  }
  return text.empty() ? std::optional<Numbers>(numbers) : std::nullopt;
}

std::string Fill(std::string pattern, std::string_view hole, std::string_view digits) {
  const std::size_t place = pattern.find(hole);
  if (place != std::string::npos) pattern.replace(place, hole.size(), digits);
  return pattern;
}

struct Translation {
  std::string name;
  Numbers numbers;
};

template <typename From, typename To>
std::optional<Translation> Translate(const GgufArchitecture& architecture, const std::string& name,
                                     From from, To to) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string::npos) return std::nullopt;
  const std::string stem = name.substr(0, dot);
  const std::string suffix = name.substr(dot);
  const bool plain = suffix == ".weight" || (suffix == ".bias" && architecture.has_biases);
  for (const GgufName& pair : architecture.names) {
    if (const auto numbers = Match(pair.*from, name)) {
      return Translation{Fill(pair.*to, "%d", numbers->layer), *numbers};
    }
    if (const auto numbers = plain ? Match(pair.*from, stem) : std::nullopt) {
      return Translation{Fill(pair.*to, "%d", numbers->layer) + suffix, *numbers};
    }
  }
  return std::nullopt;
}

}  // namespace

const GgufArchitecture& FindGgufArchitecture(const nlohmann::json& metadata,
                                             const std::string& path) {
  const auto found = metadata.find("general.architecture");
  if (found == metadata.end() || !found->is_string()) {
    throw Error(Reason::kBadModel, path + ": its metadata has no general.architecture.");
  }
  std::string known;
  std::string_view last;
  for (const GgufArchitecture& architecture : GgufArchitectures()) {
    if (*found == architecture.name) return architecture;
    if (last == architecture.name) continue;
    last = architecture.name;
    known += (known.empty() ? "" : ", ") + std::string(last);
  }
  throw Error(Reason::kBadModel, path + ": GGUF files of the architecture '" +
                                     found->get<std::string>() + "' cannot be read; known are " +
                                     known + ". Give the Hugging Face directory instead.");
}

const GgufArchitecture* FindGgufArchitectureByModelType(const std::string& model_type) {
  for (const GgufArchitecture& architecture : GgufArchitectures()) {
    if (model_type == architecture.model_type) return &architecture;
  }
  return nullptr;
}

std::string GgufModelTypes() {
  std::string types;
  for (const GgufArchitecture& architecture : GgufArchitectures()) {
    types += (types.empty() ? "" : ", ") + std::string(architecture.model_type);
  }
  return types;
}

std::optional<std::string> HuggingFaceName(const GgufArchitecture& architecture,
                                           const std::string& gguf_name) {
  auto found = Translate(architecture, gguf_name, &GgufName::gguf, &GgufName::hugging_face);
  return found ? std::optional<std::string>(std::move(found->name)) : std::nullopt;
}

std::optional<std::string> ExpertName(const std::string& name, std::int64_t expert) {
  if (name.find("%e") == std::string::npos) return std::nullopt;
  return Fill(name, "%e", std::to_string(expert));
}

std::optional<GgufPlace> GgufPlaceOf(const GgufArchitecture& architecture,
                                     const std::string& hugging_face_name) {
  auto found = Translate(architecture, hugging_face_name, &GgufName::hugging_face, &GgufName::gguf);
  if (!found || found->numbers.expert.size() > 9) return std::nullopt;
  GgufPlace place{std::move(found->name)};
  if (!found->numbers.expert.empty()) place.expert = std::stol(found->numbers.expert);
  return place;
}

std::int64_t UnpermutedRow(std::int64_t source, std::int64_t head_rows) {
  const std::int64_t head = source / head_rows;
  const std::int64_t within = source % head_rows;
  return head * head_rows + within % 2 * (head_rows / 2) + within / 2;
}

at::Tensor JoinLatent(const at::Tensor& keys, const at::Tensor& values) {
  return at::cat({keys.transpose(1, 2), values}, 1).flatten(0, 1);
}

}  // namespace offshoot::trainer
