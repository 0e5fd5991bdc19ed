// The devices of a snapshot while a plan is being made: which fit a shape of job, which are free,
// kept for somebody or about to come free. Used by the scheduler only; for one thread.
//
// The unit is the group: devices of one worker that no job can tell apart. A pool is the groups
// that fit one shape on one kind of device.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "coordinator/scheduler.h"

namespace offshoot {

// What decides where a job fits.
struct Shape {
  JobRequirements requirements;
  std::string device_class;
  std::vector<WorkerId> avoid = {};  // sorted
};

struct Pool {
  std::vector<std::uint32_t> groups;  // in the order of the workers' ids
  std::vector<bool> has_group;        // by group
  int total = 0;                      // the most ranks one gang could have there
  bool any_worker_joins = false;      // the ranks of a gang need not reach each other
};

// Room found for a job: groups and how many devices of each.
using Allotment = std::vector<std::pair<std::uint32_t, int>>;

class Placement {
 public:
  Placement(const ClusterSnapshot& snapshot, absl::Time now);

  // kind: "cuda" or "cpu". Draining workers are left out, and those of no use to a gang of
  // `fewest`.
  Pool MakePool(const Shape& shape, const std::string& kind, int fewest);

  // Room for as many ranks as can be had from `fewest` to `most`; none: nullopt. ends: when the job
  // is sure to be gone; kept devices are only given to one that is gone before they are needed.
  std::optional<Allotment> Find(const Pool& pool, int fewest, int most, absl::Time ends) const;
  // Whether ranks on these workers could be one gang.
  bool MayWorkTogether(const Pool& pool, const std::vector<StartPart>& parts,
                       const Allotment& more) const;
  // Takes the devices; the part with rank 0 first.
  std::vector<StartPart> Take(const Allotment& allotment);

  // Keeps every free device of the pool until then.
  void Keep(const Pool& pool, absl::Time until);
  int FreeIn(const Pool& pool) const;  // kept ones too
  // Devices that come free soon by themselves and that nobody has claimed; claims them.
  bool ClaimComing(const Pool& pool, int needed);
  // Devices of the running job with this index within the pool.
  int DevicesIn(const Pool& pool, std::size_t running) const;

  // When `needed` devices of the pool will be free, counting those that are now. hard: only by ends
  // that are sure.
  absl::Time FreeBy(const Pool& pool, int needed, bool hard) const;

  const std::vector<const SchedulableWorker*>& workers() const { return workers_; }  // by id

 private:
  struct Group {
    std::uint32_t worker = 0;
    std::uint32_t sort = 0;
    int total = 0;
    int free = 0;
    int coming = 0;  // of jobs that are stopping, not claimed
    absl::Time kept_until = absl::InfiniteFuture();
    bool kept = false;
    bool usable = false;  // connected
  };
  // Of a worker, where pools are made: beside each other, since there are many.
  struct WorkerTraits {
    bool draining = false;
    bool joins_gangs = false;
    bool tainted = false;
  };
  // The workers' values of one label, as numbers.
  struct Label {
    absl::flat_hash_map<absl::string_view, int> values;
    std::vector<int> by_worker;  // kNone: it has not got the label
    static constexpr int kNone = -1;
  };
  struct Ending {
    absl::Time at;
    std::size_t running;
  };
  struct SameSort {
    std::size_t operator()(const DeviceSort* sort) const { return absl::HashOf(*sort); }
    bool operator()(const DeviceSort* one, const DeviceSort* other) const { return *one == *other; }
  };

  bool MayUse(const Group& group, absl::Time ends) const {
    return group.usable && group.free > 0 && (!group.kept || ends <= group.kept_until);
  }
  std::optional<Allotment> FindOnOne(const Pool& pool, int most, absl::Time ends) const;
  std::optional<Allotment> FindOnSeveral(const Pool& pool, int fewest, int most,
                                         absl::Time ends) const;
  const Label& LabelOf(const std::string& key);
  std::uint32_t IndexOf(const DeviceSort& sort);
  void AddGroups(std::uint32_t worker);
  void AddRunning(const std::vector<RunningJob>& running);

  const SchedulingPolicy& policy_;
  absl::Time now_;
  std::vector<const SchedulableWorker*> workers_;                       // by id
  std::vector<WorkerTraits> traits_;                                    // by worker
  absl::flat_hash_map<absl::string_view, std::uint32_t> worker_index_;  // by id
  std::vector<const DeviceSort*> sorts_;
  absl::flat_hash_map<const DeviceSort*, std::uint32_t, SameSort, SameSort> sort_index_;
  // By address, to which most sorts are the same already.
  absl::flat_hash_map<const DeviceSort*, std::uint32_t> sort_seen_;
  std::vector<Group> groups_;
  std::vector<std::uint32_t> first_group_;   // of a worker; one more at the end
  std::vector<std::uint32_t> first_device_;  // of a worker; one more at the end
  std::vector<std::uint32_t> device_group_;  // by device
  std::vector<char> taken_;                  // by device
  std::vector<std::uint32_t> first_held_;    // of a running job; one more at the end
  Allotment held_;                           // by running jobs
  std::vector<Ending> expected_;             // by time
  std::vector<Ending> latest_;               // by time
  std::map<std::string, Label> labels_;      // those that somebody asked about
  std::vector<const Label*> locality_;
};

// The device is of the right sort, whatever else runs there.
bool DeviceFits(const DeviceSort& device, const Shape& shape);
bool WorkerFits(const WorkerOffer& offer, const JobRequirements& requirements);

}  // namespace offshoot
