#include "trainer/parallel/collective.h"

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "trainer/error.h"
#include "trainer/parallel/process_group.h"

namespace offshoot::trainer {
namespace {

class SingleRank : public Collective {
 public:
  std::int64_t rank() const override { return 0; }
  std::int64_t world_size() const override { return 1; }
  void AllReduceSum(at::Tensor&) override {}
  void Broadcast(at::Tensor&) override {}
  void Barrier() override {}
};

class NoRendezvous : public Rendezvous {
 public:
  std::unique_ptr<Collective> Join(const std::string&) override {
    return std::make_unique<SingleRank>();
  }
};

std::int64_t FromVariable(const char* name, std::int64_t fallback, std::int64_t maximum) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') {
    return fallback;
  }
  std::int64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, failure] = std::from_chars(text, end, value);
  if (failure != std::errc() || stop != end || value < 0 || value > maximum) {
    throw Error(Reason::kBadSpec, std::string("the environment variable ") + name + " is '" + text +
                                      "'; it must be a whole number from 0 to " +
                                      std::to_string(maximum) + ".");
  }
  return value;
}

}  // namespace

RankEnvironment RankEnvironment::FromProcess() {
  RankEnvironment environment;
  environment.rank = FromVariable("RANK", 0, 1 << 20);
  environment.world_size = FromVariable("WORLD_SIZE", 1, 1 << 20);
  environment.local_rank = FromVariable("LOCAL_RANK", 0, 1 << 20);
  environment.master_port = FromVariable("MASTER_PORT", 0, 65535);
  if (const char* address = std::getenv("MASTER_ADDR"); address != nullptr && *address != '\0') {
    environment.master_address = address;
  }
  if (const char* address = std::getenv("OFFSHOOT_RANK_ADDRESS"); address != nullptr) {
    environment.own_address = address;
  }
  if (environment.world_size < 1 || environment.rank >= environment.world_size) {
    throw Error(Reason::kBadSpec, "RANK is " + std::to_string(environment.rank) +
                                      " and WORLD_SIZE is " +
                                      std::to_string(environment.world_size) +
                                      "; ranks count from 0 to WORLD_SIZE - 1.");
  }
  if (const char* exchange = std::getenv("OFFSHOOT_EXCHANGE");
      exchange != nullptr && *exchange != '\0') {
    if (std::strcmp(exchange, "worker") != 0) {
      throw Error(
          Reason::kBadSpec,
          std::string("the environment variable OFFSHOOT_EXCHANGE is '") + exchange +
              "'; unset it, or set it to worker where a worker carries what ranks exchange.");
    }
    environment.by_worker = true;
  }
  if (environment.rank > 0 && environment.master_port == 0 && !environment.by_worker) {
    throw Error(Reason::kBadSpec,
                "RANK is above 0, so MASTER_ADDR and MASTER_PORT must name where rank 0 listens; "
                "torchrun sets them.");
  }
  return environment;
}

std::unique_ptr<Rendezvous> OpenRendezvous(const RankEnvironment& environment,
                                           const std::function<void(std::int64_t)>& on_listening) {
  if (environment.world_size == 1) {
    return std::make_unique<NoRendezvous>();
  }
  return OpenStoreRendezvous(environment, on_listening);
}

std::unique_ptr<Collective> MakeCollective(const RankEnvironment& environment,
                                           const std::string& device,
                                           const std::function<void(std::int64_t)>& on_listening) {
  return OpenRendezvous(environment, on_listening)->Join(device);
}

}  // namespace offshoot::trainer
