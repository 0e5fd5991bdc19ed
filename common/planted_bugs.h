// Mistakes that can be planted in the product's code, to see that the simulation finds them
// (tests/sim). Only the simulation's own build of that code has the switches
// (OFFSHOOT_PLANTED_BUGS); everywhere else Planted is false while compiling, and what it guards is
// not there. `grep -rn Planted coordinator worker` lists every place.
#pragma once

namespace offshoot {

enum class PlantedBug {
  kNone,
  kLeaseIgnored,         // a worker that is gone keeps its attempts
  kStalePlanApplied,     // a plan is applied although the world has changed since
  kEffectLost,           // what is to be done after a commit is not stored with it
  kEventRepeated,        // a report that was heard before counts again
  kGangHalfPlaced,       // only the first worker of a gang gets its ranks
  kStaleAttemptCounted,  // what an attempt says after its end counts
  kDeviceSharedBriefly,  // a trainer starts where the one before it is still ending
};

#ifdef OFFSHOOT_PLANTED_BUGS
bool Planted(PlantedBug bug);  // is it on in the simulation that this thread runs?
#else
constexpr bool Planted(PlantedBug) { return false; }
#endif

}  // namespace offshoot
