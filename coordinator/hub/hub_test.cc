// The coordinator as a hub: names and revisions, paths, ranges, pushes to directories.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/temporary_directory.h"
#include "coordinator/http_server.h"
#include "coordinator/hub/catalog.h"
#include "coordinator/hub/hub_pages.h"
#include "coordinator/hub/pusher.h"
#include "coordinator/store_memory.h"

namespace offshoot {
namespace {

using ::testing::HasSubstr;

TEST(ParseByteRange, AsTheStandardHasIt) {
  using Kind = ByteRange::Kind;
  const std::vector<std::pair<std::string, ByteRange>> cases = {
      {"", {0, 10, Kind::kWhole}},
      {"bytes=0-3", {0, 4, Kind::kPart}},
      {"bytes=3-", {3, 7, Kind::kPart}},
      {"bytes=-4", {6, 4, Kind::kPart}},
      {"bytes=-40", {0, 10, Kind::kPart}},
      {"bytes=8-99", {8, 2, Kind::kPart}},
      {"bytes=10-", {0, 0, Kind::kUnsatisfiable}},
      {"bytes=-0", {0, 0, Kind::kUnsatisfiable}},
      {"bytes=5-3", {0, 10, Kind::kWhole}},
      {"bytes=0-1,4-5", {0, 10, Kind::kWhole}},
      {"bytes=a-b", {0, 10, Kind::kWhole}},
      {"bytes=+1-2", {0, 10, Kind::kWhole}},
      {"bytes=99999999999999999999-", {0, 10, Kind::kWhole}},
      {"lines=1-2", {0, 10, Kind::kWhole}},
  };
  for (const auto& [header, expected] : cases) {
    EXPECT_EQ(ParseByteRange(header, 10), expected) << header;
  }
  EXPECT_EQ(ParseByteRange("bytes=0-", 0).kind, Kind::kUnsatisfiable);
}

// A connection that was answered and stays open; -1 if it was not.
int ConnectAndAsk(int port) {
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const std::string request = "GET / HTTP/1.1\r\nHost: here\r\n\r\n";
  char answer[64];
  if (connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
      write(connection, request.data(), request.size()) > 0 &&
      read(connection, answer, sizeof(answer)) > 0) {
    return connection;
  }
  close(connection);
  return -1;
}

TEST(HttpServer, OpenConnections_AreDealtOutToAllThreads) {
  absl::Mutex mutex;
  std::map<std::thread::id, int> requests;
  HttpServerOptions options;
  options.threads = 3;
  options.max_connections = 6;
  auto server = HttpServer::Start(
      "127.0.0.1:0",
      [&](const WebRequest&) {
        absl::MutexLock lock(&mutex);
        ++requests[std::this_thread::get_id()];
        return WebReply{200, {}, "hello", "", 0};
      },
      options);
  ASSERT_TRUE(server.ok()) << server.status();
  std::vector<int> connections;
  for (int i = 0; i < 6; ++i) connections.push_back(ConnectAndAsk((*server)->port()));
  EXPECT_THAT(connections, ::testing::Not(::testing::Contains(-1)));
  EXPECT_EQ(requests.size(), 3U);
  for (const auto& [thread, count] : requests) EXPECT_EQ(count, 2);
  // All are full: who comes now waits until one goes.
  std::thread late([&] { connections.push_back(ConnectAndAsk((*server)->port())); });
  absl::SleepFor(absl::Milliseconds(200));
  {
    absl::MutexLock lock(&mutex);
    int all = 0;
    for (const auto& [thread, count] : requests) all += count;
    EXPECT_EQ(all, 6);
  }
  close(connections[0]);
  late.join();
  EXPECT_GE(connections.back(), 0);
  for (std::size_t i = 1; i < connections.size(); ++i) close(connections[i]);
}

// The other end, in this process, of a connection to a port of it; -1: there is none.
int OtherEndOf(int connection) {
  sockaddr_in ours{};
  socklen_t size = sizeof(ours);
  getsockname(connection, reinterpret_cast<sockaddr*>(&ours), &size);
  for (int descriptor = 0; descriptor < 1024; ++descriptor) {
    sockaddr_in theirs{};
    size = sizeof(theirs);
    if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&theirs), &size) == 0 &&
        theirs.sin_family == AF_INET && theirs.sin_port == ours.sin_port) {
      return descriptor;
    }
  }
  return -1;
}

TEST(HttpServer, WhileALargeFileIsSent_NoPacketIsHeldBack) {
  const TemporaryDirectory directory;
  const std::string path = directory.File("large");
  constexpr std::int64_t kBytes = 64 << 20;
  ASSERT_TRUE(WriteFileAtomically(path, "").ok());
  ASSERT_EQ(truncate(path.c_str(), kBytes), 0);
  auto server = HttpServer::Start("127.0.0.1:0", [&](const WebRequest&) {
    return WebReply{200, {}, "", path, kBytes};
  });
  ASSERT_TRUE(server.ok()) << server.status();
  const int connection = ConnectAndAsk((*server)->port());
  ASSERT_GE(connection, 0);
  const int other_end = OtherEndOf(connection);
  ASSERT_GE(other_end, 0);
  // Nothing is read, so the file is still being sent.
  int corked = 1;
  for (const absl::Time end = absl::Now() + absl::Seconds(10); corked != 0 && absl::Now() < end;) {
    absl::SleepFor(absl::Milliseconds(5));
    socklen_t size = sizeof(corked);
    ASSERT_EQ(getsockopt(other_end, IPPROTO_TCP, TCP_CORK, &corked, &size), 0);
  }
  EXPECT_EQ(corked, 0);
  close(connection);
}

TEST(ParseHubPath, EachForm_IsTold) {
  using Kind = HubPath::Kind;
  EXPECT_EQ(ParseHubPath("/api/models/a/b"), (HubPath{Kind::kModel, "a/b", "main", ""}));
  EXPECT_EQ(ParseHubPath("/api/models/b"), (HubPath{Kind::kModel, "b", "main", ""}));
  EXPECT_EQ(ParseHubPath("/api/models/a/b/revision/v1"), (HubPath{Kind::kModel, "a/b", "v1", ""}));
  EXPECT_EQ(ParseHubPath("/api/models/b/tree/v1/x/y"), (HubPath{Kind::kTree, "b", "v1", "x/y"}));
  EXPECT_EQ(ParseHubPath("/a/b/resolve/main/x/y.json"),
            (HubPath{Kind::kFile, "a/b", "main", "x/y.json"}));
  EXPECT_EQ(ParseHubPath("/b/resolve/main/x"), (HubPath{Kind::kFile, "b", "main", "x"}));
  for (const char* other :
       {"", "/", "/metrics", "/api/models/", "/api/models", "/a/b/resolve/main/",
        "/a/b/resolve/main", "/a/b/c/resolve/main/x", "/api/models/a/b/c",
        "/api/models/a/b/revision/v1/more", "//resolve/main/x"}) {
    EXPECT_EQ(ParseHubPath(other).kind, Kind::kNone) << other;
  }
}

class HubPagesTest : public ::testing::Test {
 protected:
  HubPagesTest() {
    artifacts_ = *ArtifactDirectory::Open(directory_.File("artifacts"));
    resolver_.emplace(store_, *artifacts_, std::vector<std::string>{}, "");
    catalog_.emplace(store_, *artifacts_, *resolver_);
  }

  FileEntry Store(const std::string& path, const std::string& data) {
    const std::string digest = DigestOf(data);
    auto upload = artifacts_->BeginUpload(digest, static_cast<std::int64_t>(data.size()), 0);
    if (!(*upload)->already_there()) {
      EXPECT_TRUE((*upload)->Append(data).ok());
      EXPECT_TRUE((*upload)->Finish().ok());
    }
    return {path, digest, static_cast<std::int64_t>(data.size())};
  }

  void Publish(const std::string& id, const std::string& weights) {
    DerivativeRecord derivative;
    derivative.derivative_id = DerivativeId(id);
    derivative.name = "mine";
    derivative.team = "red";
    derivative.files = {Store("adapter_config.json", "{}"),
                        Store("adapter_model.safetensors", weights),
                        Store("merged/config.json", "{\"merged\": 1}")};
    derivative.digest = DigestOfFiles(derivative.files);
    StoreWrite write;
    write.derivatives = {derivative};
    ASSERT_TRUE(store_.Commit(write).ok());
  }

  WebReply Ask(const std::string& path, const std::map<std::string, std::string>& headers = {},
               HubPages::Authorise authorise = nullptr) {
    HubPages pages(*catalog_, std::move(authorise));
    WebRequest request{"GET", path,
                       [&](const char* name) {
                         const auto found = headers.find(name);
                         return found == headers.end() ? "" : found->second;
                       },
                       [](const char*) { return std::string(); }};
    WebReply reply;
    if (!pages.Answer(request, &reply)) reply.status = 0;
    return reply;
  }

  static std::string HeaderOf(const WebReply& reply, const std::string& name) {
    for (const auto& [key, value] : reply.headers) {
      if (key == name) return value;
    }
    return "";
  }

  TemporaryDirectory directory_;
  MemoryStore store_;
  std::unique_ptr<ArtifactDirectory> artifacts_;
  std::optional<InputResolver> resolver_;
  std::optional<HubCatalog> catalog_;
};

TEST_F(HubPagesTest, NameOfATeam_IsItsNewest_AndOlderOnesAreRevisions) {
  Publish("drv-1", "old");
  const std::string old_commit = HeaderOf(Ask("/api/models/red/mine"), "X-Repo-Commit");
  EXPECT_EQ(old_commit.size(), 40u);
  Publish("drv-2", "new");
  const std::string file = "adapter_model.safetensors";
  const auto digest = [&](const std::string& name, const std::string& revision) {
    return HeaderOf(Ask(absl::StrCat("/", name, "/resolve/", revision, "/", file)), "ETag");
  };
  const std::string new_etag = absl::StrCat("\"", DigestOf("new").substr(7), "\"");
  const std::string old_etag = absl::StrCat("\"", DigestOf("old").substr(7), "\"");
  EXPECT_EQ(digest("red/mine", "main"), new_etag);
  EXPECT_EQ(digest("red/mine", "drv-1"), old_etag);
  EXPECT_EQ(digest("red/mine", old_commit), old_etag);
  EXPECT_EQ(digest("drv-1", "main"), old_etag);
  EXPECT_EQ(HeaderOf(Ask("/drv-1/resolve/v9/x"), "X-Error-Code"), "RevisionNotFound");
  EXPECT_EQ(HeaderOf(Ask("/blue/mine/resolve/main/x"), "X-Error-Code"), "RepoNotFound");
  EXPECT_EQ(HeaderOf(Ask("/drv-1/resolve/main/x"), "X-Error-Code"), "EntryNotFound");
}

TEST_F(HubPagesTest, MergedModel_IsAModelOfItsOwn) {
  Publish("drv-1", "w");
  EXPECT_EQ(Ask("/red/mine-merged/resolve/main/config.json").file_bytes, 13);
  EXPECT_EQ(HeaderOf(Ask("/red/mine-merged/resolve/main/adapter_config.json"), "X-Error-Code"),
            "EntryNotFound");
}

TEST_F(HubPagesTest, Paths_AreOnlyComparedWithTheRegistry) {
  Publish("drv-1", "w");
  ASSERT_TRUE(WriteFileAtomically(directory_.File("artifacts/secret"), "s").ok());
  for (const char* path :
       {"../secret", "../../secret", "/etc/passwd", "merged/../adapter_config.json",
        "./adapter_config.json", "adapter_config.json/", "merged", ""}) {
    const WebReply reply = Ask(absl::StrCat("/drv-1/resolve/main/", path));
    EXPECT_TRUE(reply.status == 404 || reply.status == 0) << path;
    EXPECT_EQ(reply.file_path, "") << path;
  }
}

TEST_F(HubPagesTest, Tree_ListsFilesWithDigestsAndFolders) {
  Publish("drv-1", "w");
  const std::string body = Ask("/api/models/drv-1/tree/main").body;
  EXPECT_THAT(body, HasSubstr(absl::StrCat("\"oid\":\"", DigestOf("w").substr(7), "\"")));
  EXPECT_THAT(body, HasSubstr("\"type\":\"directory\""));
  EXPECT_THAT(Ask("/api/models/drv-1/tree/main/merged").body, HasSubstr("merged/config.json"));
  EXPECT_EQ(HeaderOf(Ask("/api/models/drv-1/tree/main/none"), "X-Error-Code"), "EntryNotFound");
}

TEST_F(HubPagesTest, Token_IsAskedForWhereIdentityIsOn) {
  Publish("drv-1", "w");
  const auto authorise = [](const std::string& header) -> absl::StatusOr<std::string> {
    if (header == "Bearer good") return "";
    if (header == "Bearer red" || header == "Bearer blue") return header.substr(7);
    return absl::UnauthenticatedError("no");
  };
  EXPECT_EQ(Ask("/api/models/drv-1", {}, authorise).status, 401);
  EXPECT_EQ(Ask("/api/models/drv-1", {{"Authorization", "Bearer bad"}}, authorise).status, 401);
  EXPECT_EQ(Ask("/api/models/drv-1", {{"Authorization", "Basic good"}}, authorise).status, 401);
  EXPECT_EQ(Ask("/api/models/drv-1", {{"Authorization", "Bearer good"}}, authorise).status, 200);
  EXPECT_EQ(Ask("/api/models/drv-1", {{"Authorization", "Bearer red"}}, authorise).status, 200);
  EXPECT_EQ(Ask("/api/models/drv-1", {{"Authorization", "Bearer blue"}}, authorise).status, 404);
}

TEST_F(HubPagesTest, RegisteredModel_AnswersToItsHubNameToo) {
  BaseModelRecord model;
  model.name = "ours";
  model.base_model_id = "org/theirs";
  const std::string commit(40, 'c');
  model.path = "/cache/models--org--theirs/snapshots/" + commit;
  model.files = {Store("config.json", "{}")};
  StoreWrite write;
  write.base_models = {model};
  ASSERT_TRUE(store_.Commit(write).ok());
  EXPECT_EQ(Ask("/ours/resolve/main/config.json").file_bytes, 2);
  EXPECT_EQ(Ask(absl::StrCat("/org/theirs/resolve/", commit, "/config.json")).file_bytes, 2);
  EXPECT_EQ(
      HeaderOf(Ask("/org/theirs/resolve/" + std::string(40, 'd') + "/config.json"), "X-Error-Code"),
      "RevisionNotFound");
}

TEST_F(HubPagesTest, CopyDerivative_AppearsWhole_AndReplacesOnlyDerivatives) {
  const std::vector<FileEntry> files = {Store("offshoot.json", "{}"), Store("a/b", "data")};
  const auto path_of = [&](const FileEntry& file) { return artifacts_->PathOf(file.digest); };
  const auto never = [] { return false; };
  const std::string target = directory_.File("shelf/mine");
  ASSERT_TRUE(CopyDerivative(files, path_of, target, never).ok());
  EXPECT_EQ(*ReadFile(target + "/a/b"), "data");
  const std::vector<FileEntry> newer = {Store("offshoot.json", "{}"), Store("c", "newer")};
  ASSERT_TRUE(CopyDerivative(newer, path_of, target, never).ok());
  EXPECT_FALSE(PathExists(target + "/a/b"));
  EXPECT_EQ(*ReadFile(target + "/c"), "newer");
  EXPECT_EQ(ListFilesBelow(directory_.File("shelf"))->size(), 2u) << "nothing is left beside it";

  const std::string other = directory_.File("photos");
  ASSERT_TRUE(MakeDirectories(other).ok());
  ASSERT_TRUE(WriteFileAtomically(other + "/1.jpg", "x").ok());
  EXPECT_THAT(std::string(CopyDerivative(files, path_of, other, never).message()),
              HasSubstr("holds other files than a derivative"));
  EXPECT_TRUE(PathExists(other + "/1.jpg"));
}

TEST_F(HubPagesTest, PushTargets_AreBounded) {
  PusherOptions options;
  options.directory = directory_.File("state/pushes");
  options.allowed_roots = {directory_.path()};
  options.hub_namespaces = {"ours"};
  const Pusher pusher(store_, *catalog_, options);
  const auto check = [&](const std::string& target) {
    JobSpec spec;
    spec.publish.push_to = {target};
    return pusher.Check(spec);
  };
  EXPECT_TRUE(check(directory_.File("shelf/x")).ok());
  EXPECT_TRUE(check("ours/mine").ok());
  for (const std::string& target :
       {std::string("/etc/x"), directory_.File("state/pushes/x"), directory_.File("state"),
        directory_.path(), directory_.File("../x"), std::string("theirs/mine"),
        std::string("ours/../x"), std::string("ours/mine@v1")}) {
    EXPECT_TRUE(absl::IsInvalidArgument(check(target))) << target;
  }
}

}  // namespace
}  // namespace offshoot
