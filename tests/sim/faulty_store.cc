#include "tests/sim/faulty_store.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/store_memory.h"
#include "coordinator/store_sqlite.h"

namespace offshoot::sim {
namespace {

namespace fs = std::filesystem;

absl::Status Killed() { return absl::UnavailableError("the coordinator is killed"); }

std::uintmax_t SizeOf(const std::string& path) {
  std::error_code error;
  const std::uintmax_t size = fs::file_size(path, error);
  return error ? 0 : size;
}

}  // namespace

FaultyStore::FaultyStore(World& world, std::string directory)
    : world_(world), directory_(std::move(directory)) {
  if (directory_.empty()) {
    store_ = std::make_unique<MemoryStore>();
  } else {
    store_ = *SqliteStore::Open(DatabasePath());
  }
}

std::string FaultyStore::DatabasePath() const {
  return absl::StrCat(directory_, "/store.", generation_, ".sqlite3");
}

absl::StatusOr<std::int64_t> FaultyStore::Commit(const StoreWrite& write) {
  const auto killed_before = [this] { return world_.coordinator_life() == 0; };
  if (killed_before()) return Killed();
  if (world_.Chance(3)) return absl::UnavailableError("the disk failed");
  if (world_.Chance(10)) world_.SlowDisk(world_.Delay(10, 8'000));
  const bool kill = world_.Chance(3);
  if (kill && world_.Below(2) == 0) {
    world_.KillCoordinator();
    return directory_.empty() ? Killed() : Tear(write);
  }
  absl::StatusOr<std::int64_t> version = Make(write);
  if (kill) {
    world_.KillCoordinator();
    return Killed();
  }
  // It is there, but nobody was told.
  if (world_.Chance(2)) return absl::UnavailableError("the disk failed after the write");
  return version;
}

absl::StatusOr<std::int64_t> FaultyStore::Make(const StoreWrite& write) {
  world_.audit().Examine(write, world_.now());
  if (!world_.audit().violation().empty()) return absl::InternalError("stopped by the audit");
  absl::StatusOr<std::int64_t> version = store_->Commit(write);
  if (!version.ok()) {
    world_.audit().Fail(
        JobId("*"), absl::StrCat("the store refuses a transaction: ", version.status().ToString()));
  }
  return version;
}

// Of the transaction's bytes only some reach the disk: all of it must be there afterwards, or none.
absl::StatusOr<std::int64_t> FaultyStore::Tear(const StoreWrite& write) {
  const std::string log = absl::StrCat(DatabasePath(), "-wal");
  const std::uintmax_t before = SizeOf(log);
  const absl::StatusOr<std::int64_t> version = store_->Commit(write);
  if (!version.ok()) {
    world_.audit().Fail(
        JobId("*"), absl::StrCat("the store refuses a transaction: ", version.status().ToString()));
    return version;
  }
  const std::uintmax_t after = SizeOf(log);
  const auto room = static_cast<int>(after > before ? after - before : 0);
  OpenCopy(before + static_cast<std::uintmax_t>(world_.Below(room + 1)));
  const absl::StatusOr<LoadedState> left = store_->Load();
  if (!left.ok()) {
    world_.audit().Fail(JobId("*"),
                        absl::StrCat("a torn store cannot be read: ", left.status().ToString()));
  } else if (left->version == *version) {
    world_.audit().Examine(write, world_.now());
  } else {
    world_.CountTornCommit();
  }
  return Killed();
}

void FaultyStore::Reopen() {
  if (!directory_.empty()) OpenCopy(std::numeric_limits<std::uintmax_t>::max());
}

// Closing tidies up; what a kill leaves is a copy of the files as they are now.
void FaultyStore::OpenCopy(std::uintmax_t log_bytes) {
  const std::string from = DatabasePath();
  ++generation_;
  const std::string to = DatabasePath();
  std::error_code error;
  fs::copy_file(from, to, error);
  if (fs::exists(from + "-wal") && !error) {
    fs::copy_file(from + "-wal", to + "-wal", error);
    fs::resize_file(to + "-wal", std::min(log_bytes, SizeOf(from + "-wal")), error);
  }
  auto store = SqliteStore::Open(to);
  if (error || !store.ok()) {
    world_.audit().Fail(JobId("*"), absl::StrCat("the store cannot be opened again: ",
                                                 error.message(), store.status().ToString()));
    return;
  }
  store_ = *std::move(store);
  for (const char* suffix : {"", "-wal", "-shm"}) fs::remove(from + suffix, error);
}

absl::StatusOr<LoadedState> FaultyStore::Load() {
  if (world_.Chance(20)) return absl::UnavailableError("the disk failed");
  world_.NoteLoad();
  absl::StatusOr<LoadedState> state = store_->Load();
  if (state.ok()) {
    world_.audit().ExamineLoad(*state);
  } else {
    world_.audit().Fail(JobId("*"),
                        absl::StrCat("the store cannot be read: ", state.status().ToString()));
  }
  return state;
}

}  // namespace offshoot::sim
