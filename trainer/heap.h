// The process's heap, set up so that its size is what is in use: once, at the start of the program.
#pragma once

namespace offshoot::trainer {

// Before the first tensor and the first thread.
void SetUpHeap();

// Gives back what is free between pieces in use. Takes milliseconds: for the end of a phase that
// frees much, such as loading.
void TrimHeap();

}  // namespace offshoot::trainer
