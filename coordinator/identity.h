// Who calls and what they may do. Users have bearer tokens, known by their digests; workers have
// such tokens too, or certificates of our CA. Without a users file nobody is asked and everybody
// may do everything (a coordinator for one person, on loopback). Thread-safe after Read.
//
// The users file (YAML) has one entry a user:
//   alice: {team: vision, role: submit, token: "sha256:<64 hex digits>"}
// token is the SHA-256 of the token's text. Roles: submit (own team's jobs), operate and admin
// (every team's jobs, workers, models), worker (what offshoot-worker calls, nothing else).
#pragma once

#include <grpcpp/server_context.h>

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot {

enum class Role { kSubmit, kOperate, kAdmin, kWorker };

struct Caller {
  std::string user;
  std::string team;
  Role role = Role::kAdmin;
  bool asked = false;     // false: nobody was asked who it is
  std::string worker_id;  // whom a certificate of ours binds it to; empty: nobody in particular

  // Only what belongs to the caller's team.
  bool confined() const { return asked && role == Role::kSubmit; }
};

// What a call needs.
enum class Right {
  kUse,         // users
  kOperate,     // users who look after the cluster
  kAdminister,  // users who let workers in
  kServe,       // workers
  kTransfer,    // artifacts: users and workers
};

class Identities {
 public:
  Identities() = default;
  // INVALID_ARGUMENT naming the line and the remedy.
  static absl::StatusOr<Identities> Parse(absl::string_view yaml, const std::string& file_name);

  // UNAUTHENTICATED: no token that is known. PERMISSION_DENIED: the role may not do this.
  absl::StatusOr<Caller> Require(const grpc::CallbackServerContext& call, Right right) const;
  // The same from what the call carries: the authorization header, whether it has a certificate of
  // our CA, and whose ("wrk-..." is a worker's id; other names say nothing).
  absl::StatusOr<Caller> Require(absl::string_view authorization, bool has_certificate, Right right,
                                 absl::string_view certificate_name = "") const;

 private:
  bool asks_ = false;
  std::map<std::string, Caller> by_token_;  // by the token's digest
};

// PERMISSION_DENIED when a job or derivative of another team is asked for.
absl::Status CheckTeam(const Caller& caller, const std::string& team, absl::string_view what);

}  // namespace offshoot
