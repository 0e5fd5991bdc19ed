#include "trainer/parallel/process_group.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <chrono>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef OFFSHOOT_CUDA
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#include <utility>
#include <vector>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

// Ranks load base and data before they join, some from slow disks.
constexpr std::chrono::minutes kRendezvousTimeout{30};
// A rank that hangs is found by its worker long before (`activity` events); this bounds ranks that
// were started by hand.
constexpr std::chrono::minutes kCollectiveTimeout{120};

class ProcessGroup : public Collective {
 public:
  ProcessGroup(c10::intrusive_ptr<c10d::Backend> backend, const RankEnvironment& environment,
               std::string device)
      : backend_(std::move(backend)), environment_(environment), device_(std::move(device)) {}

  std::int64_t rank() const override { return environment_.rank; }
  std::int64_t world_size() const override { return environment_.world_size; }

  void AllReduceSum(at::Tensor& tensor) override {
    Run("summing over the ranks", tensor,
        [this](std::vector<at::Tensor>& list) { return backend_->allreduce(list); });
  }

  void Broadcast(at::Tensor& tensor) override {
    Run("receiving from rank 0", tensor,
        [this](std::vector<at::Tensor>& list) { return backend_->broadcast(list); });
  }

  void Barrier() override {
    at::Tensor token = at::zeros({1}, at::TensorOptions(at::kFloat));
    AllReduceSum(token);
  }

 private:
  // The backend works on its device; a small host tensor makes the detour.
  template <typename Operation>
  void Run(const char* what, at::Tensor& tensor, const Operation& operation) {
    try {
      at::Tensor moved = tensor.to(at::Device(device_));
      std::vector<at::Tensor> list = {moved};
      operation(list)->wait();
      if (!moved.is_same(tensor)) {
        tensor.copy_(moved);
      }
    } catch (const c10::Error& error) {
      throw Lost(what, error.what_without_backtrace());
    } catch (const std::exception& error) {
      throw Lost(what, error.what());
    }
  }

  Error Lost(const std::string& what, const std::string& why) const {
    return Error(Reason::kRankLost, "rank " + std::to_string(rank()) + " of " +
                                        std::to_string(world_size()) + " lost the others while " +
                                        what + ": " + why.substr(0, why.find('\n')) + ".");
  }

  c10::intrusive_ptr<c10d::Backend> backend_;
  const RankEnvironment environment_;
  const std::string device_;
};

Error NotMet(const RankEnvironment& environment, const std::string& why) {
  return Error(Reason::kRankLost,
               "rank " + std::to_string(environment.rank) + " could not meet the others at " +
                   environment.master_address + ":" + std::to_string(environment.master_port) +
                   ": " + why.substr(0, why.find('\n')) + ".");
}

c10::intrusive_ptr<c10d::Backend> MakeGloo(const c10::intrusive_ptr<c10d::Store>& store,
                                           const RankEnvironment& environment) {
  auto options = c10d::ProcessGroupGloo::Options::create(kCollectiveTimeout);
  const bool loopback =
      environment.master_address == "127.0.0.1" || environment.master_address == "localhost";
  const std::string own = !environment.own_address.empty() ? environment.own_address
                          : loopback                       ? "127.0.0.1"
                                                           : "";
  options->devices.push_back(own.empty() ? c10d::ProcessGroupGloo::createDefaultDevice()
                                         : c10d::ProcessGroupGloo::createDeviceForHostname(own));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(
      store, static_cast<int>(environment.rank), static_cast<int>(environment.world_size), options);
}

class StoreRendezvous : public Rendezvous {
 public:
  StoreRendezvous(RankEnvironment environment, c10::intrusive_ptr<c10d::Store> store)
      : environment_(std::move(environment)), store_(std::move(store)) {}

  std::unique_ptr<Collective> Join(const std::string& device) override {
    const bool cuda = device.starts_with("cuda");
#ifndef OFFSHOOT_CUDA
    if (cuda) {
      throw Error(Reason::kBadSpec, "this trainer was built without CUDA, so ranks on " + device +
                                        " cannot be joined; build with -DOFFSHOOT_CUDA=ON.");
    }
#endif
    try {
      c10::intrusive_ptr<c10d::Backend> backend;
#ifdef OFFSHOOT_CUDA
      if (cuda) {
        auto options = c10d::ProcessGroupNCCL::Options::create();
        options->timeout = kCollectiveTimeout;
        backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(
            store_, static_cast<int>(environment_.rank), static_cast<int>(environment_.world_size),
            options);
      }
#endif
      if (!cuda) {
        backend = MakeGloo(store_, environment_);
      }
      return std::make_unique<ProcessGroup>(std::move(backend), environment_, device);
    } catch (const std::exception& error) {
      throw NotMet(environment_, error.what());
    }
  }

 private:
  const RankEnvironment environment_;
  const c10::intrusive_ptr<c10d::Store> store_;
};

}  // namespace

std::unique_ptr<Rendezvous> OpenStoreRendezvous(
    const RankEnvironment& environment, const std::function<void(std::int64_t)>& on_listening) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(environment.master_port);
  options.isServer = environment.rank == 0;
  options.numWorkers = static_cast<std::size_t>(environment.world_size);
  options.timeout = kRendezvousTimeout;
  options.waitWorkers = false;  // the port must be known before the others can come
  try {
    auto store = c10::make_intrusive<c10d::TCPStore>(environment.master_address, options);
    if (environment.rank == 0 && on_listening) {
      on_listening(store->getPort());
    }
    return std::make_unique<StoreRendezvous>(environment, std::move(store));
  } catch (const std::exception& error) {
    throw NotMet(environment, error.what());
  }
}

}  // namespace offshoot::trainer
