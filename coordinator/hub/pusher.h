// Copies published derivatives to where their jobs want them (publish.push_to): directories of the
// coordinator and repositories of a hub. Works by itself from the list of derivatives, after they
// are published, in one thread; goes on after a restart; tries passing trouble again.
//
//   DIRECTORY/cursor              newest derivative whose targets are written down
//   DIRECTORY/<derivative>.json   its targets, and what became of each
// Thread-safe.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/job_spec.h"
#include "coordinator/hub/catalog.h"
#include "coordinator/store.h"
#include "hub/environment.h"

namespace offshoot {

struct PusherOptions {
  std::string directory;
  HubEnvironment hub;
  std::vector<std::string> allowed_roots;   // of directories
  std::vector<std::string> hub_namespaces;  // "org", or "*" for any
  absl::Duration poll = absl::Seconds(2);
  absl::Duration first_wait = absl::Seconds(10);
  int tries = 10;
};

struct PushOutcome {
  std::string target;
  std::string state = "pending";  // pending, done, failed
  std::string message;            // why it failed, or the last try did
  std::string commit;             // on a hub
  int tries = 0;
  bool make_private = true;
};

class Pusher {
 public:
  // store and catalog outlive the pusher. Starts its thread.
  Pusher(Store& store, const HubCatalog& catalog, PusherOptions options);
  ~Pusher();  // gives up what runs; it goes on at the next start

  // Whether a job may push where it wants to: INVALID_ARGUMENT naming the target and the remedy.
  absl::Status Check(const JobSpec& spec) const;
  // In the order of push_to; empty: it has no targets, or they are not written down yet.
  std::vector<PushOutcome> Outcomes(const DerivativeId& derivative_id) const;

 private:
  void Run();
  bool Stopping() const;
  absl::Status NoteNewOnes();
  void PushPending();
  // True when every target is settled.
  bool PushOne(const std::string& path);
  absl::Status PushTo(const DerivativeRecord& derivative, PushOutcome* outcome) const;

  Store& store_;
  const HubCatalog& catalog_;
  const PusherOptions options_;
  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
  // Of the thread.
  DerivativeId cursor_;
  std::map<std::string, absl::Time> pending_;  // file of targets -> next try
};

// Puts files into a directory that appears whole; one that is there is replaced only if it is empty
// or holds an earlier derivative. Goes on where it stopped.
absl::Status CopyDerivative(const std::vector<FileEntry>& files,
                            const std::function<std::string(const FileEntry&)>& path_of,
                            const std::string& directory, const std::function<bool()>& cancelled);

}  // namespace offshoot
