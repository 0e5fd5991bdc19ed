#include "worker/run_journal.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/checkpoint_files.h"
#include "worker/descriptor.h"

namespace offshoot::worker {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kEventRecord = 'E';
constexpr char kAckRecord = 'A';
constexpr std::size_t kHeaderBytes = 9;  // type, length, checksum
constexpr std::uint32_t kMaxRecordBytes = 64 << 20;

// FNV-1a: tells a torn record from a whole one; nobody attacks this file.
std::uint32_t Checksum(absl::string_view data) {
  std::uint32_t hash = 2166136261U;
  for (const char c : data) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  return hash;
}

std::string MakeRecord(char type, absl::string_view payload) {
  const std::uint32_t length = static_cast<std::uint32_t>(payload.size());
  const std::uint32_t checksum = Checksum(payload);
  std::string record(kHeaderBytes, '\0');
  record[0] = type;
  std::memcpy(&record[1], &length, sizeof(length));
  std::memcpy(&record[5], &checksum, sizeof(checksum));
  record.append(payload.data(), payload.size());
  return record;
}

absl::Status AppendRecord(const std::string& path, const std::string& record, bool sync) {
  const Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!file.valid()) return ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  // One write: what a crash leaves is a prefix of the record.
  const ssize_t wrote = write(file.get(), record.data(), record.size());
  if (wrote != static_cast<ssize_t>(record.size())) {
    const int error = wrote < 0 ? errno : ENOSPC;
    struct stat info;
    // A torn record would hide those that follow.
    if (wrote > 0 && fstat(file.get(), &info) == 0) {
      [[maybe_unused]] const int cut = ftruncate(file.get(), info.st_size - wrote);
    }
    return ErrnoStatus(error, absl::StrCat("cannot write ", path));
  }
  if (sync && fdatasync(file.get()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot sync ", path));
  }
  return absl::OkStatus();
}

void ReadEvents(const std::string& path, RecoveredAttempt& attempt) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return;
  absl::string_view rest = *text;
  while (rest.size() >= kHeaderBytes) {
    std::uint32_t length = 0;
    std::uint32_t checksum = 0;
    std::memcpy(&length, rest.data() + 1, sizeof(length));
    std::memcpy(&checksum, rest.data() + 5, sizeof(checksum));
    if (length > kMaxRecordBytes || rest.size() - kHeaderBytes < length) break;
    const absl::string_view payload = rest.substr(kHeaderBytes, length);
    if (Checksum(payload) != checksum) break;
    if (rest[0] == kEventRecord) {
      v1::AttemptEvent event;
      if (!event.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) break;
      attempt.events.push_back(std::move(event));
    } else if (rest[0] == kAckRecord) {
      std::int64_t sequence = 0;
      if (!absl::SimpleAtoi(payload, &sequence)) break;
      attempt.acknowledged_sequence = std::max(attempt.acknowledged_sequence, sequence);
    }
    rest.remove_prefix(kHeaderBytes + length);
  }
  // What follows a torn record would never be read: cut it off before more is appended.
  if (!rest.empty()) {
    std::error_code error;
    fs::resize_file(path, text->size() - rest.size(), error);
  }
}

std::vector<ProcessIdentity> ReadProcesses(const std::string& path) {
  std::vector<ProcessIdentity> processes;
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return processes;
  const json list = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) return processes;
  for (const json& item : list) {
    if (!item.is_object() || !item.value("pid", json()).is_number_integer() ||
        !item.value("start_ticks", json()).is_number_unsigned() ||
        !item.value("boot_id", json()).is_string()) {
      continue;
    }
    processes.push_back({item["pid"].get<pid_t>(), item["start_ticks"].get<unsigned long long>(),
                         item["boot_id"].get<std::string>()});
  }
  return processes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunJournal>> RunJournal::Open(const std::string& root) {
  RETURN_IF_ERROR(MakeDirectories(root));
  return std::unique_ptr<RunJournal>(new RunJournal(root));
}

std::string RunJournal::Directory(const AttemptKey& key) const {
  return JoinPath(root_, ToString(key));
}

std::string RunJournal::WorkDirectory(const AttemptKey& key) const {
  return JoinPath(Directory(key), "work");
}

absl::StatusOr<std::vector<RunJournal::Entry>> RunJournal::Load() {
  std::vector<Entry> entries;
  std::error_code error;
  fs::directory_iterator directories(root_, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot list ", root_));
  for (const fs::directory_entry& directory : directories) {
    const std::string path = directory.path().string();
    Entry entry;
    const absl::StatusOr<std::string> assignment = ReadFile(JoinPath(path, "assignment.pb"));
    if (!assignment.ok() || !entry.attempt.assignment.ParseFromString(*assignment) ||
        !IsSafeRelativePath(entry.attempt.assignment.job_id())) {
      RETURN_IF_ERROR(RemoveTree(path));
      continue;
    }
    ReadEvents(JoinPath(path, "events.log"), entry.attempt);
    entry.processes = ReadProcesses(JoinPath(path, "processes.json"));
    entries.push_back(std::move(entry));
  }
  return entries;
}

absl::Status RunJournal::Begin(const AttemptKey& key, const v1::Assignment& assignment) {
  const std::string directory = Directory(key);
  RETURN_IF_ERROR(RemoveTree(directory));
  RETURN_IF_ERROR(MakeDirectories(JoinPath(directory, "work")));
  return WriteFileUnsynced(JoinPath(directory, "assignment.pb"), assignment.SerializeAsString());
}

absl::Status RunJournal::RecordProcesses(const AttemptKey& key,
                                         const std::vector<ProcessIdentity>& processes) {
  json list = json::array();
  for (const ProcessIdentity& process : processes) {
    list.push_back(
        {{"pid", process.pid}, {"start_ticks", process.start_ticks}, {"boot_id", process.boot_id}});
  }
  return WriteFileUnsynced(JoinPath(Directory(key), "processes.json"), list.dump());
}

absl::Status RunJournal::AppendEvent(const AttemptKey& key, const v1::AttemptEvent& event) {
  return AppendRecord(JoinPath(Directory(key), "events.log"),
                      MakeRecord(kEventRecord, event.SerializeAsString()), /*sync=*/true);
}

absl::Status RunJournal::RecordAck(const AttemptKey& key, std::int64_t sequence) {
  // Not synced: an acknowledgement that is forgotten only repeats an event.
  return AppendRecord(JoinPath(Directory(key), "events.log"),
                      MakeRecord(kAckRecord, absl::StrCat(sequence)), /*sync=*/false);
}

absl::Status RunJournal::Remove(const AttemptKey& key) { return RemoveTree(Directory(key)); }

}  // namespace offshoot::worker
