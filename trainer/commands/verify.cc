// verify: a fresh process reads the exported files back and compares.

#include <ATen/Parallel.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/export/verification.h"
#include "trainer/prepared_job.h"

namespace offshoot::trainer {
namespace {

int Verify(const Arguments& arguments) {
  SetThreads(arguments.Integer("threads", 1, 4096));
  CheckDevice(arguments.Text("device"));
  VerificationRequest request;
  request.result_directory = arguments.Text("result");
  request.base_path = arguments.Text("base");
  request.device = arguments.Text("device");
  request.reference_path =
      arguments.Has("reference")
          ? arguments.Text("reference")
          : (std::filesystem::absolute(request.result_directory) / ".." / "reference.safetensors")
                .lexically_normal()
                .string();
  const VerificationReport report = VerifyDerivative(request);
  std::printf("relative difference from the trained model's logits: base %.3g, adapter %.3g",
              report.base_distance, report.adapter_distance);
  if (report.merged_distance >= 0) std::printf(", merged %.3g", report.merged_distance);
  if (report.gguf_distance >= 0) std::printf(", GGUF %.3g", report.gguf_distance);
  std::printf("\n");
  return kExitDone;
}

}  // namespace

int RunVerify(const std::vector<std::string>& words) {
  Arguments arguments(
      "verify", "compares exported files, read back from disk, with the trained model's logits",
      {{"result", "DIR", "the derivative", true},
       {"base", "PATH", "its base model", true},
       {"reference", "FILE",
        "the logits to compare with (default: reference.safetensors beside DIR)"},
       {"device", "DEVICE", "cpu or cuda:0", false, "cpu"},
       {"threads", "N", "CPU threads", false, std::to_string(at::get_num_threads())}});
  if (!arguments.Parse(words)) return kExitDone;
  return Verify(arguments);
}

}  // namespace offshoot::trainer
