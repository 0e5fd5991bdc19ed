#include "coordinator/placement.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "absl/strings/ascii.h"

namespace offshoot {
namespace {

constexpr int kNowhere = -2;  // a label's value that no worker has

// The whole name, or words of it: H100 is an "NVIDIA H100 80GB HBM3".
bool IsModel(absl::string_view model, absl::string_view wanted) {
  const auto is_edge = [&](std::size_t at) {
    return at >= model.size() || !absl::ascii_isalnum(static_cast<unsigned char>(model[at]));
  };
  for (std::size_t at = model.find(wanted); at != model.npos; at = model.find(wanted, at + 1)) {
    if ((at == 0 || is_edge(at - 1)) && is_edge(at + wanted.size())) return true;
  }
  return false;
}

}  // namespace

bool DeviceFits(const DeviceSort& device, const Shape& shape) {
  const JobRequirements& requirements = shape.requirements;
  if (!requirements.device_kind.empty() && device.kind != requirements.device_kind) return false;
  if (device.memory_bytes < requirements.min_memory_bytes) return false;
  // Of a device whose memory is not known, nothing can be said.
  if (device.memory_bytes > 0 && device.memory_bytes < requirements.memory.On(device.kind).bytes) {
    return false;
  }
  if (!shape.device_class.empty() && device.device_class != shape.device_class) return false;
  if (requirements.gpu_models.empty()) return true;
  return device.kind == "cuda" &&
         std::any_of(requirements.gpu_models.begin(), requirements.gpu_models.end(),
                     [&](const std::string& model) { return IsModel(device.model, model); });
}

bool WorkerFits(const WorkerOffer& offer, const JobRequirements& requirements) {
  for (const auto& [key, value] : requirements.labels) {
    const auto label = offer.labels.find(key);
    if (label != offer.labels.end() && label->second == value) continue;
    const auto taint = offer.taints.find(key);
    if (taint == offer.taints.end() || taint->second != value) return false;
  }
  for (const auto& [key, value] : offer.taints) {
    const auto asked = requirements.labels.find(key);
    if (asked == requirements.labels.end() || asked->second != value) return false;
  }
  return true;
}

Placement::Placement(const ClusterSnapshot& snapshot, absl::Time now)
    : policy_(*snapshot.policy), now_(now) {
  workers_.reserve(snapshot.workers.size());
  for (const SchedulableWorker& worker : snapshot.workers) workers_.push_back(&worker);
  const auto by_id = [](const SchedulableWorker* one, const SchedulableWorker* other) {
    return one->id() < other->id();
  };
  if (!std::is_sorted(workers_.begin(), workers_.end(), by_id)) {
    std::sort(workers_.begin(), workers_.end(), by_id);
  }
  worker_index_.reserve(workers_.size());
  for (std::uint32_t w = 0; w < workers_.size(); ++w) {
    worker_index_[workers_[w]->id().value()] = w;
    first_group_.push_back(static_cast<std::uint32_t>(groups_.size()));
    const WorkerOffer& offer = *workers_[w]->offer;
    traits_.push_back({workers_[w]->draining, offer.joins_gangs, !offer.taints.empty()});
    AddGroups(w);
  }
  first_group_.push_back(static_cast<std::uint32_t>(groups_.size()));
  first_device_.push_back(static_cast<std::uint32_t>(device_group_.size()));
  taken_.resize(device_group_.size());
  for (const std::string& label : policy_.locality_labels) locality_.push_back(&LabelOf(label));
  AddRunning(snapshot.running);
}

const Placement::Label& Placement::LabelOf(const std::string& key) {
  const auto [it, is_new] = labels_.try_emplace(key);
  Label& label = it->second;
  if (!is_new) return label;
  label.by_worker.reserve(workers_.size());
  for (const SchedulableWorker* worker : workers_) {
    const auto has = worker->offer->labels.find(key);
    label.by_worker.push_back(
        has == worker->offer->labels.end()
            ? Label::kNone
            : label.values.try_emplace(has->second, static_cast<int>(label.values.size()))
                  .first->second);
  }
  return label;
}

std::uint32_t Placement::IndexOf(const DeviceSort& sort) {
  const auto [seen, is_new_address] = sort_seen_.try_emplace(&sort);
  if (!is_new_address) return seen->second;
  const auto [it, is_new] =
      sort_index_.try_emplace(&sort, static_cast<std::uint32_t>(sorts_.size()));
  if (is_new) sorts_.push_back(&sort);
  return seen->second = it->second;
}

void Placement::AddGroups(std::uint32_t w) {
  const SchedulableWorker& worker = *workers_[w];
  const std::vector<SchedulableDevice>& devices = worker.offer->devices;
  const auto first = static_cast<std::uint32_t>(groups_.size());
  first_device_.push_back(static_cast<std::uint32_t>(device_group_.size()));
  for (std::size_t d = 0; d < devices.size(); ++d) {
    const std::uint32_t sort = d > 0 && devices[d].sort == devices[d - 1].sort
                                   ? groups_[device_group_.back()].sort
                                   : IndexOf(*devices[d].sort);
    std::uint32_t g = first;
    while (g < groups_.size() && groups_[g].sort != sort) ++g;
    if (g == groups_.size()) {
      Group& group = groups_.emplace_back();
      group.worker = w;
      group.sort = sort;
      group.usable = worker.connected && !worker.draining;
    }
    device_group_.push_back(g);
    ++groups_[g].total;
    ++groups_[g].free;
  }
}

void Placement::AddRunning(const std::vector<RunningJob>& running) {
  first_held_.reserve(running.size() + 1);
  held_.reserve(running.size());
  for (std::size_t r = 0; r < running.size(); ++r) {
    const RunningJob& job = running[r];
    first_held_.push_back(static_cast<std::uint32_t>(held_.size()));
    for (const DevicePart& part : job.parts) {
      const auto it = worker_index_.find(part.worker_id.value());
      if (it == worker_index_.end()) continue;
      const std::uint32_t first = first_device_[it->second];
      const auto devices = static_cast<int>(first_device_[it->second + 1] - first);
      for (const int device : part.devices) {
        if (device < 0 || device >= devices) continue;
        const std::uint32_t d = first + static_cast<std::uint32_t>(device);
        const std::uint32_t group = device_group_[d];
        if (held_.size() == first_held_[r] || held_.back().first != group) {
          held_.emplace_back(group, 0);
        }
        ++held_.back().second;
        if (!taken_[d]) --groups_[group].free;
        taken_[d] = true;
        if (job.stopping) ++groups_[group].coming;
      }
    }
    const absl::Time expected = job.stopping ? now_ : std::max(now_, job.expected_end);
    if (expected != absl::InfiniteFuture()) expected_.push_back({expected, r});
    if (job.latest_end != absl::InfiniteFuture()) {
      latest_.push_back({std::max(now_, job.latest_end), r});
    }
  }
  first_held_.push_back(static_cast<std::uint32_t>(held_.size()));
  // Of one moment all end together, so their order does not matter.
  const auto by_time = [](const Ending& one, const Ending& other) { return one.at < other.at; };
  std::sort(expected_.begin(), expected_.end(), by_time);
  std::sort(latest_.begin(), latest_.end(), by_time);
}

Pool Placement::MakePool(const Shape& shape, const std::string& kind, int fewest) {
  Pool pool;
  pool.has_group.resize(groups_.size());
  pool.any_worker_joins = shape.requirements.exchange_artifacts;
  std::vector<bool> fits(sorts_.size());
  bool any = false;
  for (std::size_t s = 0; s < sorts_.size(); ++s) {
    fits[s] = sorts_[s]->kind == kind && DeviceFits(*sorts_[s], shape);
    any = any || fits[s];
  }
  if (!any) return pool;
  std::vector<std::pair<const Label*, int>> wanted;
  for (const auto& [key, value] : shape.requirements.labels) {
    const Label& label = LabelOf(key);
    const auto it = label.values.find(value);
    wanted.emplace_back(&label, it == label.values.end() ? kNowhere : it->second);
  }
  int most_on_one = 0;
  int in_gangs = 0;
  for (std::uint32_t w = 0; w < workers_.size(); ++w) {
    const WorkerTraits& traits = traits_[w];
    if (traits.draining) continue;
    int devices = 0;
    for (std::uint32_t g = first_group_[w]; g < first_group_[w + 1]; ++g) {
      if (fits[groups_[g].sort]) devices += groups_[g].total;
    }
    // What is neither enough by itself nor part of a gang is of no use.
    const bool joins = pool.any_worker_joins || traits.joins_gangs;
    if (devices == 0 || (!joins && devices < fewest)) continue;
    if (traits.tainted ? !WorkerFits(*workers_[w]->offer, shape.requirements)
                       : !std::all_of(wanted.begin(), wanted.end(), [w](const auto& label) {
                           return label.first->by_worker[w] == label.second;
                         })) {
      continue;
    }
    if (!shape.avoid.empty() &&
        std::binary_search(shape.avoid.begin(), shape.avoid.end(), workers_[w]->id())) {
      continue;
    }
    for (std::uint32_t g = first_group_[w]; g < first_group_[w + 1]; ++g) {
      if (!fits[groups_[g].sort]) continue;
      pool.groups.push_back(g);
      pool.has_group[g] = true;
    }
    most_on_one = std::max(most_on_one, devices);
    if (joins) in_gangs += devices;
  }
  pool.total = std::max(most_on_one, in_gangs);
  return pool;
}

std::optional<Allotment> Placement::Find(const Pool& pool, int fewest, int most,
                                         absl::Time ends) const {
  if (auto found = FindOnOne(pool, most, ends)) return found;
  if (most > 1) return FindOnSeveral(pool, fewest, most, ends);
  return std::nullopt;
}

std::optional<Allotment> Placement::FindOnOne(const Pool& pool, int most, absl::Time ends) const {
  const Group* best = nullptr;
  std::uint32_t best_index = 0;
  const auto rank = [this](const Group& group) {
    return std::tuple(-sorts_[group.sort]->speed_tier, group.free);
  };
  for (const std::uint32_t g : pool.groups) {
    const Group& group = groups_[g];
    if (group.free < most || !MayUse(group, ends)) continue;
    if (best != nullptr && rank(*best) <= rank(group)) continue;
    best = &group;
    best_index = g;
  }
  if (best == nullptr) return std::nullopt;
  return Allotment{{best_index, most}};
}

std::optional<Allotment> Placement::FindOnSeveral(const Pool& pool, int fewest, int most,
                                                  absl::Time ends) const {
  std::vector<std::uint32_t> rooms;
  int total = 0;
  for (const std::uint32_t g : pool.groups) {
    const bool joins = pool.any_worker_joins || traits_[groups_[g].worker].joins_gangs;
    if (!joins || !MayUse(groups_[g], ends)) continue;
    rooms.push_back(g);
    total += groups_[g].free;
  }
  if (total < fewest) return std::nullopt;
  int left = std::min(most, total);
  for (const Label* label : locality_) {
    const std::vector<int>& places = label->by_worker;
    std::map<int, int> room;  // by value of the label
    for (const std::uint32_t g : rooms) room[places[groups_[g].worker]] += groups_[g].free;
    int best = -1;
    for (const auto& [value, free] : room) {
      if (value >= 0 && free >= left && (best < 0 || free < room[best])) best = value;
    }
    if (best < 0) continue;
    std::erase_if(rooms, [&](std::uint32_t g) { return places[groups_[g].worker] != best; });
    break;
  }
  // The emptiest places until little is left, which goes to the fullest that has room for it.
  std::sort(rooms.begin(), rooms.end(), [&](std::uint32_t one, std::uint32_t other) {
    return std::tuple(-groups_[one].free, one) < std::tuple(-groups_[other].free, other);
  });
  Allotment allotment;
  std::size_t next = 0;
  while (left > 0) {
    std::size_t chosen = next;
    if (groups_[rooms[next]].free >= left) {
      while (chosen + 1 < rooms.size() && groups_[rooms[chosen + 1]].free >= left) ++chosen;
      while (chosen > next && groups_[rooms[chosen - 1]].free == groups_[rooms[chosen]].free) {
        --chosen;  // of equal ones the first
      }
    }
    const int taken = std::min(groups_[rooms[chosen]].free, left);
    allotment.emplace_back(rooms[chosen], taken);
    left -= taken;
    ++next;
  }
  return allotment;
}

bool Placement::MayWorkTogether(const Pool& pool, const std::vector<StartPart>& parts,
                                const Allotment& more) const {
  if (pool.any_worker_joins) return true;
  bool all_join = true;
  bool all_on_first = true;
  for (const StartPart& part : parts) {
    const SchedulableWorker& worker = *workers_[worker_index_.at(part.worker_id.value())];
    all_join = all_join && worker.offer->joins_gangs;
    all_on_first = all_on_first && part.worker_id == parts.front().worker_id;
  }
  for (const auto& [group, count] : more) {
    const SchedulableWorker& worker = *workers_[groups_[group].worker];
    all_join = all_join && worker.offer->joins_gangs;
    all_on_first = all_on_first && worker.id() == parts.front().worker_id;
  }
  return all_join || all_on_first;
}

std::vector<StartPart> Placement::Take(const Allotment& allotment) {
  std::vector<StartPart> parts;
  for (const auto& [g, count] : allotment) {
    Group& group = groups_[g];
    const SchedulableWorker& worker = *workers_[group.worker];
    auto part = std::find_if(parts.begin(), parts.end(), [&](const StartPart& other) {
      return other.worker_id == worker.id();
    });
    if (part == parts.end()) part = parts.insert(parts.end(), StartPart{worker.id(), {}});
    int left = count;
    const std::uint32_t first = first_device_[group.worker];
    for (std::uint32_t d = 0; d < worker.offer->devices.size() && left > 0; ++d) {
      if (device_group_[first + d] != g || taken_[first + d]) continue;
      taken_[first + d] = true;
      part->device_ids.push_back(worker.offer->devices[d].device_id);
      --left;
    }
    group.free -= count;
  }
  return parts;
}

void Placement::Keep(const Pool& pool, absl::Time until) {
  for (const std::uint32_t g : pool.groups) {
    Group& group = groups_[g];
    group.kept_until = group.kept ? std::min(group.kept_until, until) : until;
    group.kept = true;
  }
}

int Placement::FreeIn(const Pool& pool) const {
  int free = 0;
  for (const std::uint32_t g : pool.groups) free += groups_[g].usable ? groups_[g].free : 0;
  return free;
}

bool Placement::ClaimComing(const Pool& pool, int needed) {
  int missing = needed - FreeIn(pool);
  int coming = 0;
  for (const std::uint32_t g : pool.groups) coming += groups_[g].coming;
  if (coming < missing) return false;
  for (const std::uint32_t g : pool.groups) {
    const int claimed = std::min(groups_[g].coming, std::max(missing, 0));
    groups_[g].coming -= claimed;
    missing -= claimed;
  }
  return true;
}

int Placement::DevicesIn(const Pool& pool, std::size_t running) const {
  int devices = 0;
  for (std::uint32_t i = first_held_[running]; i < first_held_[running + 1]; ++i) {
    if (pool.has_group[held_[i].first]) devices += held_[i].second;
  }
  return devices;
}

absl::Time Placement::FreeBy(const Pool& pool, int needed, bool hard) const {
  int free = FreeIn(pool);
  if (free >= needed) return now_;
  for (const Ending& ending : hard ? latest_ : expected_) {
    free += DevicesIn(pool, ending.running);
    if (free >= needed) return ending.at;
  }
  return absl::InfiniteFuture();
}

}  // namespace offshoot
