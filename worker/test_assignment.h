// Assignments for tests: the fake trainer's script in the place of a spec.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/process.h"
#include "offshoot/v1/cluster.pb.h"

namespace offshoot::worker {

inline std::string FakeTrainerPath() { return ProgramDirectory() + "/worker_fake_trainer"; }

inline v1::Assignment TrainAssignment(const std::string& job_id, int attempt,
                                      std::vector<std::string> script) {
  v1::Assignment assignment;
  assignment.set_job_id(job_id);
  assignment.set_attempt(attempt);
  assignment.set_kind(v1::ASSIGNMENT_KIND_TRAIN);
  assignment.set_trainer_spec_json(
      nlohmann::json{{"base_model", {{"path", "?"}}}, {"script", std::move(script)}}.dump());
  assignment.add_device_ids("cpu:0");
  return assignment;
}

}  // namespace offshoot::worker
