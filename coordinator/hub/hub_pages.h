// The read side of a model hub's protocol, as huggingface_hub asks it:
//
//   GET      /api/models/{id}[/revision/{rev}]                  the commit and the names of files
//   GET      /api/models/{id}/tree/{rev}[/{path}][?recursive]   files with sizes and digests
//   GET HEAD /{id}/resolve/{rev}/{path}                         a file, with X-Repo-Commit and ETag
//
// A path is only ever compared with the paths in the registry, never given to the file system.
// Thread-safe.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/http_server.h"
#include "coordinator/hub/catalog.h"

namespace offshoot {

class HubPages {
 public:
  // Whether whoever sends this Authorization header ("" for none) may read models: the team whose
  // derivatives it is confined to, or "" for all.
  using Authorise = std::function<absl::StatusOr<std::string>(const std::string& authorization)>;

  // authorise: empty where identity is off. catalog outlives the pages.
  explicit HubPages(HubCatalog& catalog, Authorise authorise = nullptr)
      : catalog_(catalog), authorise_(std::move(authorise)) {}

  // True when the path is one of a hub's; then *reply is the answer.
  bool Answer(const WebRequest& request, WebReply* reply);

 private:
  WebReply AnswerModel(const CatalogSnapshot& snapshot) const;
  WebReply AnswerTree(const CatalogSnapshot& snapshot, const std::string& folder,
                      bool recursive) const;
  WebReply AnswerFile(const CatalogSnapshot& snapshot, const std::string& path) const;

  HubCatalog& catalog_;
  const Authorise authorise_;
};

// What a hub's path asks for. Pure.
struct HubPath {
  enum class Kind { kNone, kModel, kTree, kFile } kind = Kind::kNone;
  std::string repository;
  std::string revision = "main";
  std::string path;  // of a file or a folder; "" for the top
  bool operator==(const HubPath&) const = default;
};
HubPath ParseHubPath(const std::string& path);

}  // namespace offshoot
