// Collectives over LibTorch's c10d process groups: Gloo between CPUs, NCCL between GPUs. Kept apart
// from collective.cc because the c10d headers are slow to compile.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "trainer/parallel/collective.h"

namespace offshoot::trainer {

// world_size > 1. As OpenRendezvous.
std::unique_ptr<Rendezvous> OpenStoreRendezvous(
    const RankEnvironment& environment, const std::function<void(std::int64_t)>& on_listening);

}  // namespace offshoot::trainer
