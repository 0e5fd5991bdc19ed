#include "coordinator/placement.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "absl/hash/hash.h"
#include "absl/strings/ascii.h"

namespace offshoot {
namespace {

// Measured speeds within this ratio are taken for equal.
constexpr double kSpeedRatio = 1.5;

int SpeedTier(double speed) {
  return speed > 0 ? static_cast<int>(std::floor(std::log(speed) / std::log(kSpeedRatio))) : -1000;
}

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

bool DeviceFits(const SchedulableDevice& device, const Shape& shape) {
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

std::size_t Placement::SameClass::operator()(const SchedulableDevice* device) const {
  return absl::HashOf(device->kind, device->model, device->memory_bytes, device->device_class);
}

bool Placement::SameClass::operator()(const SchedulableDevice* one,
                                      const SchedulableDevice* other) const {
  return one->kind == other->kind && one->model == other->model &&
         one->memory_bytes == other->memory_bytes && one->device_class == other->device_class &&
         SpeedTier(one->speed) == SpeedTier(other->speed);
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
  device_group_.resize(workers_.size());
  taken_.resize(workers_.size());
  for (std::uint32_t w = 0; w < workers_.size(); ++w) {
    worker_index_[workers_[w]->id()] = w;
    first_group_.push_back(static_cast<std::uint32_t>(groups_.size()));
    const WorkerOffer& offer = *workers_[w]->offer;
    traits_.push_back({workers_[w]->draining, offer.joins_gangs, !offer.taints.empty()});
    AddGroups(w);
  }
  first_group_.push_back(static_cast<std::uint32_t>(groups_.size()));
  for (const std::string& label : policy_.locality_labels) {
    std::map<std::string, int> values;
    std::vector<int>& places = locality_.emplace_back();
    for (const SchedulableWorker* worker : workers_) {
      const auto it = worker->offer->labels.find(label);
      places.push_back(
          it == worker->offer->labels.end()
              ? -1
              : values.emplace(it->second, static_cast<int>(values.size())).first->second);
    }
  }
  AddRunning(snapshot.running);
}

void Placement::AddGroups(std::uint32_t w) {
  const SchedulableWorker& worker = *workers_[w];
  const std::vector<SchedulableDevice>& devices = worker.offer->devices;
  const auto first = static_cast<std::uint32_t>(groups_.size());
  taken_[w].resize(devices.size());
  device_group_[w].reserve(devices.size());
  for (std::size_t d = 0; d < devices.size(); ++d) {
    std::uint32_t device_class = 0;
    if (d > 0 && SameClass()(&devices[d], &devices[d - 1])) {
      device_class = groups_[device_group_[w].back()].device_class;
    } else {
      const auto [it, is_new] =
          class_index_.try_emplace(&devices[d], static_cast<std::uint32_t>(classes_.size()));
      if (is_new) classes_.push_back(&devices[d]);
      device_class = it->second;
    }
    std::uint32_t g = first;
    while (g < groups_.size() && groups_[g].device_class != device_class) ++g;
    if (g == groups_.size()) {
      Group& group = groups_.emplace_back();
      group.worker = w;
      group.device_class = device_class;
      group.usable = worker.connected && !worker.draining;
      group.speed_tier = SpeedTier(devices[d].speed);
    }
    device_group_[w].push_back(g);
    ++groups_[g].total;
    ++groups_[g].free;
  }
}

void Placement::AddRunning(const std::vector<RunningJob>& running) {
  held_.resize(running.size());
  for (std::size_t r = 0; r < running.size(); ++r) {
    const RunningJob& job = running[r];
    for (const DevicePart& part : job.parts) {
      const auto it = worker_index_.find(part.worker_id);
      if (it == worker_index_.end()) continue;
      for (const int device : part.devices) {
        if (device < 0 || device >= static_cast<int>(device_group_[it->second].size())) continue;
        const std::uint32_t group = device_group_[it->second][static_cast<std::size_t>(device)];
        if (held_[r].empty() || held_[r].back().first != group) {
          held_[r].emplace_back(group, 0);
        }
        ++held_[r].back().second;
        if (!taken_[it->second][static_cast<std::size_t>(device)]) --groups_[group].free;
        taken_[it->second][static_cast<std::size_t>(device)] = true;
        if (job.stopping) ++groups_[group].coming;
      }
    }
    const absl::Time expected = job.stopping ? now_ : std::max(now_, job.expected_end);
    if (expected != absl::InfiniteFuture()) expected_.push_back({expected, r});
    if (job.latest_end != absl::InfiniteFuture()) {
      latest_.push_back({std::max(now_, job.latest_end), r});
    }
  }
  // Of one moment all end together, so their order does not matter.
  const auto by_time = [](const Ending& one, const Ending& other) { return one.at < other.at; };
  std::sort(expected_.begin(), expected_.end(), by_time);
  std::sort(latest_.begin(), latest_.end(), by_time);
}

Pool Placement::MakePool(const Shape& shape, const std::string& kind, int fewest) const {
  Pool pool;
  pool.has_group.resize(groups_.size());
  pool.any_worker_joins = shape.requirements.exchange_artifacts;
  std::vector<bool> fits(classes_.size());
  bool any = false;
  for (std::size_t c = 0; c < classes_.size(); ++c) {
    fits[c] = classes_[c]->kind == kind && DeviceFits(*classes_[c], shape);
    any = any || fits[c];
  }
  if (!any) return pool;
  const bool any_label = !shape.requirements.labels.empty();
  int most_on_one = 0;
  int in_gangs = 0;
  for (std::uint32_t w = 0; w < workers_.size(); ++w) {
    const WorkerTraits& traits = traits_[w];
    if (traits.draining) continue;
    int devices = 0;
    for (std::uint32_t g = first_group_[w]; g < first_group_[w + 1]; ++g) {
      if (fits[groups_[g].device_class]) devices += groups_[g].total;
    }
    // What is neither enough by itself nor part of a gang is of no use.
    const bool joins = pool.any_worker_joins || traits.joins_gangs;
    if (devices == 0 || (!joins && devices < fewest)) continue;
    if (any_label ? !WorkerFits(*workers_[w]->offer, shape.requirements) : traits.tainted) continue;
    if (!shape.avoid.empty() &&
        std::binary_search(shape.avoid.begin(), shape.avoid.end(), workers_[w]->id())) {
      continue;
    }
    for (std::uint32_t g = first_group_[w]; g < first_group_[w + 1]; ++g) {
      if (!fits[groups_[g].device_class]) continue;
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
  for (const std::uint32_t g : pool.groups) {
    const Group& group = groups_[g];
    if (group.free < most || !MayUse(group, ends)) continue;
    if (best != nullptr &&
        std::tuple(-best->speed_tier, best->free) <= std::tuple(-group.speed_tier, group.free)) {
      continue;
    }
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
  for (const std::vector<int>& places : locality_) {
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
    const SchedulableWorker& worker = *workers_[worker_index_.at(part.worker_id)];
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
    for (std::size_t d = 0; d < worker.offer->devices.size() && left > 0; ++d) {
      if (device_group_[group.worker][d] != g || taken_[group.worker][d]) continue;
      taken_[group.worker][d] = true;
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
  for (const auto& [group, count] : held_[running]) {
    if (pool.has_group[group]) devices += count;
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
