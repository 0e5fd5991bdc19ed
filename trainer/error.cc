#include "trainer/error.h"

namespace offshoot::trainer {

const char* ReasonCode(Reason reason) {
  switch (reason) {
    case Reason::kBadSpec:
      return "BAD_SPEC";
    case Reason::kBadData:
      return "BAD_DATA";
    case Reason::kBadModel:
      return "BAD_MODEL";
    case Reason::kNanLoss:
      return "NAN_LOSS";
    case Reason::kOutOfMemory:
      return "OUT_OF_MEMORY";
    case Reason::kDiskFull:
      return "DISK_FULL";
    case Reason::kRankLost:
      return "RANK_LOST";
    case Reason::kInternal:
      return "INTERNAL";
  }
  return "INTERNAL";
}

}  // namespace offshoot::trainer
