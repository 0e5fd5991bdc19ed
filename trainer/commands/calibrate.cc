// calibrate: how fast this device is at what training is made of: matrix products in bfloat16 by
// the trainer's own kernels, and memory read and written. A figure to compare devices with, not a
// benchmark: about a second in all.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/core/Device.h>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/error.h"
#include "trainer/ops/products.h"
#include "trainer/prepared_job.h"
#include "trainer/weights/durable_file.h"

namespace offshoot::trainer {
namespace {

constexpr double kProbeSeconds = 0.4;
constexpr int kMostRounds = 100'000;

// Reading one value back waits for a device that works on its own.
void WaitForDevice(const at::Tensor& tensor) { (void)tensor.flatten()[0].item<double>(); }

// Rounds a second, after one that is not counted.
template <typename F>
double RoundsPerSecond(const at::Tensor& result, const F& round) {
  round();
  WaitForDevice(result);
  const auto start = std::chrono::steady_clock::now();
  int rounds = 0;
  double seconds = 0;
  while (seconds < kProbeSeconds && rounds < kMostRounds) {
    for (int i = 0; i < 4; ++i) round();
    WaitForDevice(result);
    rounds += 4;
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return rounds / seconds;
}

nlohmann::json MeasureSpeed(const std::string& device) {
  const at::NoGradGuard no_grad;
  const at::TensorOptions options = at::TensorOptions(at::kBFloat16).device(c10::Device(device));
  const bool on_cpu = device == "cpu";
  // A layer's product at a micro-batch's size.
  const std::int64_t rows = on_cpu ? 512 : 8192, width = on_cpu ? 1024 : 4096;
  const at::Tensor x = at::ones({rows, width}, options), w = at::ones({width, width}, options);
  const at::Tensor out = at::empty({rows, width}, options);
  const double products = RoundsPerSecond(out, [&] {
    MultiplyInto(out, {{x, w, /*b_transposed=*/true}});
  });
  // Larger than any cache.
  const std::int64_t elements = on_cpu ? 32 << 20 : 256 << 20;
  const at::Tensor from = at::ones({elements}, options), to = at::empty({elements}, options);
  const double copies = RoundsPerSecond(to, [&] { to.copy_(from); });
  return {{"tflops", products * 2.0 * static_cast<double>(rows * width * width) / 1e12},
          {"gigabytes_per_second", copies * 4.0 * static_cast<double>(elements) / 1e9}};
}

}  // namespace

int RunCalibrate(const std::vector<std::string>& words) {
  Arguments arguments("calibrate", "measures how fast a device is, in about a second",
                      {{"device", "NAME", "cpu, or cuda:0", false, "cpu"},
                       {"threads", "N", "of a CPU", false, "1"},
                       {"out", "FILE", "also writes the answer there"}});
  if (!arguments.Parse(words)) {
    return kExitDone;
  }
  CheckDevice(arguments.Text("device"));
  SetThreads(arguments.Integer("threads", 1, 4096));
  const std::string line = MeasureSpeed(arguments.Text("device")).dump() + "\n";
  if (arguments.Has("out")) {
    WriteFileDurably(arguments.Text("out"), line);
  }
  std::fputs(line.c_str(), stdout);
  return kExitDone;
}

}  // namespace offshoot::trainer
