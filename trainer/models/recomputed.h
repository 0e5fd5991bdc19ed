// Gradient checkpointing: what is not kept for the backward pass but computed again in it.
#pragma once

namespace offshoot::trainer {

// From the least to the most: each keeps less than the one before and takes longer.
enum class Recomputed {
  kNothing,
  kFeedForward,  // the inside of each layer's feed-forward part: most of what a layer keeps
  kLayers,       // all but each layer's input
};

}  // namespace offshoot::trainer
