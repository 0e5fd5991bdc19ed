#include "worker/membership.h"

#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/certificates.h"
#include "common/files.h"
#include "common/grpc_status.h"
#include "common/ids.h"
#include "common/retry.h"
#include "common/status_macros.h"
#include "offshoot/v1/cluster.grpc.pb.h"
#include "worker/session.h"

namespace offshoot::worker {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(30);
constexpr absl::Duration kLookEvery = absl::Milliseconds(100);
constexpr absl::Duration kLongestRenewalWait = absl::Minutes(5);

// Readable by nobody else from its first moment on; replaces nothing.
absl::Status WriteSecretFile(const std::string& path, const std::string& text) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot create ", path));
  const bool whole =
      write(descriptor, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
      fsync(descriptor) == 0;
  const int failed = errno;
  close(descriptor);
  if (whole) return absl::OkStatus();
  unlink(path.c_str());
  return ErrnoStatus(failed, absl::StrCat("cannot write ", path));
}

bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsResourceExhausted(status);
}

}  // namespace

absl::StatusOr<std::string> ReadOrMakeWorkerId(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (text.ok() && !absl::StripAsciiWhitespace(*text).empty()) {
    return std::string(absl::StripAsciiWhitespace(*text));
  }
  const std::string id = MakeRandomId("wrk-");
  RETURN_IF_ERROR(WriteFileAtomically(path, id + "\n"));
  return id;
}

absl::Time RenewalTime(absl::Time issued, absl::Time valid_until) {
  return valid_until - (valid_until - issued) / 3;
}

Membership::Membership(MembershipOptions options)
    : options_(std::move(options)),
      key_file_(JoinPath(options_.directory, "worker.key")),
      certificate_file_(JoinPath(options_.directory, "worker.pem")) {}

Membership::~Membership() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

bool Membership::HasCertificate(const std::string& directory) {
  return PathExists(JoinPath(directory, "worker.pem"));
}

ChannelSecurity Membership::security() const {
  ChannelSecurity security;
  security.ca_file = options_.ca_file;
  security.certificate_file = certificate_file_;
  security.key_file = key_file_;
  return security;
}

absl::StatusOr<std::unique_ptr<Membership>> Membership::Establish(
    MembershipOptions options, const std::function<bool()>& stopped) {
  if (options.ca_file.empty()) {
    return absl::InvalidArgumentError(
        "a worker joins over TLS only; name the coordinator's CA with ca_file");
  }
  RETURN_IF_ERROR(MakeDirectories(options.directory));
  std::unique_ptr<Membership> membership(new Membership(std::move(options)));
  const MembershipOptions& known = membership->options_;
  const absl::StatusOr<std::string> pem = ReadFile(membership->certificate_file_);
  if (pem.ok()) {
    const absl::StatusOr<CertificateFacts> facts = ReadCertificate(*pem);
    if (facts.ok() && facts->common_name == known.worker_id && facts->valid_until > absl::Now()) {
      return membership;
    }
  }
  if (known.join_token.empty() && !pem.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the certificate ", membership->certificate_file_,
                     " is not there; ask an administrator for a join token (offshoot workers "
                     "invite) and give it with"
                     " --join-token-file"));
  }
  if (pem.ok()) {
    const absl::Status back = membership->Join("", stopped);
    if (back.ok()) return membership;
    if (known.join_token.empty() || !absl::IsUnauthenticated(back)) return back;
  }
  RETURN_IF_ERROR(membership->Join(known.join_token, stopped));
  return membership;
}

absl::StatusOr<std::string> Membership::MakeRequest() const {
  if (!PathExists(key_file_)) {
    ASSIGN_OR_RETURN(const std::string made, MakePrivateKey());
    RETURN_IF_ERROR(WriteSecretFile(key_file_, made));
  }
  ASSIGN_OR_RETURN(const std::string key, ReadFile(key_file_));
  return MakeCertificateRequest(key, options_.worker_id);
}

absl::Status Membership::Keep(const std::string& certificate_pem) {
  ASSIGN_OR_RETURN(const std::string key, ReadFile(key_file_));
  RETURN_IF_ERROR(CheckKeyPair({key, certificate_pem}));
  return WriteFileAtomically(certificate_file_, certificate_pem);
}

absl::Status Membership::Join(const std::string& token, const std::function<bool()>& stopped) {
  v1::JoinClusterRequest request;
  request.set_token(token);
  request.set_worker_id(options_.worker_id);
  ASSIGN_OR_RETURN(*request.mutable_certificate_request(), MakeRequest());
  ChannelSecurity security;
  security.ca_file = options_.ca_file;
  ASSIGN_OR_RETURN(const auto credentials, MakeCredentials(security));
  const auto channel = MakeCoordinatorChannel(options_.coordinator, credentials);
  const auto stub = v1::Cluster::NewStub(channel);
  Backoff backoff({absl::Milliseconds(100), absl::Seconds(5), 2.0, 0.5});
  for (bool told = false;; told = true) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
    v1::WorkerCertificate answer;
    const absl::Status status = FromGrpcStatus(stub->JoinCluster(&context, request, &answer));
    if (status.ok()) {
      spdlog::info("joined the cluster as {}", options_.worker_id);
      return Keep(answer.certificate());
    }
    if (!MayPass(status)) return status;
    if (!told) {
      spdlog::warn("cannot join at {} yet, trying again: {}", options_.coordinator,
                   std::string(status.message()));
    }
    const absl::Time until = absl::Now() + backoff.Next();
    while (absl::Now() < until) {
      if (stopped()) return absl::CancelledError("stopped before it joined");
      absl::SleepFor(kLookEvery);
    }
  }
}

absl::Status Membership::Renew(const std::shared_ptr<grpc::Channel>& channel) {
  v1::RenewCertificateRequest request;
  ASSIGN_OR_RETURN(*request.mutable_certificate_request(), MakeRequest());
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
  v1::WorkerCertificate answer;
  RETURN_IF_ERROR(
      FromGrpcStatus(v1::Cluster::NewStub(channel)->RenewCertificate(&context, request, &answer)));
  return Keep(answer.certificate());
}

void Membership::KeepRenewed(std::shared_ptr<grpc::Channel> channel) {
  thread_ = std::thread([this, channel = std::move(channel)] { RenewForEver(channel); });
}

void Membership::RenewForEver(const std::shared_ptr<grpc::Channel>& channel) {
  absl::Time next = absl::InfinitePast();
  bool failing = false;
  while (true) {
    const absl::StatusOr<std::string> pem = ReadFile(certificate_file_);
    const absl::StatusOr<CertificateFacts> facts =
        pem.ok() ? ReadCertificate(*pem) : absl::StatusOr<CertificateFacts>(pem.status());
    absl::Duration lifetime = absl::Minutes(1);
    if (facts.ok()) {
      const absl::Time issued = facts->valid_from + kCertificateBackdate;
      lifetime = facts->valid_until - issued;
      if (!failing) next = RenewalTime(issued, facts->valid_until);
    }
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithDeadline(absl::Condition(&stopping_), next);
      if (stopping_) return;
    }
    const auto stopped = [this] {
      absl::MutexLock lock(&mutex_);
      return stopping_;
    };
    const bool ended = facts.ok() && facts->valid_until <= absl::Now();
    const absl::Status renewed = ended ? Join("", stopped) : Renew(channel);
    if (renewed.ok()) {
      if (failing) spdlog::info("the worker's certificate was renewed");
    } else if (!failing || !MayPass(renewed)) {
      spdlog::warn("the worker's certificate is not renewed yet, trying again: {}",
                   std::string(renewed.message()));
    }
    failing = !renewed.ok();
    next = absl::Now() + std::min(kLongestRenewalWait, lifetime / 20);
  }
}

}  // namespace offshoot::worker
