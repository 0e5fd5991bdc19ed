#include "coordinator/worker_authority.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/random.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

using Json = nlohmann::json;

constexpr absl::string_view kTokenPrefix = "join-";
constexpr absl::string_view kWorkerPrefix = "wrk-";
constexpr std::size_t kMaxWorkerIdBytes = 64;
constexpr std::size_t kMaxTokenBytes = 128;
constexpr absl::Duration kUsualValidity = absl::Hours(1);
constexpr absl::Duration kLongestValidity = absl::Hours(24 * 30);
// How long after its certificate's end a worker's key alone lets it back in.
constexpr absl::Duration kReturnWithin = absl::Hours(24 * 30);

absl::Status NotLetIn(absl::string_view why) {
  return absl::UnauthenticatedError(absl::StrCat(
      "the join token ", why, "; ask an administrator for another (offshoot workers invite)"));
}

absl::Status Expelled(const std::string& worker_id) {
  return absl::PermissionDeniedError(
      absl::StrCat(worker_id,
                   " was expelled from the cluster; let it join anew with an empty"
                   " --state-dir and a new token"));
}

std::string NewToken() {
  std::string token(kTokenPrefix);
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&token, "%016x", RandomBits());
  return token;
}

}  // namespace

bool IsBindableWorkerId(const std::string& text) {
  return absl::StartsWith(text, kWorkerPrefix) && text.size() > kWorkerPrefix.size() &&
         text.size() <= kMaxWorkerIdBytes && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-';
         });
}

absl::StatusOr<std::unique_ptr<WorkerAuthority>> WorkerAuthority::Open(
    const std::string& file, KeyAndCertificate authority, absl::Duration certificate_lifetime,
    const Clock& clock) {
  RETURN_IF_ERROR(CheckKeyPair(authority));
  std::unique_ptr<WorkerAuthority> opened(
      new WorkerAuthority(file, std::move(authority), certificate_lifetime, clock));
  RETURN_IF_ERROR(opened->Load());
  return opened;
}

absl::Status WorkerAuthority::Load() {
  if (!PathExists(file_)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(file_));
  absl::MutexLock lock(&mutex_);
  try {
    const Json json = Json::parse(text);
    for (const auto& [digest, ticket] : json.at("tokens").items()) {
      tickets_[digest] = {absl::FromUnixMillis(ticket.at("expires_ms").get<std::int64_t>()),
                          ticket.at("worker_id").get<std::string>(),
                          ticket.at("key").get<std::string>()};
    }
    for (const auto& [worker_id, member] : json.at("workers").items()) {
      members_[worker_id] = {member.at("key").get<std::string>(),
                             absl::FromUnixMillis(member.at("valid_until_ms").get<std::int64_t>()),
                             member.at("expelled").get<bool>()};
    }
  } catch (const Json::exception& error) {
    return absl::DataLossError(absl::StrCat(file_, " is not as it was written (", error.what(),
                                            "); restore it, or remove it and let every worker"
                                            " join anew"));
  }
  return absl::OkStatus();
}

absl::Status WorkerAuthority::Save() const {
  Json tokens = Json::object();
  for (const auto& [digest, ticket] : tickets_) {
    tokens[digest] = {{"expires_ms", absl::ToUnixMillis(ticket.expires)},
                      {"worker_id", ticket.worker_id},
                      {"key", ticket.key_digest}};
  }
  Json workers = Json::object();
  for (const auto& [worker_id, member] : members_) {
    workers[worker_id] = {{"key", member.key_digest},
                          {"valid_until_ms", absl::ToUnixMillis(member.valid_until)},
                          {"expelled", member.expelled}};
  }
  return WriteFileAtomically(file_, Json({{"tokens", tokens}, {"workers", workers}}).dump() + "\n");
}

absl::StatusOr<Invitation> WorkerAuthority::Invite(absl::Duration valid) {
  if (valid == absl::ZeroDuration()) valid = kUsualValidity;
  if (valid < absl::ZeroDuration() || valid > kLongestValidity) {
    return absl::InvalidArgumentError("a join token is valid for at most 30 days");
  }
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_.Now();
  std::erase_if(tickets_, [&](const auto& ticket) { return ticket.second.expires <= now; });
  if (tickets_.size() >= kMaxInvitations) {
    return absl::ResourceExhaustedError(absl::StrCat(
        kMaxInvitations, " join tokens are open; wait until some of them have expired"));
  }
  const Invitation invitation{NewToken(), now + valid};
  const std::string digest = DigestOf(invitation.token);
  tickets_[digest] = {invitation.expires, "", ""};
  if (const absl::Status saved = Save(); !saved.ok()) {
    tickets_.erase(digest);
    return saved;
  }
  return invitation;
}

absl::StatusOr<IssuedCertificate> WorkerAuthority::Join(const std::string& token,
                                                        const std::string& worker_id,
                                                        const std::string& request_pem) {
  if (token.size() > kMaxTokenBytes) return NotLetIn("is not known here");
  if (!IsBindableWorkerId(worker_id)) {
    return absl::InvalidArgumentError(
        "worker_id is wrk- and at most 60 letters, digits and '-'; remove the file worker_id of"
        " the worker's state directory and start it again");
  }
  ASSIGN_OR_RETURN(const std::string key_digest, KeyDigestOfRequest(request_pem));
  absl::MutexLock lock(&mutex_);
  if (token.empty()) return Return(worker_id, request_pem, key_digest);
  const auto ticket = tickets_.find(DigestOf(token));
  if (ticket == tickets_.end()) return NotLetIn("is not known here, or expired long ago");
  if (ticket->second.expires <= clock_.Now()) return NotLetIn("has expired");
  Ticket& used = ticket->second;
  // A worker that did not hear our answer asks again.
  if (!used.worker_id.empty() && (used.worker_id != worker_id || used.key_digest != key_digest)) {
    return NotLetIn("was used by another worker");
  }
  const auto member = members_.find(worker_id);
  if (member != members_.end() && member->second.expelled) return Expelled(worker_id);
  if (member != members_.end() && member->second.key_digest != key_digest) {
    return absl::AlreadyExistsError(
        absl::StrCat(worker_id,
                     " joined with another key; a worker that lost its key joins with an"
                     " empty --state-dir"));
  }
  const Ticket before = used;
  used.worker_id = worker_id;
  used.key_digest = key_digest;
  absl::StatusOr<IssuedCertificate> issued = Issue(worker_id, request_pem, key_digest);
  if (!issued.ok()) used = before;
  return issued;
}

absl::StatusOr<IssuedCertificate> WorkerAuthority::Return(const std::string& worker_id,
                                                          const std::string& request_pem,
                                                          const std::string& key_digest) {
  const auto member = members_.find(worker_id);
  if (member != members_.end() && member->second.expelled) return Expelled(worker_id);
  if (member == members_.end() || member->second.key_digest != key_digest ||
      member->second.valid_until + kReturnWithin <= clock_.Now()) {
    return absl::UnauthenticatedError(absl::StrCat(
        worker_id, " with this key is not a member, or was away for more than 30 days; ask an",
        " administrator for a join token (offshoot workers invite) and give it with",
        " --join-token-file"));
  }
  return Issue(worker_id, request_pem, key_digest);
}

absl::StatusOr<IssuedCertificate> WorkerAuthority::Renew(const std::string& worker_id,
                                                         const std::string& request_pem) {
  ASSIGN_OR_RETURN(const std::string key_digest, KeyDigestOfRequest(request_pem));
  absl::MutexLock lock(&mutex_);
  const auto member = members_.find(worker_id);
  if (member == members_.end()) {
    return absl::PermissionDeniedError(
        absl::StrCat(worker_id, " did not join this cluster by a token; let it join with one"));
  }
  if (member->second.expelled) return Expelled(worker_id);
  return Issue(worker_id, request_pem, key_digest);
}

absl::StatusOr<IssuedCertificate> WorkerAuthority::Issue(const std::string& worker_id,
                                                         const std::string& request_pem,
                                                         const std::string& key_digest) {
  if (members_.size() >= kMaxMembers && members_.count(worker_id) == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat(kMaxMembers, " workers have joined; no more are let in"));
  }
  const absl::Time now = clock_.Now();
  IssuedCertificate issued;
  issued.expires = now + lifetime_;
  ASSIGN_OR_RETURN(issued.certificate_pem,
                   SignWorkerCertificate(authority_, request_pem, worker_id, now, lifetime_));
  const auto found = members_.find(worker_id);
  const bool is_new = found == members_.end();
  const Member before = is_new ? Member() : found->second;
  members_[worker_id] = {key_digest, issued.expires, false};
  if (const absl::Status saved = Save(); !saved.ok()) {
    if (is_new) {
      members_.erase(worker_id);
    } else {
      members_[worker_id] = before;
    }
    return saved;
  }
  return issued;
}

absl::Status WorkerAuthority::Expel(const std::string& worker_id) {
  absl::MutexLock lock(&mutex_);
  const auto member = members_.find(worker_id);
  if (member == members_.end()) {
    return absl::NotFoundError(absl::StrCat(
        "no worker ", worker_id,
        " joined by a token; who has a token of the users file or a certificate made elsewhere is"
        " shut out there"));
  }
  if (member->second.expelled) return absl::OkStatus();
  member->second.expelled = true;
  const absl::Status saved = Save();
  if (!saved.ok()) member->second.expelled = false;
  return saved;
}

absl::Status WorkerAuthority::Check(const std::string& worker_id) const {
  absl::MutexLock lock(&mutex_);
  const auto member = members_.find(worker_id);
  if (member == members_.end()) {
    return absl::UnauthenticatedError(
        absl::StrCat(worker_id, " did not join this cluster by a token; let it join with one"));
  }
  if (member->second.expelled) return Expelled(worker_id);
  if (member->second.valid_until <= clock_.Now()) {
    return absl::UnauthenticatedError(
        absl::StrCat("the certificate of ", worker_id,
                     " has ended; let it join again with a new token (--join-token-file)"));
  }
  return absl::OkStatus();
}

}  // namespace offshoot
