// The switches with which a command keeps the base's linear layers in 4 or 8 bits. Pure.
#pragma once

#include "trainer/commands/arguments.h"
#include "trainer/ops/quantisation.h"

namespace offshoot::trainer {

inline ArgumentSpec LoadIn4Bit() {
  return {"load-in-4bit", "", "keep the base's linear layers in NF4, as `load_in_4bit` does"};
}
inline ArgumentSpec LoadIn8Bit() {
  return {"load-in-8bit", "", "keep them in int8, as `load_in_8bit` does"};
}

// Throws UsageError if both are given.
inline Quantisation QuantisationFrom(const Arguments& arguments) {
  const bool four = arguments.Switch("load-in-4bit"), eight = arguments.Switch("load-in-8bit");
  if (four && eight) throw UsageError("give --load-in-4bit or --load-in-8bit, not both.");
  return four ? Quantisation::kNf4 : eight ? Quantisation::kInt8 : Quantisation::kNone;
}

}  // namespace offshoot::trainer
