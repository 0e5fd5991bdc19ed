// What ranks do together that cannot reach each other: each writes its part of a sum as a file and
// announces it, and whoever started the ranks (the worker) carries the files between them.
//
//   AllReduceSum ──▶ own file ──announce──▶ worker ⋯ worker ──await──▶ everybody's files ──▶ sum
//
// Every call is a round, numbered from 1. A rank sums a round's files in the order of the ranks, so
// that all ranks come to the same bits. A rank that has all files of a round knows that every rank
// has written to it, so has read the round before: the files of that one are removed then.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "trainer/parallel/collective.h"

namespace offshoot::trainer {

struct ExchangeLine {
  // This rank's file of the round is there.
  std::function<void(std::int64_t round, const std::string& path)> announce;
  // Blocks until that rank's file of the round is here, and returns its path; of the rank itself:
  // until the others can have it. Empty: it will not come.
  std::function<std::string(std::int64_t round, std::int64_t rank)> await;
};

// Tensors of float32 and float64. directory: where this rank writes; it is made. Calls throw
// Error(kRankLost) when the line says that a file will not come, Error(kInternal) naming a file
// that is not what it should be, Error(kDiskFull).
std::unique_ptr<Collective> MakeFileExchange(const RankEnvironment& environment,
                                             std::string directory, ExchangeLine line);

}  // namespace offshoot::trainer
