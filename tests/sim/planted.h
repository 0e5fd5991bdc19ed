// Switches on one of the mistakes of common/planted_bugs.h in this thread, as long as it lives.
#pragma once

#include "common/planted_bugs.h"

namespace offshoot::sim {

class PlantBug {
 public:
  explicit PlantBug(PlantedBug bug);
  ~PlantBug();
  PlantBug(const PlantBug&) = delete;
  PlantBug& operator=(const PlantBug&) = delete;
};

}  // namespace offshoot::sim
