// training_metrics.jsonl: one JSON object a line for each logged step, and one for each evaluation.
// It is carried in checkpoints, so that a resumed run's file is the one an uninterrupted run would
// have written. Not thread-safe; one job owns one log.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace offshoot::trainer {

constexpr char kMetricsFile[] = "training_metrics.jsonl";

class MetricsLog {
 public:
  // Starts with the bytes of restore_from, or empty if that is "". Throws Error naming the path.
  MetricsLog(const std::string& path, const std::string& restore_from);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // One line, in the file before it returns. Throws Error(kDiskFull) naming the path.
  void Append(const nlohmann::json& line);
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
  int descriptor_ = -1;
};

}  // namespace offshoot::trainer
