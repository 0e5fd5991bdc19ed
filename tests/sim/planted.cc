#include "tests/sim/planted.h"

namespace offshoot {
namespace {

thread_local PlantedBug planted = PlantedBug::kNone;

}  // namespace

bool Planted(PlantedBug bug) { return planted == bug; }

namespace sim {

PlantBug::PlantBug(PlantedBug bug) { planted = bug; }
PlantBug::~PlantBug() { planted = PlantedBug::kNone; }

}  // namespace sim
}  // namespace offshoot
