// Reads a config.json so that nothing in it is overlooked: every key is either read by the family,
// known to have no influence on the computation, or refused by name.
//
// One reader per config; not thread-safe. All functions throw Error(kBadModel) naming the key.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace offshoot::trainer {

class ConfigReader {
 public:
  // Keeps a reference: `config` must outlive the reader.
  explicit ConfigReader(const nlohmann::json& config);

  const std::string& model_type() const { return model_type_; }
  // True if the key is there and not null. Marks it as read.
  bool Has(const std::string& key);
  // True if the key is there, even as null.
  bool Contains(const std::string& key) const { return config_.contains(key); }
  const nlohmann::json& At(const std::string& key);  // null if absent

  // A count from 1 up to 2^31. Without a fallback the key must be there.
  std::int64_t Count(const std::string& key);
  std::int64_t Count(const std::string& key, std::int64_t fallback);
  // The same, but 0 is allowed.
  std::int64_t CountOrZero(const std::string& key, std::int64_t fallback);
  std::int64_t Integer(const std::string& key, std::int64_t fallback);
  double Number(const std::string& key, double fallback);
  bool Flag(const std::string& key, bool fallback);
  std::string Text(const std::string& key, const std::string& fallback);
  std::vector<std::string> Texts(const std::string& key);      // empty if absent
  std::vector<std::int64_t> Integers(const std::string& key);  // empty if absent

  // The key may only have this value (or be absent or null): anything else changes the mathematics
  // in a way the decoder does not know.
  void Require(const std::string& key, const nlohmann::json& value);
  // The key is known and has no influence on training.
  void Ignore(const std::vector<std::string>& keys);
  // Refuses every key that is neither read, ignored, generally harmless, nor null, false or empty.
  void Finish() const;

  [[noreturn]] void Refuse(const std::string& key, const std::string& why) const;

 private:
  const nlohmann::json& config_;
  std::string model_type_;
  std::set<std::string> seen_;
};

}  // namespace offshoot::trainer
