// Where models with names come from: Hugging Face's environment variables, with the meaning that
// huggingface_hub gives them. Pure but for the token's file; thread-safe.
#pragma once

#include <functional>
#include <string>

#include "absl/strings/string_view.h"

namespace offshoot {

struct HubEnvironment {
  std::string endpoint;  // HF_ENDPOINT without a slash at its end; no user or password in it
  std::string token;     // HF_TOKEN, or the file that `hf auth login` wrote; empty: none
  std::string cache;     // HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub; empty: no home
  std::string ca_file;   // SSL_CERT_FILE, REQUESTS_CA_BUNDLE; empty: the system's
  bool offline = false;  // HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE: nothing is asked of the endpoint
};

using GetVariable = std::function<std::string(const char* name)>;  // empty: not set

std::string VariableOfProcess(const char* name);
HubEnvironment ReadHubEnvironment(const GetVariable& get = VariableOfProcess);

// The name and revision of "org/name@revision"; the revision is "main" when none is said.
struct HubReference {
  std::string repository;
  std::string revision;
  bool operator==(const HubReference&) const = default;
};

// False when text is no org/name[@revision] that could exist on a hub.
bool ParseHubReference(absl::string_view text, HubReference* reference);
bool IsCommit(absl::string_view revision);  // 40 hex digits

}  // namespace offshoot
