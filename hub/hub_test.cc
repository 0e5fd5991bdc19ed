// The client side of a hub against servers that keep to the protocol, break off, or lie.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/temporary_directory.h"
#include "hub/blob_hash.h"
#include "hub/cache.h"
#include "hub/client.h"
#include "hub/download.h"
#include "hub/environment.h"
#include "hub/testing/scripted_server.h"

namespace offshoot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kCommit(40, 'a');
constexpr char kToken[] = "hf_verysecret";

TEST(HubEnvironment, Variables_MeanWhatTheHubsOwnClientTakesThemFor) {
  std::map<std::string, std::string> variables = {{"HOME", "/home/u"}};
  const auto read = [&] {
    return ReadHubEnvironment([&](const char* name) { return variables[name]; });
  };
  EXPECT_EQ(read().endpoint, "https://huggingface.co");
  EXPECT_EQ(read().cache, "/home/u/.cache/huggingface/hub");
  EXPECT_FALSE(read().offline);
  variables["XDG_CACHE_HOME"] = "/xdg";
  EXPECT_EQ(read().cache, "/xdg/huggingface/hub");
  variables["HF_HOME"] = "~/hf";
  EXPECT_EQ(read().cache, "/home/u/hf/hub");
  variables["HF_HUB_CACHE"] = "/cache";
  variables["HF_ENDPOINT"] = "https://user:password@hub.example/";
  variables["HF_TOKEN"] = "abc\r\nX-Evil: 1";
  variables["HF_HUB_OFFLINE"] = "YES";
  EXPECT_EQ(read().cache, "/cache");
  EXPECT_EQ(read().endpoint, "https://hub.example");
  EXPECT_EQ(read().token, "abcX-Evil:1");
  EXPECT_TRUE(read().offline);
}

TEST(HubReference, OnlyNamesThatAHubCanHave_AreTaken) {
  HubReference reference;
  ASSERT_TRUE(ParseHubReference("Qwen/Qwen3-0.6B", &reference));
  EXPECT_EQ(reference, (HubReference{"Qwen/Qwen3-0.6B", "main"}));
  ASSERT_TRUE(ParseHubReference("a/b@refs/pr/1", &reference));
  EXPECT_EQ(reference.revision, "refs/pr/1");
  for (const char* wrong : {"", "name", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "a/b@/etc",
                            "-a/b", "a/b c", "a/b@x y", "a/b\n", "a--b/c"}) {
    EXPECT_FALSE(ParseHubReference(wrong, &reference)) << wrong;
  }
}

TEST(ShownUrl, NeitherUserNorQuery_IsShown) {
  EXPECT_EQ(ShownUrl("https://u:p@Host:1/a/b?signature=x#y"), "https://host:1/a/b");
  EXPECT_EQ(OriginOf("http://HOST:80/a"), "http://host:80");
  EXPECT_EQ(EncodePath("a b/c%?ü"), "a%20b/c%25%3f%c3%bc");
}

std::string LfsEntry(const std::string& path, const std::string& data) {
  return absl::StrCat(R"({"type":"file","path":")", path, R"(","size":)", data.size(),
                      R"(,"oid":")", kCommit, R"(","lfs":{"oid":")", DigestOf(data).substr(7),
                      R"(","size":)", data.size(), R"(,"pointerSize":134}})");
}

// A hub with one model of one file; the answer for the file is the test's.
class HubTest : public ::testing::Test {
 protected:
  HubTest() {
    environment_.cache = directory_.File("hub");
    environment_.token = kToken;
    options_.first_wait = absl::Milliseconds(1);
    options_.longest_wait = absl::Milliseconds(5);
    options_.limits.silence = absl::Seconds(5);
    for (std::int64_t i = 0; i < 300'000; ++i) data_.push_back(static_cast<char>(i * i % 251));
  }

  void Serve(ScriptedServer::Answer file) {
    server_.emplace([this, file](const ScriptedRequest& request) {
      if (absl::StrContains(request.path, "/revision/")) {
        return HttpAnswer("200 OK", "", absl::StrCat(R"({"sha":")", kCommit, R"("})"));
      }
      if (absl::StrContains(request.path, "/tree/")) {
        return HttpAnswer("200 OK", "", "[" + LfsEntry("model.safetensors", data_) + "]");
      }
      return file(request);
    });
    environment_.endpoint = server_->endpoint();
  }

  std::string Headers(const std::string& more = "") const {
    return absl::StrCat("X-Repo-Commit: ", kCommit, "\r\nETag: \"", DigestOf(data_).substr(7),
                        "\"\r\n", more);
  }

  // As a server that keeps to the protocol.
  std::string Honest(const ScriptedRequest& request) const {
    std::size_t begin = 0;
    if (!request.range.empty()) {
      EXPECT_TRUE(absl::SimpleAtoi(request.range.substr(6, request.range.find('-') - 6), &begin));
      return HttpAnswer("206 Partial Content",
                        Headers(absl::StrCat("Content-Range: bytes ", begin, "-", data_.size() - 1,
                                             "/", data_.size(), "\r\n")),
                        data_.substr(begin));
    }
    return HttpAnswer("200 OK", Headers(), data_);
  }

  absl::StatusOr<HubSnapshot> Describe() {
    return HubClient(environment_, nullptr).Describe({"org/tiny", "main"});
  }

  absl::Status Fetch() {
    const absl::StatusOr<HubSnapshot> snapshot = Describe();
    if (!snapshot.ok()) return snapshot.status();
    return HubDownloader(environment_, options_).Fetch(*snapshot, "main", hooks_);
  }

  std::string Snapshot() const {
    return directory_.File(absl::StrCat("hub/models--org--tiny/snapshots/", kCommit));
  }
  std::string Blob() const {
    return directory_.File("hub/models--org--tiny/blobs/" + DigestOf(data_).substr(7));
  }
  bool SomethingAppeared() const { return PathExists(Blob()) || PathExists(Snapshot()); }

  int FileRequests() const {
    int count = 0;
    for (const ScriptedRequest& request : server_->requests()) {
      count += absl::StrContains(request.path, "/resolve/") ? 1 : 0;
    }
    return count;
  }

  TemporaryDirectory directory_;
  HubEnvironment environment_;
  HubDownloadOptions options_;
  HubDownloadHooks hooks_;
  std::string data_;
  std::optional<ScriptedServer> server_;
};

TEST_F(HubTest, Fetch_HonestServer_LeavesTheCacheAsTheHubsClientDoes) {
  Serve([this](const ScriptedRequest& request) { return Honest(request); });
  std::int64_t done = 0;
  hooks_.progress = [&](std::int64_t now, std::int64_t total) {
    done = now;
    EXPECT_EQ(total, static_cast<std::int64_t>(data_.size()));
  };
  ASSERT_TRUE(Fetch().ok()) << Fetch();
  EXPECT_EQ(done, static_cast<std::int64_t>(data_.size()));
  EXPECT_EQ(*ReadFile(Snapshot() + "/model.safetensors"), data_);
  EXPECT_EQ(std::filesystem::read_symlink(Snapshot() + "/model.safetensors"),
            "../../blobs/" + DigestOf(data_).substr(7));
  EXPECT_EQ(*ReadFile(directory_.File("hub/models--org--tiny/refs/main")), kCommit);
  EXPECT_EQ(FileRequests(), 1);
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(FileRequests(), 1) << "what is there is not fetched again";
}

TEST_F(HubTest, Fetch_BrokenOff_GoesOnWhereItStopped) {
  int breaks = 3;
  Serve([&](const ScriptedRequest& request) {
    const std::string answer = Honest(request);
    if (breaks-- <= 0) return answer;
    return answer.substr(0, answer.find("\r\n\r\n") + 4 + 70'000);
  });
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(*ReadFile(Snapshot() + "/model.safetensors"), data_);
  std::vector<std::string> ranges;
  for (const ScriptedRequest& request : server_->requests()) {
    if (absl::StrContains(request.path, "/resolve/")) ranges.push_back(request.range);
  }
  EXPECT_THAT(ranges, testing::ElementsAre("", "bytes=70000-", "bytes=140000-", "bytes=210000-"));
}

TEST_F(HubTest, Fetch_GivenUpAndBegunAgain_GoesOnWhereItStopped) {
  options_.tries_without_progress = 1;
  bool broken = true;
  Serve([&](const ScriptedRequest& request) {
    const std::string answer = Honest(request);
    return broken ? answer.substr(0, answer.find("\r\n\r\n") + 4 + 70'000) : answer;
  });
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(status.message(), HasSubstr("70000 of 300000 bytes are there"));
  EXPECT_FALSE(SomethingAppeared());
  broken = false;
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(server_->requests().back().range, "bytes=70000-");
  EXPECT_EQ(*ReadFile(Snapshot() + "/model.safetensors"), data_);
}

TEST_F(HubTest, Fetch_ServerWithoutRanges_BeginsAgain) {
  bool first = true;
  Serve([&](const ScriptedRequest& request) {
    const std::string whole = Honest(ScriptedRequest{request.method, request.path, "", ""});
    return std::exchange(first, false) ? whole.substr(0, whole.size() - 1000) : whole;
  });
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(*ReadFile(Snapshot() + "/model.safetensors"), data_);
}

TEST_F(HubTest, Fetch_ChangedByte_IsRefusedByDigest) {
  Serve([this](const ScriptedRequest&) {
    std::string changed = data_;
    changed[123'456] ^= 1;
    return HttpAnswer("200 OK", Headers(), changed);
  });
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("org/tiny's model.safetensors"),
                                      HasSubstr(DigestOf(data_)), HasSubstr("thrown away")));
  EXPECT_FALSE(SomethingAppeared());
}

TEST_F(HubTest, Fetch_DamagedPartOfBefore_IsFetchedOnceMore) {
  Serve([this](const ScriptedRequest& request) { return Honest(request); });
  ASSERT_TRUE(MakeDirectories(directory_.File("hub/models--org--tiny/blobs")).ok());
  ASSERT_TRUE(WriteFileAtomically(Blob() + ".offshoot.incomplete", std::string(5000, 'x')).ok());
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(*ReadFile(Blob()), data_);
}

TEST_F(HubTest, Fetch_DamagedBlobInTheCache_IsReplaced) {
  Serve([this](const ScriptedRequest& request) { return Honest(request); });
  ASSERT_TRUE(Fetch().ok());
  std::string damaged = data_;
  damaged[5] ^= 1;
  ASSERT_TRUE(WriteFileAtomically(Blob(), damaged).ok());
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(*ReadFile(Blob()), data_);
}

TEST_F(HubTest, Fetch_LyingServer_EndsInASentence) {
  const std::string etag = DigestOf(data_).substr(7);
  const std::string commit = absl::StrCat("X-Repo-Commit: ", kCommit, "\r\n");
  const std::vector<std::pair<std::string, std::string>> lies = {
      {HttpAnswer("200 OK", Headers(), data_ + "more"), "sends 300004 bytes"},
      {HttpAnswer("200 OK", Headers(), data_.substr(1)), "sends 299999 bytes"},
      {absl::StrCat("HTTP/1.1 200 OK\r\n", Headers(), "Connection: close\r\n\r\n", data_, "more"),
       "sends more than the 300000 bytes"},
      {HttpAnswer("200 OK", absl::StrCat(commit, "ETag: \"", std::string(64, 'b'), "\"\r\n"),
                  data_),
       "answers with the ETag bbbb"},
      {HttpAnswer(
           "200 OK",
           absl::StrCat("X-Repo-Commit: ", std::string(40, 'b'), "\r\nETag: \"", etag, "\"\r\n"),
           data_),
       "answers with commit bbbb"},
      {HttpAnswer("206 Partial Content", Headers("Content-Range: bytes 5-9/10\r\n"), data_),
       "answers with the range"},
      {HttpAnswer("302 Found", "Location: /resolve/again\r\n", ""), "redirects more than 8 times"},
      {HttpAnswer("200 OK", Headers("X-Long: " + std::string(70'000, 'x') + "\r\n"), data_),
       "bytes of headers"},
      {HttpAnswer("418 I'm a teapot", "", ""), "answers 418"},
      {"", "tiny's model.safetensors"},
      {"garbage\r\n\r\n", "tiny's model.safetensors"},
  };
  for (const auto& [answer, sentence] : lies) {
    Serve([&answer = answer](const ScriptedRequest&) { return answer; });
    const absl::Status status = Fetch();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(sentence), Not(HasSubstr(kToken)), Not(HasSubstr("\n"))));
    EXPECT_FALSE(SomethingAppeared()) << sentence;
    ASSERT_TRUE(RemoveTree(environment_.cache).ok());
  }
}

TEST_F(HubTest, Token_GoesToTheEndpointOnly) {
  ScriptedServer elsewhere([this](const ScriptedRequest&) {
    return HttpAnswer("200 OK", "ETag: \"other\"\r\n", data_);
  });
  Serve([&](const ScriptedRequest&) {
    return HttpAnswer(
        "302 Found",
        Headers(absl::StrCat("X-Linked-Etag: \"", DigestOf(data_).substr(7),
                             "\"\r\nLocation: ", elsewhere.endpoint(), "/x?sig=1\r\n")),
        "");
  });
  const absl::Status status = Fetch();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(server_->requests().back().authorization, absl::StrCat("Bearer ", kToken));
  ASSERT_EQ(elsewhere.requests().size(), 1u);
  EXPECT_EQ(elsewhere.requests()[0].authorization, "");
}

TEST_F(HubTest, Fetch_OfTwoAtOnce_OneDownloads) {
  Serve([this](const ScriptedRequest& request) { return Honest(request); });
  absl::Status other;
  std::thread thread([&] { other = Fetch(); });
  const absl::Status status = Fetch();
  thread.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(other.ok()) << other;
  EXPECT_EQ(FileRequests(), 1);
}

TEST_F(HubTest, Fetch_Cancelled_Ends) {
  std::atomic<bool> cancelled = false;
  hooks_.cancelled = [&] { return cancelled.load(); };
  Serve([&](const ScriptedRequest&) {
    cancelled = true;
    return std::string();
  });
  EXPECT_TRUE(absl::IsCancelled(Fetch()));
}

TEST_F(HubTest, Describe_Refusals_AreSentences) {
  const std::vector<std::tuple<std::string, absl::StatusCode, std::string>> refusals = {
      {HttpAnswer("401 Unauthorized", "X-Error-Code: GatedRepo\r\n", ""),
       absl::StatusCode::kPermissionDenied, "org/tiny is gated: accept its terms at "},
      {HttpAnswer("401 Unauthorized", "X-Error-Code: RepoNotFound\r\n", ""),
       absl::StatusCode::kNotFound, "there is no model org/tiny at "},
      {HttpAnswer("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", ""),
       absl::StatusCode::kNotFound, "has no revision main"},
      {HttpAnswer("429 Too Many Requests", "Retry-After: 300\r\n", ""),
       absl::StatusCode::kUnavailable, "too many requests (429) for org/tiny; try again in 5m"},
      {HttpAnswer("403 Forbidden", "", ""), absl::StatusCode::kPermissionDenied,
       "refuses org/tiny"},
      {HttpAnswer("200 OK", "", "<html>"), absl::StatusCode::kFailedPrecondition,
       "says of org/tiny what no hub says"},
      {HttpAnswer("200 OK", "", R"({"sha":"../../etc"})"), absl::StatusCode::kFailedPrecondition,
       "an answer without the commit"},
  };
  for (const auto& [answer, code, sentence] : refusals) {
    ScriptedServer server([&answer = answer](const ScriptedRequest&) { return answer; });
    environment_.endpoint = server.endpoint();
    const absl::Status status = Describe().status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(sentence), Not(HasSubstr(kToken))));
  }
}

TEST_F(HubTest, Describe_HostileLists_AreRefused) {
  for (const std::string& entry :
       {LfsEntry("../../.ssh/authorized_keys", data_), LfsEntry("/etc/passwd", data_),
        std::string(R"({"type":"file","path":"x","size":-1,"oid":"0"})"),
        std::string(R"({"type":"file","path":"x","size":3,"oid":"../../../x"})"),
        LfsEntry("a", data_) + "," + LfsEntry("a", data_)}) {
    ScriptedServer server([&](const ScriptedRequest& request) {
      return absl::StrContains(request.path, "/revision/")
                 ? HttpAnswer("200 OK", "", absl::StrCat(R"({"sha":")", kCommit, R"("})"))
                 : HttpAnswer("200 OK", "", "[" + entry + "]");
    });
    environment_.endpoint = server.endpoint();
    EXPECT_THAT(std::string(Describe().status().message()), HasSubstr("what no hub says")) << entry;
  }
}

TEST_F(HubTest, Describe_PassingTrouble_IsTriedAgain) {
  int failures = 2;
  ScriptedServer server([&](const ScriptedRequest& request) {
    if (failures-- > 0) return HttpAnswer("503 Service Unavailable", "", "");
    return absl::StrContains(request.path, "/tree/")
               ? HttpAnswer("200 OK", "", "[" + LfsEntry("model.safetensors", data_) + "]")
               : HttpAnswer("200 OK", "", absl::StrCat(R"({"sha":")", kCommit, R"("})"));
  });
  environment_.endpoint = server.endpoint();
  const absl::StatusOr<HubSnapshot> snapshot = Describe();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(snapshot->commit, kCommit);
  EXPECT_EQ(snapshot->files[0].digest, DigestOf(data_));
}

TEST_F(HubTest, Describe_Offline_AsksNobody) {
  environment_.offline = true;
  environment_.endpoint = "http://127.0.0.1:1";
  EXPECT_THAT(std::string(Describe().status().message()), HasSubstr("HF_HUB_OFFLINE is set"));
}

TEST(SelectModelFiles, SecondCopiesAndPickles_AreLeft) {
  const auto paths = [](const std::vector<std::string>& names) -> absl::StatusOr<std::string> {
    HubSnapshot snapshot{"org/m", kCommit, {}};
    for (const std::string& name : names) snapshot.files.push_back({name, 1, "", ""});
    const absl::StatusOr<std::vector<HubFile>> files = SelectModelFiles(snapshot);
    if (!files.ok()) return files.status();
    std::string joined;
    for (const HubFile& file : *files) absl::StrAppend(&joined, file.path, " ");
    return joined;
  };
  EXPECT_EQ(*paths({"config.json", "model.safetensors", "consolidated.safetensors", "m.gguf",
                    "pytorch_model.bin", "onnx/model.safetensors", ".gitattributes"}),
            "config.json model.safetensors ");
  EXPECT_EQ(*paths({"m.gguf", "README.md"}), "m.gguf README.md ");
  EXPECT_THAT(std::string(paths({"config.json", "pytorch_model.bin"}).status().message()),
              HasSubstr("only as pickles (pytorch_model.bin)"));
  EXPECT_THAT(std::string(paths({"a.gguf", "b.gguf"}).status().message()),
              HasSubstr("several GGUF files (a.gguf, b.gguf)"));
}

TEST(MissingOfModel, PartOfASnapshot_IsSeen) {
  const TemporaryDirectory directory;
  const auto write = [&](const char* name, const char* text) {
    ASSERT_TRUE(WriteFileAtomically(directory.File(name), text).ok());
  };
  EXPECT_EQ(MissingOfModel(directory.path()), "config.json");
  write("config.json", "{}");
  EXPECT_EQ(MissingOfModel(directory.path()), "model.safetensors");
  write("model.safetensors.index.json",
        R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  write("1.safetensors", "x");
  EXPECT_EQ(MissingOfModel(directory.path()), "2.safetensors");
  write("2.safetensors", "x");
  EXPECT_EQ(MissingOfModel(directory.path()), "");
}

TEST(DigestBlob, GitsName_IsGits) {
  const TemporaryDirectory directory;
  ASSERT_TRUE(WriteFileAtomically(directory.File("x"), "hello\n").ok());
  const absl::StatusOr<BlobDigests> digests = DigestBlob(directory.File("x"));
  ASSERT_TRUE(digests.ok());
  EXPECT_EQ(digests->git, "ce013625030ba8dba906f756967f9e9ca394464a");  // git hash-object
  EXPECT_EQ(digests->sha256, DigestOf("hello\n"));
}

}  // namespace
}  // namespace offshoot
