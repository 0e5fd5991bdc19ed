// One rank on a GPU: what NCCL needs of a build and a machine, without a second GPU.
#include <ATen/Context.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>

#include "trainer/parallel/process_group.h"

namespace offshoot::trainer {
namespace {

TEST(NcclTest, OneRank_SumsAndBroadcastsTensorsOfDeviceAndHost) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "there is no NVIDIA GPU here";
  }
  std::int64_t port = 0;
  const std::unique_ptr<Rendezvous> rendezvous =
      OpenStoreRendezvous(RankEnvironment{}, [&](std::int64_t chosen) { port = chosen; });
  EXPECT_GT(port, 0);
  const std::unique_ptr<Collective> ranks = rendezvous->Join("cuda:0");
  EXPECT_EQ(ranks->rank(), 0);
  EXPECT_EQ(ranks->world_size(), 1);

  const at::Tensor values = at::tensor({1.5f, -2.0f, 3.25f});
  at::Tensor on_host = values.clone();
  at::Tensor on_device = values.to(at::Device("cuda:0"));
  for (at::Tensor* tensor : {&on_host, &on_device}) {
    ranks->AllReduceSum(*tensor);
    ranks->Broadcast(*tensor);
    EXPECT_TRUE(at::equal(tensor->cpu(), values));
  }
  ranks->Barrier();
}

}  // namespace
}  // namespace offshoot::trainer
