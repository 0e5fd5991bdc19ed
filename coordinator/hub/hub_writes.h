// The write side of a model hub's protocol, as huggingface_hub and our own pusher speak it:
//
//   POST /api/repos/create                        a repository of a team
//   POST /api/models/{team}/{name}/preupload/main how each file is to be sent: as a large object
//   POST /{team}/{name}.git/info/lfs/objects/batch  where to send those that are not here
//   PUT  /lfs/objects/{oid}?...                   the bytes; the URL is signed, no token is asked
//   POST /lfs/complete/{oid}?...                  after the last part
//   POST /api/models/{team}/{name}/commit/main    the files that make the new revision
//   POST /api/validate-yaml                       whether a card is well: always
//
// What is pushed becomes a registered base model TEAM/NAME of that team (a revision of it with each
// commit, TEAM/NAME@COMMIT). Bytes are artifacts: they appear whole and with the digest they were
// announced with, or not at all; a commit names only what is there. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/artifacts.h"
#include "coordinator/http_server.h"
#include "coordinator/hub/catalog.h"
#include "coordinator/records.h"

namespace offshoot {

class HubWrites {
 public:
  // Whether whoever sends this Authorization header may push: the team it is confined to, or "" for
  // any. As HubPages has it.
  using Authorise = std::function<absl::StatusOr<std::string>(const std::string& authorization)>;
  // Puts a model into the registry; calls done from any thread.
  using Register = std::function<void(BaseModelRecord, std::function<void(const absl::Status&)>)>;

  struct Options {
    bool tls = false;                    // how our own URLs begin
    std::int64_t part_bytes = 64 << 20;  // larger files are sent in parts
    absl::Duration url_lifetime = absl::Hours(12);
  };

  // authorise: empty where identity is off. catalog and artifacts outlive this.
  HubWrites(HubCatalog& catalog, ArtifactDirectory& artifacts, Register register_model,
            Authorise authorise, Options options);

  // For POST and PUT.
  WebReception Receive(const WebRequest& request);

 private:
  class JsonBody;
  class ObjectBody;
  struct Call;  // what a request asks for, and by whom

  WebReception ReceiveObject(const WebRequest& request, const std::string& oid);
  WebReply Answer(const Call& call, const std::string& body);
  WebReply Create(const Call& call, const std::string& body);
  WebReply Preupload(const std::string& body) const;
  WebReply Batch(const Call& call, const std::string& body);
  WebReply Complete(const Call& call) const;
  WebReply Commit(const Call& call, const std::string& body);
  absl::Status RegisterAndWait(const BaseModelRecord& model);
  absl::StatusOr<std::vector<FileEntry>> Current(const std::string& repository);
  std::string SignedQuery(const std::string& oid, std::int64_t size_bytes, std::int64_t part) const;
  // Size and part of a signed URL; nothing if it is not ours, or old.
  std::optional<std::pair<std::int64_t, std::int64_t>> CheckQuery(const WebRequest& request,
                                                                  const std::string& oid) const;

  HubCatalog& catalog_;
  ArtifactDirectory& artifacts_;
  const Register register_;
  const Authorise authorise_;
  const Options options_;
  const std::string secret_;                 // of this process: signed URLs end with it
  std::atomic<std::int64_t> held_bytes_{0};  // of bodies kept in memory
  absl::Mutex mutex_;
  std::set<std::string> committing_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace offshoot
