// What follows the last step: the final evaluation of derivative and base on the same held-out
// rows, an answer of both to the same prompt, the exported files, and the logits that a fresh
// process will compare with what it loads from them. Collective: every rank calls it; rank 0
// writes.
#pragma once

#include "trainer/prepared_job.h"
#include "trainer/training_job.h"

namespace offshoot::trainer {

// False if a stop was requested before the result was complete; nothing half-written is left then.
bool Publish(const JobParts& parts, const PreparedJob& prepared, TrainingJob& job,
             const TrainOutcome& outcome);

}  // namespace offshoot::trainer
