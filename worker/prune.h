// Keeps a directory of files that can be made again below a size.
#pragma once

#include <cstdint>
#include <string>

namespace offshoot::worker {

// Removes the entries of directory that were modified longest ago until the rest is at most
// max_bytes. What is open elsewhere stays readable there. Errors are left for the next time.
void PruneDirectory(const std::string& directory, std::int64_t max_bytes);

}  // namespace offshoot::worker
