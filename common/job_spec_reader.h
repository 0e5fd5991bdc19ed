// Reads a YAML tree into a JobSpec by the table. A part of job_spec.cc's work, split off for size.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/job_spec.h"
#include "common/yaml_tree.h"

namespace offshoot {

// Dotted keys that the file gives, and their lines.
using GivenKeys = std::map<std::string, int>;

// Takes over what is right and appends a fault for whatever is not.
void ReadJobSpec(const YamlNode& root, JobSpec& spec, GivenKeys& given,
                 std::vector<SpecFault>& faults);

}  // namespace offshoot
