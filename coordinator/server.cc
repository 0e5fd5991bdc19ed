#include "coordinator/server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/ids.h"
#include "common/status_macros.h"
#include "coordinator/http_server.h"
#include "coordinator/hub/hub_pages.h"
#include "coordinator/hub/hub_writes.h"
#include "coordinator/hub/pusher.h"
#include "coordinator/monitoring.h"
#include "coordinator/net_address.h"
#include "coordinator/service/cluster_service.h"
#include "coordinator/service/jobs_service.h"
#include "coordinator/service/models_service.h"
#include "coordinator/store_sqlite.h"
#include "grpc/health/v1/health.pb.h"

namespace offshoot {
namespace {

constexpr int kMaxReceivedBytes = 4 << 20;
constexpr int kMaxSentBytes = 64 << 20;  // a page of 1,000 jobs
constexpr std::chrono::milliseconds kShutdownGrace{300};
// A hub that is slow to answer must not keep the digests of other jobs' files waiting.
constexpr int kResolveThreads = 4;
constexpr absl::Duration kSweepEvery = absl::Hours(1);

// gRPC speaks to stderr by itself; what it says is for developers.
void LogOfGrpc(gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); }

absl::Status CheckListen(const ServerOptions& options, const NetAddress& address) {
  const bool tls = !options.tls_certificate.empty();
  if (!tls && (!options.users_file.empty() || !options.tls_client_ca.empty())) {
    return absl::InvalidArgumentError(
        "users_file and tls_client_ca need TLS, or tokens would travel in the clear; give"
        " tls_certificate and tls_key");
  }
  if (!options.tls_client_ca_key.empty() &&
      (options.tls_client_ca.empty() || options.users_file.empty())) {
    return absl::InvalidArgumentError(
        "tls_client_ca_key needs tls_client_ca and users_file, with an administrator who makes the"
        " tokens that workers join with");
  }
  if (!IsLoopback(address) && !options.insecure && (!tls || options.users_file.empty())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "refusing to listen on ", options.listen, tls ? " without users" : " without TLS",
        ": anybody on the network could run jobs; listen on 127.0.0.1, give ",
        tls ? "users_file" : "tls_certificate, tls_key and users_file",
        ", or say --insecure if the network is trusted"));
  }
  return CheckCanListen(address);
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const ServerOptions& options) {
  if (options.tls_certificate.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions ssl(options.tls_client_ca.empty()
                                            ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                            : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  ASSIGN_OR_RETURN(pair.private_key, ReadFile(options.tls_key));
  ASSIGN_OR_RETURN(pair.cert_chain, ReadFile(options.tls_certificate));
  ssl.pem_key_cert_pairs.push_back(std::move(pair));
  if (!options.tls_client_ca.empty()) {
    ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadFile(options.tls_client_ca));
  }
  return grpc::SslServerCredentials(ssl);
}

}  // namespace

class CoordinatorServer::Impl {
 public:
  Impl(const ServerOptions& options, const Clock& clock) : options_(options), clock_(clock) {}

  absl::Status Start() {
    if (options_.state_dir.empty()) {
      return absl::InvalidArgumentError("say where state belongs with --state-dir DIR");
    }
    ASSIGN_OR_RETURN(NetAddress address, ParseNetAddress(options_.listen));
    RETURN_IF_ERROR(CheckListen(options_, address));
    RETURN_IF_ERROR(MakeDirectories(options_.state_dir));
    std::error_code ignored;
    state_dir_ = std::filesystem::absolute(options_.state_dir, ignored).lexically_normal().string();
    absl::StatusOr<FileLock> lock = FileLock::Acquire(JoinPath(state_dir_, "lock"));
    if (absl::IsFailedPrecondition(lock.status())) {
      return absl::FailedPreconditionError(
          absl::StrCat("another coordinator runs with the state directory ", state_dir_,
                       "; stop it, or choose another --state-dir"));
    }
    RETURN_IF_ERROR(lock.status());
    lock_.emplace(*std::move(lock));
    RETURN_IF_ERROR(OpenState());
    RETURN_IF_ERROR(Listen(address));
    loop_ = std::thread([this] { RunLoop(); });
    housekeeping_ = std::thread([this] { KeepHouse(); });
    return absl::OkStatus();
  }

  ~Impl() {
    if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
      server_->Wait();
    }
    http_.reset();  // a commit that is under way needs the loop
    {
      absl::MutexLock lock(&stop_mutex_);
      stopping_ = true;
    }
    if (controller_ != nullptr) controller_->Wake();
    if (loop_.joinable()) loop_.join();
    if (housekeeping_.joinable()) housekeeping_.join();
    pusher_.reset();
    pool_.reset();  // its tasks use all that follows
  }

  const std::string& address() const { return address_; }
  int http_port() const { return http_ == nullptr ? 0 : http_->port(); }
  void Wake() { controller_->Wake(); }

 private:
  absl::Status OpenState() {
    ASSIGN_OR_RETURN(store_, SqliteStore::Open(JoinPath(state_dir_, "coordinator.sqlite3")));
    ASSIGN_OR_RETURN(artifacts_, ArtifactDirectory::Open(JoinPath(state_dir_, "artifacts")));
    outputs_.emplace(JoinPath(state_dir_, "outputs"), options_.outputs);
    std::vector<std::string> roots = options_.allowed_roots;
    roots.push_back(state_dir_);
    if (options_.hub) hub_models_.emplace(*options_.hub);
    resolver_.emplace(*store_, *artifacts_, std::move(roots), options_.hub_cache,
                      hub_models_ ? &*hub_models_ : nullptr);
    catalog_.emplace(*store_, *artifacts_, *resolver_);
    RETURN_IF_ERROR(StartPusher());
    pool_ = std::make_unique<ThreadPool>(static_cast<int>(options_.io_threads));
    resolve_pool_ = std::make_unique<ThreadPool>(kResolveThreads);
    ControllerOptions controller = options_.controller;
    controller.version = OFFSHOOT_VERSION;
    controller.coordinator_id = MakeRandomId("crd-");
    controller_ = std::make_unique<Controller>(
        controller, *store_, clock_, *artifacts_, *outputs_, signals_,
        [this](std::shared_ptr<const JobSpec> spec,
               std::function<void(absl::StatusOr<ResolvedInputs>)> done) {
          resolve_pool_->Post([this, spec = std::move(spec), done = std::move(done)] {
            done(resolver_->Resolve(*spec));
          });
        });
    RETURN_IF_ERROR(controller_->Load());
    context_.reset(new ServiceContext{*controller_,
                                      *store_,
                                      *artifacts_,
                                      *outputs_,
                                      signals_,
                                      *resolver_,
                                      *pool_,
                                      clock_,
                                      {},
                                      &*pusher_});
    if (!options_.users_file.empty()) {
      ASSIGN_OR_RETURN(const std::string users, ReadFile(options_.users_file));
      ASSIGN_OR_RETURN(identities_, Identities::Parse(users, options_.users_file));
      context_->identities = &identities_;
    }
    if (!options_.tls_client_ca_key.empty()) {
      KeyAndCertificate ca;
      ASSIGN_OR_RETURN(ca.key_pem, ReadFile(options_.tls_client_ca_key));
      ASSIGN_OR_RETURN(ca.certificate_pem, ReadFile(options_.tls_client_ca));
      ASSIGN_OR_RETURN(authority_,
                       WorkerAuthority::Open(JoinPath(state_dir_, "members.json"), std::move(ca),
                                             options_.worker_certificate_lifetime, clock_));
      context_->authority = authority_.get();
    }
    return absl::OkStatus();
  }

  absl::Status Listen(const NetAddress& address) {
    gpr_set_log_function(LogOfGrpc);
    grpc::EnableDefaultHealthCheckService(true);
    // Keeps the descriptor linked in, so that reflection can describe the built-in health service.
    grpc::health::v1::HealthCheckRequest::descriptor();
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    jobs_service_ = std::make_unique<JobsService>(*context_);
    models_service_ = std::make_unique<ModelsService>(*context_);
    cluster_service_ = std::make_unique<ClusterService>(*context_);
    grpc::ServerBuilder builder;
    int port = 0;
    ASSIGN_OR_RETURN(std::shared_ptr<grpc::ServerCredentials> credentials,
                     MakeServerCredentials(options_));
    builder.AddListeningPort(FormatNetAddress(address), credentials, &port);
    builder.SetMaxReceiveMessageSize(kMaxReceivedBytes);
    builder.SetMaxSendMessageSize(kMaxSentBytes);
    // Two coordinators must not share a port.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // Dead connections are noticed; clients may ping as often as workers do.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 2'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.RegisterService(jobs_service_.get());
    builder.RegisterService(models_service_.get());
    builder.RegisterService(cluster_service_.get());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "cannot listen on ", FormatNetAddress(address), "; choose another --listen"));
    }
    address_ = FormatNetAddress(NetAddress{address.host, port});
    if (!options_.http_listen.empty()) RETURN_IF_ERROR(ListenForHttp());
    return absl::OkStatus();
  }

  absl::Status StartPusher() {
    PusherOptions options;
    options.directory = JoinPath(state_dir_, "pushes");
    options.hub = options_.hub.value_or(HubEnvironment{});
    options.allowed_roots = options_.allowed_roots;
    options.hub_namespaces = options_.push_namespaces;
    ASSIGN_OR_RETURN(const NetAddress address, ParseNetAddress(options_.listen));
    if (options.hub_namespaces.empty() && IsLoopback(address)) options.hub_namespaces = {"*"};
    pusher_.emplace(*store_, *catalog_, std::move(options));
    resolver_->set_check([this](const JobSpec& spec) { return pusher_->Check(spec); });
    return absl::OkStatus();
  }

  absl::Status ListenForHttp() {
    ASSIGN_OR_RETURN(NetAddress where, ParseNetAddress(options_.http_listen));
    HttpServerOptions http;
    if (!options_.tls_certificate.empty()) {
      ASSIGN_OR_RETURN(http.tls_certificate_pem, ReadFile(options_.tls_certificate));
      ASSIGN_OR_RETURN(http.tls_key_pem, ReadFile(options_.tls_key));
    }
    const bool is_protected = !http.tls_key_pem.empty() && context_->identities != nullptr;
    if (!IsLoopback(where) && !options_.insecure && !is_protected) {
      return absl::FailedPreconditionError(absl::StrCat(
          "refusing to show metrics and models on ", options_.http_listen,
          " without TLS and users; use 127.0.0.1, give tls_certificate, tls_key and users_file, or"
          " say --insecure"));
    }
    hub_pages_.emplace(*catalog_, HubAuthorisation());
    HubWrites::Options writes;
    writes.tls = !http.tls_key_pem.empty();
    hub_writes_.emplace(
        *catalog_, *artifacts_,
        [this](BaseModelRecord model, std::function<void(const absl::Status&)> done) {
          controller_->RegisterBaseModel(std::move(model), {}, std::move(done));
        },
        HubAuthorisation(), writes);
    ASSIGN_OR_RETURN(
        http_,
        HttpServer::Start(
            options_.http_listen, [this](const WebRequest& request) { return AnswerHttp(request); },
            http, [this](const WebRequest& request) { return hub_writes_->Receive(request); }));
    return absl::OkStatus();
  }

  // Who may fetch models where identity is on: users, each with the token that the RPCs take.
  HubPages::Authorise HubAuthorisation() const {
    if (context_->identities == nullptr) return nullptr;
    return [this](const std::string& authorization) -> absl::StatusOr<std::string> {
      ASSIGN_OR_RETURN(const Caller caller,
                       context_->identities->Require(authorization, false, Right::kUse));
      return caller.confined() ? caller.team : std::string();
    };
  }

  WebReply AnswerHttp(const WebRequest& request) {
    WebReply reply;
    if (request.path == "/metrics") {
      reply.headers = {{"Content-Type", kMetricsContentType}};
      reply.body = RenderMetrics(controller_->counters(), context_->counters);
    } else if (request.path == "/healthz") {
      reply.headers = {{"Content-Type", "text/plain"}};
      reply.body = "ok\n";
    } else if (!hub_pages_->Answer(request, &reply)) {
      reply.status = 404;
      reply.headers = {{"Content-Type", "text/plain"}};
      reply.body = "nothing is here; /metrics, /healthz and /api/models/NAME are\n";
    }
    return reply;
  }

  bool Stopping() const {
    absl::MutexLock lock(&stop_mutex_);
    return stopping_;
  }

  void RunLoop() {
    while (!Stopping()) {
      while (controller_->RunOnce()) {
      }
      if (!Stopping()) controller_->WaitForWork();
    }
    controller_->RunOnce();
  }

  void KeepHouse() {
    absl::MutexLock lock(&stop_mutex_);
    while (!stopping_) {
      stop_mutex_.Unlock();
      // File times are the host's: so is the time they are compared with.
      const absl::Time now = absl::Now();
      artifacts_->Sweep(now - options_.controller.artifact_grace,
                        [this](const std::string& digest) {
                          const absl::StatusOr<bool> needed = store_->IsReferenced(digest);
                          return !needed.ok() || *needed;
                        });
      outputs_->Sweep(now - options_.controller.output_retention);
      stop_mutex_.Lock();
      stop_mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kSweepEvery);
    }
  }

  const ServerOptions options_;
  const Clock& clock_;
  std::string state_dir_;
  std::string address_;
  std::optional<FileLock> lock_;
  std::unique_ptr<SqliteStore> store_;
  std::unique_ptr<ArtifactDirectory> artifacts_;
  std::optional<AttemptOutputs> outputs_;
  JobSignals signals_;
  std::optional<HubModels> hub_models_;
  std::optional<InputResolver> resolver_;
  std::unique_ptr<Controller> controller_;
  std::unique_ptr<ThreadPool> resolve_pool_;
  std::unique_ptr<ThreadPool> pool_;
  Identities identities_;
  std::unique_ptr<WorkerAuthority> authority_;
  std::unique_ptr<ServiceContext> context_;
  std::unique_ptr<JobsService> jobs_service_;
  std::unique_ptr<ModelsService> models_service_;
  std::unique_ptr<ClusterService> cluster_service_;
  std::unique_ptr<grpc::Server> server_;
  std::optional<HubCatalog> catalog_;
  std::optional<Pusher> pusher_;
  std::optional<HubPages> hub_pages_;
  std::optional<HubWrites> hub_writes_;
  std::unique_ptr<HttpServer> http_;
  mutable absl::Mutex stop_mutex_;
  bool stopping_ ABSL_GUARDED_BY(stop_mutex_) = false;
  std::thread loop_;
  std::thread housekeeping_;
};

CoordinatorServer::CoordinatorServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorServer::~CoordinatorServer() = default;
const std::string& CoordinatorServer::address() const { return impl_->address(); }
int CoordinatorServer::http_port() const { return impl_->http_port(); }
void CoordinatorServer::Wake() { impl_->Wake(); }

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    const ServerOptions& options, const Clock& clock) {
  auto impl = std::make_unique<Impl>(options, clock);
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<CoordinatorServer>(new CoordinatorServer(std::move(impl)));
}

}  // namespace offshoot
