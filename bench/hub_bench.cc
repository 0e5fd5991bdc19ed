// Downloads a model from HF_ENDPOINT into HF_HUB_CACHE as a worker does, and says how fast; run by
// bench/run.
#include <iostream>

#include "absl/time/clock.h"
#include "hub/client.h"
#include "hub/download.h"
#include "hub/environment.h"

namespace offshoot {
namespace {

int Main(int argc, char** argv) {
  HubReference reference;
  if (argc != 2 || !ParseHubReference(argv[1], &reference)) {
    std::cerr << "usage: hub_bench org/name[@revision]\n";
    return 2;
  }
  const HubEnvironment environment = ReadHubEnvironment();
  const absl::Time begin = absl::Now();
  const absl::StatusOr<HubSnapshot> snapshot = HubClient(environment, nullptr).Describe(reference);
  absl::Status status = snapshot.status();
  if (status.ok()) {
    status = HubDownloader(environment).Fetch(*snapshot, reference.revision, {});
  }
  if (!status.ok()) {
    std::cerr << status.message() << "\n";
    return 1;
  }
  std::int64_t bytes = 0;
  for (const HubFile& file : snapshot->files) bytes += file.size_bytes;
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
  std::cout << R"({"bytes": )" << bytes << R"(, "seconds": )" << seconds << "}\n";
  return 0;
}

}  // namespace
}  // namespace offshoot

int main(int argc, char** argv) { return offshoot::Main(argc, argv); }
