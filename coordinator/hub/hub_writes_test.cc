// Pushes to the HTTP port: who may, objects in one piece and in parts, commits.
#include "coordinator/hub/hub_writes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/temporary_directory.h"
#include "coordinator/store_memory.h"

namespace offshoot {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

class HubWritesTest : public ::testing::Test {
 protected:
  HubWritesTest() {
    artifacts_ = *ArtifactDirectory::Open(directory_.File("artifacts"));
    resolver_.emplace(store_, *artifacts_, std::vector<std::string>{}, "");
    catalog_.emplace(store_, *artifacts_, *resolver_);
    HubWrites::Options options;
    options.part_bytes = 1000;
    writes_.emplace(
        *catalog_, *artifacts_,
        [this](BaseModelRecord model, const std::function<void(const absl::Status&)>& done) {
          StoreWrite write;
          write.base_models = {std::move(model)};
          done(store_.Commit(write).status());
        },
        [](const std::string& authorization) -> absl::StatusOr<std::string> {
          if (authorization == "Bearer alice") return std::string("red");
          if (authorization == "Bearer olga") return std::string();
          return absl::UnauthenticatedError("who are you?");
        },
        options);
  }

  WebReply Send(const std::string& method, const std::string& url, const std::string& body,
                const std::string& token = "alice", bool cut = false) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(url, absl::MaxSplits('?', 1));
    std::map<std::string, std::string> query;
    for (const absl::string_view field : absl::StrSplit(parts.second, '&', absl::SkipEmpty())) {
      query.insert(absl::StrSplit(field, absl::MaxSplits('=', 1)));
    }
    const WebRequest request{method, parts.first,
                             [&](const char* name) -> std::string {
                               if (std::string(name) == "Host") return "here:1";
                               if (std::string(name) != "Authorization" || token.empty()) return "";
                               return "Bearer " + token;
                             },
                             [&](const char* name) { return query[name]; }};
    WebReception reception = writes_->Receive(request);
    if (reception.body == nullptr) return reception.refusal;
    reception.body->Append(body.substr(0, body.size() / 2));
    if (cut) return {};  // it hangs up
    reception.body->Append(body.substr(body.size() / 2));
    return reception.body->Finish();
  }

  static Json Parsed(const WebReply& reply) { return Json::parse(reply.body, nullptr, false); }
  static std::string Oid(const std::string& data) { return DigestOf(data).substr(7); }
  // The path and query of one of our URLs.
  static std::string Local(const Json& url) {
    return url.get<std::string>().substr(std::string("http://here:1").size());
  }

  Json Batch(const std::string& data) {
    const Json body = {{"operation", "upload"},
                       {"objects", Json::array({Json{{"oid", Oid(data)}, {"size", data.size()}}})}};
    const WebReply reply = Send("POST", "/red/m.git/info/lfs/objects/batch", body.dump());
    EXPECT_EQ(reply.status, 200) << reply.body;
    return Parsed(reply)["objects"][0];
  }
  WebReply Commit(const std::vector<Json>& lines, const std::string& repository = "red/m",
                  const std::string& token = "alice") {
    std::string body;
    for (const Json& line : lines) absl::StrAppend(&body, line.dump(), "\n");
    return Send("POST", absl::StrCat("/api/models/", repository, "/commit/main"), body, token);
  }
  static Json Large(const std::string& path, const std::string& data) {
    return {{"key", "lfsFile"},
            {"value", {{"path", path}, {"oid", Oid(data)}, {"size", data.size()}}}};
  }
  static Json Small(const std::string& path, const std::string& data) {
    return {
        {"key", "file"},
        {"value", {{"path", path}, {"encoding", "base64"}, {"content", absl::Base64Escape(data)}}}};
  }

  TemporaryDirectory directory_;
  MemoryStore store_;
  std::unique_ptr<ArtifactDirectory> artifacts_;
  std::optional<InputResolver> resolver_;
  std::optional<HubCatalog> catalog_;
  std::optional<HubWrites> writes_;
};

TEST_F(HubWritesTest, CommitBeforeItsBytes_IsRefused_AndNothingIsSeen) {
  const std::string data = "weights";
  const WebReply early = Commit({Small("config.json", "{}"), Large("m.safetensors", data)});
  EXPECT_EQ(early.status, 400);
  EXPECT_THAT(early.body, HasSubstr("m.safetensors did not arrive"));
  EXPECT_TRUE(absl::IsNotFound(catalog_->Find("red/m", "main").status()));

  const Json entry = Batch(data);
  const std::string url = Local(entry["actions"]["upload"]["href"]);
  EXPECT_EQ(Send("PUT", url, data, "", /*cut=*/true).body, "");
  EXPECT_EQ(Send("PUT", url, "Weights", "").status, 422) << "other bytes of that length";
  EXPECT_EQ(Send("PUT", url, data + "!", "").status, 400);
  EXPECT_EQ(Send("PUT", url, "weigh", "").status, 400);
  EXPECT_EQ(Send("PUT", url, data, "").status, 200) << "signed: no token is asked";
  EXPECT_FALSE(Batch(data).contains("actions")) << "it is not sent again";
  const WebReply done = Commit({Small("config.json", "{}"), Large("m.safetensors", data)});
  ASSERT_EQ(done.status, 200) << done.body;
  const auto seen = catalog_->Find("red/m", "main");
  ASSERT_TRUE(seen.ok()) << seen.status();
  EXPECT_EQ(seen->commit, Parsed(done)["commitOid"]);
  EXPECT_EQ(seen->team, "red");
  EXPECT_EQ(seen->files.size(), 2U);
}

TEST_F(HubWritesTest, Parts_ThatCame_AreKeptWhenAPushBreaksOff) {
  std::string data;
  for (int i = 0; i < 500; ++i) absl::StrAppend(&data, i, " ");
  ASSERT_EQ(data.size(), 1890U);
  data += std::string(2110, 'x');  // four parts
  Json upload = Batch(data)["actions"]["upload"];
  EXPECT_EQ(upload["header"]["chunk_size"], "1000");
  EXPECT_EQ(upload["header"]["offshoot_kept_bytes"], "0");
  const auto send = [&](int part, bool cut = false) {
    return Send("PUT", Local(upload["header"][absl::StrCat(part)]),
                data.substr(1000 * (part - 1), 1000), "", cut)
        .status;
  };
  EXPECT_EQ(send(3), 503) << "not before the first two";
  EXPECT_EQ(send(1), 200);
  EXPECT_EQ(send(2), 200);
  send(3, /*cut=*/true);
  EXPECT_EQ(Send("POST", Local(upload["href"]), "{}", "").status, 422);
  upload = Batch(data)["actions"]["upload"];
  EXPECT_EQ(upload["header"]["offshoot_kept_bytes"], "2500");
  EXPECT_EQ(send(1), 200) << "a client that sends it again loses nothing";
  EXPECT_EQ(send(3), 200);
  EXPECT_EQ(send(4), 200);
  EXPECT_EQ(Send("POST", Local(upload["href"]), "{}", "").status, 200);
  EXPECT_TRUE(artifacts_->Find(DigestOf(data)).has_value());
}

TEST_F(HubWritesTest, Urls_ThatWereNotGiven_AreWorthNothing) {
  const std::string data = "weights";
  const std::string url = Local(Batch(data)["actions"]["upload"]["href"]);
  std::string other = url;
  other.replace(other.find(Oid(data)), 64, Oid("other"));
  std::string larger = url;
  larger.replace(larger.find("size=7"), 6, "size=9");
  for (const std::string& forged :
       {other, larger, url.substr(0, url.find('?')), url + "0", url.substr(0, url.size() - 64)}) {
    EXPECT_EQ(Send("PUT", forged, data, "alice").status, 403) << forged;
  }
  for (const char* nowhere : {"/lfs/objects/../../etc/passwd", "/lfs/objects/00", "/x", "/"}) {
    EXPECT_EQ(Send("PUT", nowhere, data).status, 404);
  }
}

TEST_F(HubWritesTest, Teams_WriteToTheirOwnNames) {
  const std::vector<Json> lines = {Small("config.json", "{}")};
  EXPECT_EQ(Commit(lines, "red/m", "nobody").status, 401);
  EXPECT_EQ(Commit(lines, "blue/m").status, 403);
  EXPECT_EQ(Commit(lines, "redder/m").status, 403);
  EXPECT_EQ(Commit(lines, "blue/m", "olga").status, 200);
  const auto create = [&](const Json& body) {
    return Send("POST", "/api/repos/create", body.dump()).status;
  };
  EXPECT_EQ(create({{"name", "n"}, {"organization", "red"}}), 200);
  EXPECT_EQ(create({{"name", "n"}}), 200);
  EXPECT_EQ(create({{"name", "n"}, {"organization", "blue"}}), 403);
  EXPECT_EQ(create({{"name", "n"}, {"type", "dataset"}}), 400);
  for (const char* name : {"..", ".hidden", "a/b", "x.git", "", "a b"}) {
    EXPECT_EQ(create({{"name", name}, {"organization", "red"}}), 400) << name;
  }
  EXPECT_EQ(Commit(lines).status, 200);
  EXPECT_EQ(create({{"name", "m"}}), 409);
}

TEST_F(HubWritesTest, DerivativesAndRegisteredModels_AreNotWrittenTo) {
  DerivativeRecord derivative;
  derivative.derivative_id = DerivativeId("drv-1");
  derivative.name = "mine";
  derivative.team = "red";
  derivative.files = {{"a", DigestOf("a"), 1}};
  BaseModelRecord model;
  model.name = "red/base";
  model.files = derivative.files;
  StoreWrite write;
  write.derivatives = {derivative};
  write.base_models = {model};
  ASSERT_TRUE(store_.Commit(write).ok());
  for (const char* name : {"red/mine", "red/base"}) {
    const WebReply reply = Commit({Small("config.json", "{}")}, name);
    EXPECT_EQ(reply.status, 409) << name;
    EXPECT_THAT(reply.body, HasSubstr("push to another name"));
  }
}

TEST_F(HubWritesTest, Commits_BuildOnOneAnother) {
  const WebReply first = Commit({Small("a.txt", "1"), Small("sub/b.txt", "2")});
  ASSERT_EQ(first.status, 200) << first.body;
  const std::string oid = Parsed(first)["commitOid"];
  const Json header = {{"key", "header"}, {"value", {{"parentCommit", oid}}}};
  const WebReply second = Commit(
      {header, Small("c.txt", "3"), {{"key", "deletedFolder"}, {"value", {{"path", "sub/"}}}}});
  ASSERT_EQ(second.status, 200) << second.body;
  EXPECT_EQ(Commit({header, Small("d.txt", "4")}).status, 412) << "it is no longer the newest";
  const auto paths = [&](const std::string& revision) {
    std::vector<std::string> found;
    const auto snapshot = catalog_->Find("red/m", revision);  // outlives the loop
    if (!snapshot.ok()) return found;
    for (const FileEntry& file : snapshot->files) {
      found.push_back(file.path);
    }
    return found;
  };
  EXPECT_EQ(paths("main"), (std::vector<std::string>{"a.txt", "c.txt"}));
  EXPECT_EQ(paths(oid), (std::vector<std::string>{"a.txt", "sub/b.txt"}));
  for (const char* path : {"../x", "/etc/passwd", "", "a/../b", "a\\b", "a\nb", "a.txt/x"}) {
    EXPECT_EQ(Commit({Small(path, "x")}).status, 400) << path;
  }
  EXPECT_EQ(Send("POST", "/api/models/red/m/commit/main", "nonsense").status, 400);
  EXPECT_EQ(Send("POST", "/api/models/red/m/commit/branch", "").status, 404);
  EXPECT_EQ(Send("POST", "/api/models/red/m/commit/main", std::string(33 << 20, ' ')).status, 413);
}

}  // namespace
}  // namespace offshoot
