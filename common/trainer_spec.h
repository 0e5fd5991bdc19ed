// From a job's spec to the JSON that the trainer reads (docs/trainer-protocol.md). Pure,
// thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/job_spec.h"

namespace offshoot {

struct ResolvedInput {
  std::string path;    // local to the trainer; the worker puts it in place (Input.spec_pointer)
  std::string digest;  // sha256:...
  // A base model that has a name on a hub, and the commit it was pinned to; empty: none.
  std::string repository = {};
  std::string commit = {};
};

struct AttemptLineage {
  std::int32_t number = 0;
  std::string worker;
  std::int64_t first_step = 0;
  std::int64_t last_step = 0;
};

// What a spec does not say: which bytes, which attempt, where.
struct TrainerSpecContext {
  JobId job_id;
  AttemptNumber attempt{0};
  ResolvedInput base_model;
  std::vector<ResolvedInput> datasets;  // as many as the spec's, in its order
  std::optional<ResolvedInput> init_adapter;
  std::optional<std::string> resume_from;
  std::string device = "cpu";
  std::int32_t threads = 0;  // 0: the trainer's own choice
  // Lineage, written into offshoot.json as it is.
  std::string spec_yaml;
  std::string coordinator_version;
  std::vector<AttemptLineage> attempts;
};

std::string TrainerSpecJson(const JobSpec& spec, const TrainerSpecContext& context);

// A digest over the base's, the data's and the part of the spec that preflight's answer depends on:
// two jobs with the same key get the same answer. init_adapter_digest is empty where there is none.
std::string PreflightKey(const JobSpec& spec, const std::string& base_model_digest,
                         const std::vector<std::string>& dataset_digests,
                         const std::string& init_adapter_digest);

}  // namespace offshoot
