#include "cli/run_report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "cli/format.h"
#include "common/quantity.h"
#include "common/utf8.h"

namespace offshoot::cli {
namespace {

constexpr std::size_t kMaxSamples = 3;
constexpr std::size_t kMaxAnswerBytes = 600;

std::string LossTable(double base, double derivative) {
  const double change = base > 0 ? 100 * (derivative - base) / base : 0;
  return FormatTable({{"", "base", "derivative", "change"},
                      {"held-out loss", FormatLoss(base), FormatLoss(derivative),
                       absl::StrFormat("%+.1f %%", change)},
                      {"perplexity", absl::StrFormat("%.2f", std::exp(base)),
                       absl::StrFormat("%.2f", std::exp(derivative)), ""}});
}

std::string TextOf(const nlohmann::json& sample, const char* key) {
  const auto found = sample.find(key);
  if (found == sample.end() || !found->is_string()) return "";
  const std::string text = found->get<std::string>();
  const absl::string_view shown = Utf8Prefix(absl::StripAsciiWhitespace(text), kMaxAnswerBytes);
  return absl::StrReplaceAll(shown, {{"\n", "\n            "}});
}

std::string Samples(const nlohmann::json& json) {
  std::string text;
  const auto samples = json.find("samples");
  if (samples == json.end() || !samples->is_array()) return text;
  std::size_t shown = 0;
  for (const nlohmann::json& sample : *samples) {
    if (!sample.is_object() || shown++ == kMaxSamples) break;
    absl::StrAppend(&text, "\nprompt      ", TextOf(sample, "prompt"), "\nbase        ",
                    TextOf(sample, "base"), "\nderivative  ", TextOf(sample, "derivative"), "\n");
  }
  return text;
}

}  // namespace

std::string FormatRunReport(const v1::Derivative& derivative, absl::string_view offshoot_json,
                            const std::string& directory) {
  std::string text = "\n";
  if (derivative.has_base_eval_loss() && derivative.has_eval_loss()) {
    text += LossTable(derivative.base_eval_loss(), derivative.eval_loss());
  } else if (derivative.has_eval_loss()) {
    absl::StrAppend(&text, "held-out loss  ", FormatLoss(derivative.eval_loss()), "\n");
  } else {
    text += "nothing was held out (val_set_size), so there is no loss to compare\n";
  }
  const nlohmann::json json =
      nlohmann::json::parse(offshoot_json.begin(), offshoot_json.end(), nullptr, false);
  if (json.is_object()) text += Samples(json);
  absl::StrAppend(&text, "\nThe derivative ", derivative.derivative_id(), " (",
                  FormatBytes(derivative.size_bytes()), ") lies in ", directory, "\n");
  return text;
}

}  // namespace offshoot::cli
