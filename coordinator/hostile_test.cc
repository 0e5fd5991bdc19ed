// What a coordinator that asks who its callers are gives to those who may not: over real TLS.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/certificates.h"
#include "common/channel_security.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/temporary_directory.h"
#include "coordinator/server.h"
#include "offshoot/v1/cluster.grpc.pb.h"
#include "offshoot/v1/jobs.grpc.pb.h"

namespace offshoot {
namespace {

using ::testing::HasSubstr;

class HostileTest : public ::testing::Test {
 protected:
  HostileTest() {
    const absl::Time now = absl::Now();
    ca_ = *MakeAuthority("CA", now, absl::Hours(1));
    const KeyAndCertificate server =
        *MakeServerCertificate(ca_, {"127.0.0.1", "localhost"}, now, absl::Hours(1));
    Write("ca.pem", ca_.certificate_pem);
    Write("ca.key", ca_.key_pem);
    Write("server.pem", server.certificate_pem);
    Write("server.key", server.key_pem);
    std::string users;
    for (const auto& [name, role] :
         {std::pair("alice", "submit"), std::pair("olga", "operate"), std::pair("root", "admin")}) {
      absl::StrAppend(&users, name, ": {team: red, role: ", role, ", token: \"", DigestOf(name),
                      "\"}\n");
    }
    Write("users.yaml", users);
    ServerOptions options;
    options.state_dir = directory_.File("state");
    options.listen = "127.0.0.1:0";
    options.tls_certificate = directory_.File("server.pem");
    options.tls_key = directory_.File("server.key");
    options.tls_client_ca = directory_.File("ca.pem");
    options.tls_client_ca_key = directory_.File("ca.key");
    options.users_file = directory_.File("users.yaml");
    auto started = CoordinatorServer::Start(options, clock_);
    EXPECT_TRUE(started.ok()) << started.status();
    coordinator_ = *std::move(started);
  }

  void Write(const std::string& name, const std::string& text) const {
    EXPECT_TRUE(WriteFileAtomically(directory_.File(name), text).ok());
  }

  std::shared_ptr<grpc::Channel> Channel(const std::string& token,
                                         const std::string& certificate = "") const {
    ChannelSecurity security;
    security.ca_file = directory_.File("ca.pem");
    security.token = token;
    if (!certificate.empty()) {
      security.certificate_file = directory_.File(certificate + ".pem");
      security.key_file = directory_.File(certificate + ".key");
    }
    auto credentials = MakeCredentials(security);
    EXPECT_TRUE(credentials.ok()) << credentials.status();
    grpc::ChannelArguments arguments;
    arguments.SetMaxSendMessageSize(-1);
    // Channels of equal arguments share a connection, and so who they are.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(coordinator_->address(), *credentials, arguments);
  }

  static grpc::Status ListJobs(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::ListJobsResponse response;
    return v1::Jobs::NewStub(channel)->ListJobs(&context, {}, &response);
  }

  grpc::Status Invite(const std::string& user, std::string* token) const {
    grpc::ClientContext context;
    v1::InviteWorkerResponse response;
    const grpc::Status status =
        v1::Cluster::NewStub(Channel(user))->InviteWorker(&context, {}, &response);
    *token = response.token();
    return status;
  }

  // A worker that joined; its key and certificate are files of that name.
  grpc::Status Join(const std::string& name, const std::string& token) const {
    const std::string key = *MakePrivateKey();
    grpc::ClientContext context;
    v1::JoinClusterRequest request;
    request.set_token(token);
    request.set_worker_id(name);
    request.set_certificate_request(*MakeCertificateRequest(key, "root"));
    v1::WorkerCertificate response;
    const grpc::Status status =
        v1::Cluster::NewStub(Channel(""))->JoinCluster(&context, request, &response);
    Write(name + ".key", key);
    Write(name + ".pem", response.certificate());
    return status;
  }

  // What a session that registers as this worker is told.
  static grpc::Status Register(const std::shared_ptr<grpc::Channel>& channel,
                               const std::string& worker_id, bool* welcomed) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    const auto stub = v1::Cluster::NewStub(channel);
    const auto stream = stub->Session(&context);
    v1::WorkerMessage message;
    v1::Register* hello = message.mutable_register_();
    hello->set_protocol_version(1);
    hello->set_worker_id(worker_id);
    hello->set_incarnation_id("inc-1");
    hello->set_name("w");
    v1::Device* device = hello->mutable_inventory()->add_devices();
    device->set_device_id("cpu:0");
    device->set_kind("cpu");
    device->set_threads(1);
    device->set_memory_bytes(1 << 30);
    stream->Write(message);
    v1::CoordinatorMessage answer;
    *welcomed = stream->Read(&answer) && answer.has_welcome();
    if (*welcomed) context.TryCancel();
    return stream->Finish();
  }

  TemporaryDirectory directory_;
  RealClock clock_;
  KeyAndCertificate ca_;
  std::unique_ptr<CoordinatorServer> coordinator_;
};

TEST_F(HostileTest, Strangers_AreAskedWhoTheyAre) {
  EXPECT_EQ(ListJobs(Channel("")).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(ListJobs(Channel("mallory")).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(ListJobs(Channel("alice")).ok());
  // Without TLS nobody is listened to at all.
  const auto plain =
      grpc::CreateChannel(coordinator_->address(), grpc::InsecureChannelCredentials());
  EXPECT_FALSE(ListJobs(plain).ok());
}

TEST_F(HostileTest, JoinToken_IsMadeByAdministrators_AndUsedOnce) {
  std::string token;
  EXPECT_EQ(Invite("alice", &token).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(Invite("olga", &token).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(Invite("", &token).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  ASSERT_TRUE(Invite("root", &token).ok());
  EXPECT_EQ(Join("wrk-a", token + "0").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  ASSERT_TRUE(Join("wrk-a", token).ok());
  const grpc::Status again = Join("wrk-b", token);
  EXPECT_EQ(again.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(again.error_message(), HasSubstr("used by another worker"));
}

TEST_F(HostileTest, WorkersCertificate_IsGoodForThatWorkersCallsOnly) {
  std::string token;
  ASSERT_TRUE(Invite("root", &token).ok());
  ASSERT_TRUE(Join("wrk-a", token).ok());
  const auto channel = Channel("", "wrk-a");
  EXPECT_EQ(ListJobs(channel).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  bool welcomed = false;
  const grpc::Status other = Register(channel, "wrk-b", &welcomed);
  EXPECT_FALSE(welcomed);
  EXPECT_EQ(other.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  Register(channel, "wrk-a", &welcomed);
  EXPECT_TRUE(welcomed);

  grpc::ClientContext context;
  v1::ExpelWorkerRequest request;
  request.set_worker_id("wrk-a");
  v1::ExpelWorkerResponse response;
  ASSERT_TRUE(
      v1::Cluster::NewStub(Channel("root"))->ExpelWorker(&context, request, &response).ok());
  EXPECT_EQ(Register(channel, "wrk-a", &welcomed).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_FALSE(welcomed);
}

TEST_F(HostileTest, CertificateOfAnotherCa_IsNoCertificate) {
  const KeyAndCertificate other = *MakeAuthority("CA", absl::Now(), absl::Hours(1));
  const std::string key = *MakePrivateKey();
  Write("forged.key", key);
  Write("forged.pem", *SignWorkerCertificate(other, *MakeCertificateRequest(key, "w"), "wrk-a",
                                             absl::Now(), absl::Hours(1)));
  bool welcomed = false;
  EXPECT_FALSE(Register(Channel("", "forged"), "wrk-a", &welcomed).ok());
  EXPECT_FALSE(welcomed);
  // Nor is the server's own one a worker's.
  EXPECT_FALSE(Register(Channel("", "server"), "wrk-a", &welcomed).ok());
  EXPECT_FALSE(welcomed);
}

TEST_F(HostileTest, OversizedAndMalformedMessages_EndTheirCallOnly) {
  const auto channel = Channel("alice");
  v1::SubmitJobRequest large;
  large.set_spec_yaml(std::string(8 << 20, '#'));
  grpc::ClientContext context;
  v1::SubmitJobResponse response;
  EXPECT_EQ(v1::Jobs::NewStub(channel)->SubmitJob(&context, large, &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);

  grpc::GenericStub generic(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext malformed;
  const grpc::Slice garbage(std::string(1000, '\xff'));
  const grpc::ByteBuffer bytes(&garbage, 1);
  const auto call =
      generic.PrepareUnaryCall(&malformed, "/offshoot.v1.Jobs/SubmitJob", bytes, &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_FALSE(status.ok());
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  EXPECT_TRUE(ListJobs(channel).ok());
}

TEST_F(HostileTest, BytesThatAreNoTls_EndTheirConnectionOnly) {
  const std::string& address = coordinator_->address();
  int port = 0;
  ASSERT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  sockaddr_in where{};
  where.sin_family = AF_INET;
  where.sin_port = htons(static_cast<std::uint16_t>(port));
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        std::string(1 << 16, '\0'), std::string(1 << 16, '\xff'),
        std::string("\x16\x03\x01\xff\xff", 5) + std::string(70'000, 'x')}) {
    const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(connect(descriptor, reinterpret_cast<sockaddr*>(&where), sizeof(where)), 0);
    (void)send(descriptor, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    char answer[512];
    while (recv(descriptor, answer, sizeof(answer), 0) > 0) {  // until it hangs up
    }
    close(descriptor);
    EXPECT_TRUE(ListJobs(Channel("alice")).ok());
  }
}

}  // namespace
}  // namespace offshoot
