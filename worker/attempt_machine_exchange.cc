// What the ranks of a gang that cannot reach each other exchange, on its way between the ranks here
// and the coordinator.
#include <nlohmann/json.hpp>
#include <utility>

#include "worker/attempt_machine.h"

namespace offshoot::worker {
namespace {

// Ranks are at most one round apart: older rounds have been read by all.
constexpr std::size_t kKeptRounds = 2;

template <typename Rounds>
void KeepTheNewest(Rounds& rounds) {
  while (rounds.size() > kKeptRounds) rounds.erase(rounds.begin());
}

}  // namespace

bool AttemptMachine::IsOfARankHere(int rank) const {
  return rank >= assignment_.first_rank() &&
         rank < assignment_.first_rank() + assignment_.device_ids_size();
}

v1::Contribution AttemptMachine::MakeContribution(int rank, std::int64_t round,
                                                  const v1::File& file) const {
  v1::Contribution contribution;
  contribution.set_job_id(assignment_.job_id());
  contribution.set_attempt(assignment_.attempt());
  contribution.set_rank(rank);
  contribution.set_round(round);
  *contribution.mutable_file() = file;
  return contribution;
}

std::vector<v1::Contribution> AttemptMachine::contributions() const {
  std::vector<v1::Contribution> all;
  if (fenced_) return all;
  for (const auto& [rank, rounds] : stored_) {
    for (const auto& [round, own] : rounds) {
      all.push_back(MakeContribution(rank, round, own.file));
    }
  }
  return all;
}

void AttemptMachine::Handle(const ContributionStored& stored, absl::Time) {
  if (fenced_) return;
  auto& rounds = stored_[stored.rank];
  rounds[stored.round] = {stored.file, stored.path};
  KeepTheNewest(rounds);
  actions_.push_back(SendContribution{MakeContribution(stored.rank, stored.round, stored.file)});
}

AttemptActions AttemptMachine::OnContribution(const v1::Contribution& contribution) {
  const int rank = contribution.rank();
  const std::int64_t round = contribution.round();
  const bool ranks_may_need_it = phase_ == Phase::kPreparing || phase_ == Phase::kRunning;
  if (!exchanges() || fenced_ || !ranks_may_need_it || rank < 0 ||
      rank >= assignment_.world_size()) {
    return Take();
  }
  if (IsOfARankHere(rank)) {
    const auto& rounds = stored_[rank];
    if (const auto own = rounds.find(round); own != rounds.end()) {
      HandOver(rank, round, own->second.path);
    }
    return Take();
  }
  auto& asked = asked_for_[rank];
  const bool is_old = asked.size() == kKeptRounds && round < *asked.begin();
  if (asked.contains(round) || is_old) return Take();
  asked.insert(round);
  KeepTheNewest(asked);
  actions_.push_back(FetchContribution{rank, round, contribution.file()});
  return Take();
}

void AttemptMachine::Handle(const ContributionFetched& fetched, absl::Time) {
  HandOver(fetched.rank, fetched.round, fetched.path);
}

// To all ranks here, now or when they have been started.
void AttemptMachine::HandOver(int rank, std::int64_t round, const std::string& path) {
  auto& rounds = for_the_ranks_[rank];
  rounds[round] = path;
  KeepTheNewest(rounds);
  if (!launched_ || phase_ != Phase::kRunning) return;
  const nlohmann::json line = {
      {"command", "contribution"}, {"round", round}, {"rank", rank}, {"path", path}};
  actions_.push_back(
      SendControl{line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)});
}

}  // namespace offshoot::worker
