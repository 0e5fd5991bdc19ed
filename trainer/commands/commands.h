// The trainer's commands (docs/trainer-protocol.md has what each does and its exit codes). Each
// takes the words after its name, returns the exit code, and throws what main turns into one
// sentence: UsageError, Error, LibTorch's exceptions.
#pragma once

#include <string>
#include <vector>

namespace offshoot::trainer {

// Exit codes.
inline constexpr int kExitDone = 0;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitStopped = 3;  // by request, after a checkpoint
inline constexpr int kExitFailed = 4;

int RunTrain(const std::vector<std::string>& words);
int RunPreflight(const std::vector<std::string>& words);
int RunScore(const std::vector<std::string>& words);
int RunVerify(const std::vector<std::string>& words);
int RunLogits(const std::vector<std::string>& words);
int RunGenerate(const std::vector<std::string>& words);
int RunCalibrate(const std::vector<std::string>& words);
int RunMerge(const std::vector<std::string>& words);

}  // namespace offshoot::trainer
