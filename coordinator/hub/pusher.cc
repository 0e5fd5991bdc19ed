#include "coordinator/hub/pusher.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "hub/push.h"

namespace offshoot {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

constexpr int kPushPage = 200;
constexpr absl::Duration kLongestWait = absl::Minutes(10);

OrderedJson ToJson(const std::vector<PushOutcome>& outcomes) {
  OrderedJson list = OrderedJson::array();
  for (const PushOutcome& outcome : outcomes) {
    list.push_back({{"target", outcome.target},
                    {"state", outcome.state},
                    {"message", outcome.message},
                    {"commit", outcome.commit},
                    {"tries", outcome.tries},
                    {"private", outcome.make_private}});
  }
  return list;
}

std::vector<PushOutcome> ReadOutcomes(const std::string& path) {
  std::vector<PushOutcome> outcomes;
  const absl::StatusOr<std::string> text = ReadFile(path);
  const OrderedJson list = text.ok() ? OrderedJson::parse(*text, nullptr, false) : OrderedJson();
  if (!list.is_array()) return outcomes;
  for (const OrderedJson& from : list) {
    if (!from.is_object()) continue;
    PushOutcome outcome;
    outcome.target = from.value("target", "");
    outcome.state = from.value("state", "pending");
    outcome.message = from.value("message", "");
    outcome.commit = from.value("commit", "");
    outcome.tries = from.value("tries", 0);
    outcome.make_private = from.value("private", true);
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

absl::Status WriteOutcomes(const std::string& path, const std::vector<PushOutcome>& outcomes) {
  return WriteFileAtomically(
      path, ToJson(outcomes).dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
}

bool IsDirectoryTarget(const std::string& target) { return absl::StartsWith(target, "/"); }

}  // namespace

absl::Status CopyDerivative(const std::vector<FileEntry>& files,
                            const std::function<std::string(const FileEntry&)>& path_of,
                            const std::string& directory, const std::function<bool()>& cancelled) {
  std::error_code error;
  const fs::path target = fs::path(directory).lexically_normal();
  if (fs::exists(target, error) && !fs::is_empty(target, error) &&
      !PathExists(JoinPath(directory, "offshoot.json"))) {
    return absl::FailedPreconditionError(absl::StrCat(
        directory, " holds other files than a derivative; name another directory to push to"));
  }
  const std::string temporary =
      (target.parent_path() / absl::StrCat(".", target.filename().string(), ".offshoot-push"))
          .string();
  RETURN_IF_ERROR(MakeDirectories(temporary));
  for (const FileEntry& file : files) {
    if (cancelled()) return absl::CancelledError("given up; it goes on later");
    const std::string to = JoinPath(temporary, file.path);
    const absl::StatusOr<std::string> there = DigestOfFile(to);
    if (there.ok() && *there == file.digest) continue;
    const std::string from = path_of(file);
    if (from.empty()) {
      return absl::NotFoundError(absl::StrCat("the bytes of ", file.path, " are gone"));
    }
    RETURN_IF_ERROR(MakeDirectories(fs::path(to).parent_path().string()));
    fs::copy_file(from, to, fs::copy_options::overwrite_existing, error);
    if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot write ", to));
    ASSIGN_OR_RETURN(const std::string digest, DigestOfFile(to));
    if (digest != file.digest) {
      return absl::DataLossError(absl::StrCat(to, " was written with other bytes: a disk fails"));
    }
    RETURN_IF_ERROR(SyncFile(to));
  }
  RETURN_IF_ERROR(SyncDirectory(temporary));
  const std::string old = temporary + ".old";
  RETURN_IF_ERROR(RemoveTree(old));
  if (PathExists(directory) && rename(target.c_str(), old.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot replace ", directory));
  }
  if (rename(temporary.c_str(), target.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot make ", directory));
  }
  return RemoveTree(old);
}

Pusher::Pusher(Store& store, const HubCatalog& catalog, PusherOptions options)
    : store_(store), catalog_(catalog), options_(std::move(options)) {
  if (!MakeDirectories(options_.directory).ok()) {
    spdlog::error("cannot make {}: nothing will be pushed", options_.directory);
    return;
  }
  if (const auto text = ReadFile(JoinPath(options_.directory, "cursor")); text.ok()) {
    cursor_ = DerivativeId(std::string(absl::StripAsciiWhitespace(*text)));
  }
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.directory, error)) {
    if (entry.path().extension() != ".json") continue;
    const std::vector<PushOutcome> outcomes = ReadOutcomes(entry.path().string());
    if (std::any_of(outcomes.begin(), outcomes.end(),
                    [](const PushOutcome& outcome) { return outcome.state == "pending"; })) {
      pending_[entry.path().string()] = absl::InfinitePast();
    }
  }
  thread_ = std::thread([this] { Run(); });
}

Pusher::~Pusher() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

bool Pusher::Stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

absl::Status Pusher::Check(const JobSpec& spec) const {
  for (const std::string& target : spec.publish.push_to) {
    if (IsDirectoryTarget(target)) {
      const bool inside =
          std::any_of(options_.allowed_roots.begin(), options_.allowed_roots.end(),
                      [&](const std::string& root) { return PathIsInside(target, root); });
      // What is the coordinator's own must stay so.
      const std::string state = fs::path(options_.directory).parent_path().string();
      if (!inside || PathIsInside(target, state) || PathIsInside(state, target)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "publish.push_to: ", target, " is not under a folder that this coordinator may write (",
            options_.allowed_roots.empty() ? "none is"
                                           : absl::StrJoin(options_.allowed_roots, ", "),
            "); start the coordinator with --allowed-root"));
      }
      continue;
    }
    HubReference reference;
    if (!ParseHubReference(target, &reference) || absl::StrContains(target, '@')) {
      return absl::InvalidArgumentError(
          absl::StrCat("publish.push_to: '", target, "' is no org/name of a hub"));
    }
    const std::string space = target.substr(0, target.find('/'));
    const std::vector<std::string>& allowed = options_.hub_namespaces;
    if (std::count(allowed.begin(), allowed.end(), "*") == 0 &&
        std::count(allowed.begin(), allowed.end(), space) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("publish.push_to: this coordinator's HF_TOKEN is not for ", space,
                       "; have push_namespaces of the coordinator name it"));
    }
  }
  return absl::OkStatus();
}

std::vector<PushOutcome> Pusher::Outcomes(const DerivativeId& derivative_id) const {
  if (!IsSafeRelativePath(derivative_id.value()) || absl::StrContains(derivative_id.value(), '/')) {
    return {};
  }
  return ReadOutcomes(JoinPath(options_.directory, derivative_id.value() + ".json"));
}

void Pusher::Run() {
  while (!Stopping()) {
    if (const absl::Status status = NoteNewOnes(); !status.ok()) {
      spdlog::warn("cannot look for derivatives to push: {}", status.ToString());
    }
    PushPending();
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&stopping_), options_.poll);
  }
}

absl::Status Pusher::NoteNewOnes() {
  std::vector<DerivativeRecord> fresh;
  DerivativeFilter filter;
  filter.limit = kPushPage;
  for (bool more = true; more;) {
    ASSIGN_OR_RETURN(std::vector<DerivativeRecord> page, store_.ListDerivatives(filter));
    more = static_cast<int>(page.size()) == kPushPage;
    for (DerivativeRecord& derivative : page) {
      if (derivative.derivative_id == cursor_) {
        more = false;
        break;
      }
      fresh.push_back(std::move(derivative));
    }
    if (more) filter.before = fresh.back().derivative_id;
  }
  for (auto derivative = fresh.rbegin(); derivative != fresh.rend(); ++derivative) {
    const absl::StatusOr<JobRecord> job = store_.GetJob(derivative->job_id);
    const absl::StatusOr<JobSpec> spec =
        job.ok() ? ParseJobSpec(job->definition->spec_yaml) : absl::StatusOr<JobSpec>(job.status());
    if (spec.ok() && !spec->publish.push_to.empty()) {
      std::vector<PushOutcome> outcomes;
      for (const std::string& target : spec->publish.push_to) {
        PushOutcome outcome;
        outcome.target = target;
        outcome.make_private = spec->publish.push_private;
        outcomes.push_back(std::move(outcome));
      }
      const std::string path =
          JoinPath(options_.directory, derivative->derivative_id.value() + ".json");
      if (!PathExists(path)) RETURN_IF_ERROR(WriteOutcomes(path, outcomes));
      pending_[path] = absl::InfinitePast();
    }
  }
  if (fresh.empty()) return absl::OkStatus();
  cursor_ = fresh.front().derivative_id;
  return WriteFileAtomically(JoinPath(options_.directory, "cursor"), cursor_.value() + "\n");
}

void Pusher::PushPending() {
  std::vector<std::string> due;
  for (const auto& [path, next] : pending_) {
    if (next <= absl::Now()) due.push_back(path);
  }
  for (const std::string& path : due) {
    if (Stopping()) return;
    if (PushOne(path)) {
      pending_.erase(path);
      continue;
    }
    int tries = 0;
    for (const PushOutcome& outcome : ReadOutcomes(path)) {
      if (outcome.state == "pending") tries = std::max(tries, outcome.tries);
    }
    pending_[path] =
        absl::Now() + std::min(kLongestWait, options_.first_wait * (1 << std::min(tries, 10)));
  }
}

bool Pusher::PushOne(const std::string& path) {
  std::vector<PushOutcome> outcomes = ReadOutcomes(path);
  const std::string id = fs::path(path).stem().string();
  const absl::StatusOr<DerivativeRecord> derivative = store_.GetDerivative(DerivativeId(id));
  bool settled = true;
  for (PushOutcome& outcome : outcomes) {
    if (outcome.state != "pending") continue;
    const absl::Status status =
        derivative.ok() ? PushTo(*derivative, &outcome) : derivative.status();
    if (absl::IsCancelled(status)) return false;  // the coordinator stops
    ++outcome.tries;
    outcome.message = std::string(status.message());
    const bool passing = absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
    if (status.ok()) {
      outcome.state = "done";
      spdlog::info("{} was pushed to {}", id, outcome.target);
    } else if (!passing || outcome.tries >= options_.tries) {
      outcome.state = "failed";
      spdlog::warn("{} was not pushed to {}: {}", id, outcome.target, outcome.message);
    } else {
      settled = false;
    }
    if (const absl::Status written = WriteOutcomes(path, outcomes); !written.ok()) {
      spdlog::error("{}", written.ToString());
      return false;
    }
  }
  return settled;
}

absl::Status Pusher::PushTo(const DerivativeRecord& derivative, PushOutcome* outcome) const {
  const auto cancelled = [this] { return Stopping(); };
  const auto path_of = [this](const FileEntry& file) { return catalog_.PathOf(file); };
  if (IsDirectoryTarget(outcome->target)) {
    return CopyDerivative(derivative.files, path_of, outcome->target, cancelled);
  }
  HubPushRequest request;
  request.repository = outcome->target;
  request.make_private = outcome->make_private;
  request.summary = absl::StrCat("Derivative ", derivative.derivative_id.value(), " of Offshoot");
  for (const FileEntry& file : derivative.files) {
    HubPushFile push{file.path, path_of(file), file.digest, file.size_bytes};
    if (push.local_path.empty()) {
      return absl::NotFoundError(absl::StrCat("the bytes of ", file.path, " are gone"));
    }
    request.files.push_back(std::move(push));
  }
  ASSIGN_OR_RETURN(outcome->commit, HubPusher(options_.hub, cancelled).Push(request));
  return absl::OkStatus();
}

}  // namespace offshoot
