#include "coordinator/identity.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/digest.h"
#include "common/yaml_tree.h"

namespace offshoot {
namespace {

std::optional<Role> RoleNamed(const std::string& name) {
  if (name == "submit") return Role::kSubmit;
  if (name == "operate") return Role::kOperate;
  if (name == "admin") return Role::kAdmin;
  if (name == "worker") return Role::kWorker;
  return std::nullopt;
}

absl::string_view RoleName(Role role) {
  switch (role) {
    case Role::kSubmit:
      return "submit";
    case Role::kOperate:
      return "operate";
    case Role::kAdmin:
      return "admin";
    case Role::kWorker:
      return "worker";
  }
  return "";
}

bool Allows(Role role, Right right) {
  switch (right) {
    case Right::kUse:
      return role != Role::kWorker;
    case Right::kOperate:
      return role == Role::kOperate || role == Role::kAdmin;
    case Right::kAdminister:
      return role == Role::kAdmin;
    case Right::kServe:
      return role == Role::kWorker;
    case Right::kTransfer:
      return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<Identities> Identities::Parse(absl::string_view yaml, const std::string& file_name) {
  const auto wrong = [&](int line, const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(file_name, ", line ", line, ": ", what));
  };
  const YamlResult tree = ParseYamlTree(yaml);
  if (!tree.faults.empty()) return wrong(tree.faults[0].line, tree.faults[0].message);
  if (tree.root.kind != YamlKind::kMap) {
    return wrong(tree.root.line, "write `name: {team: T, role: R, token: sha256:...}` lines");
  }
  Identities identities;
  identities.asks_ = true;
  for (const YamlEntry& entry : tree.root.entries) {
    if (entry.value.kind != YamlKind::kMap) {
      return wrong(entry.value.line, "write `{team: T, role: R, token: sha256:...}` for a user");
    }
    Caller caller;
    caller.user = entry.key.text;
    caller.asked = true;
    std::optional<Role> role;
    std::string token;
    for (const YamlEntry& field : entry.value.entries) {
      const std::string& key = field.key.text;
      const std::string& value = field.value.text;
      if (key == "team") {
        caller.team = value;
      } else if (key == "role") {
        role = RoleNamed(value);
        if (!role) return wrong(field.value.line, "role is one of submit, operate, admin, worker");
      } else if (key == "token") {
        token = value;
      } else {
        return wrong(field.key.line, absl::StrCat(DescribeYaml(field.key),
                                                  " is not a key of a user; there are team, role"
                                                  " and token"));
      }
    }
    if (!role) return wrong(entry.value.line, "a user needs a role");
    caller.role = *role;
    if (!IsDigest(token)) {
      return wrong(entry.value.line, "token is sha256:<64 hex digits>, the digest of the token");
    }
    if (caller.team.empty() && caller.role != Role::kWorker) {
      return wrong(entry.value.line, "a user needs a team");
    }
    if (!identities.by_token_.emplace(token, std::move(caller)).second) {
      return wrong(entry.value.line, "another user has the same token");
    }
  }
  return identities;
}

absl::StatusOr<Caller> Identities::Require(const grpc::CallbackServerContext& call,
                                           Right right) const {
  if (!asks_) return Caller();
  const auto& metadata = call.client_metadata();
  const auto header = metadata.find("authorization");
  const absl::string_view authorization =
      header == metadata.end() ? absl::string_view()
                               : absl::string_view(header->second.data(), header->second.size());
  const std::shared_ptr<const grpc::AuthContext> peer = call.auth_context();
  const bool has_certificate = peer != nullptr && peer->IsPeerAuthenticated();
  std::string name;
  if (has_certificate) {
    const std::vector<grpc::string_ref> names =
        peer->FindPropertyValues(GRPC_X509_CN_PROPERTY_NAME);
    if (names.size() == 1) name.assign(names[0].data(), names[0].size());
  }
  return Require(authorization, has_certificate, right, name);
}

absl::StatusOr<Caller> Identities::Require(absl::string_view authorization, bool has_certificate,
                                           Right right, absl::string_view certificate_name) const {
  if (!asks_) return Caller();
  Caller caller;
  if (absl::ConsumePrefix(&authorization, "Bearer ")) {
    const auto known = by_token_.find(DigestOf(authorization));
    if (known == by_token_.end()) {
      return absl::UnauthenticatedError(
          "the token is not known here; ask an administrator for one");
    }
    caller = known->second;
  } else if (has_certificate) {
    caller.user = "a worker";
    if (absl::StartsWith(certificate_name, "wrk-")) {
      caller.user = caller.worker_id = std::string(certificate_name);
    }
    caller.role = Role::kWorker;
    caller.asked = true;
  } else {
    return absl::UnauthenticatedError(
        "the coordinator asks who you are: give your token in OFFSHOOT_TOKEN");
  }
  if (!Allows(caller.role, right)) {
    return absl::PermissionDeniedError(
        absl::StrCat(caller.user, " has the role ", RoleName(caller.role),
                     ", which may not do this; ask an administrator for another role"));
  }
  return caller;
}

absl::Status CheckTeam(const Caller& caller, const std::string& team, absl::string_view what) {
  if (!caller.confined() || caller.team == team) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat(what, " belongs to another team than ", caller.user, "'s, ", caller.team));
}

}  // namespace offshoot
