// An HTTP server for tests that says exactly what it is told, true or not: one thread, one
// connection at a time, each closed after one answer.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace offshoot {

struct ScriptedRequest {
  std::string method;
  std::string path;   // with the query
  std::string range;  // "", or the value of the Range header
  std::string authorization;
};

class ScriptedServer {
 public:
  // The whole answer, status line and all; "" breaks the connection without one.
  using Answer = std::function<std::string(const ScriptedRequest&)>;

  explicit ScriptedServer(Answer answer);
  ~ScriptedServer();
  std::string endpoint() const;
  std::vector<ScriptedRequest> requests() const;

 private:
  void Serve();
  void Converse(int connection);

  const Answer answer_;
  int listener_ = -1;
  int port_ = 0;
  mutable absl::Mutex mutex_;
  std::vector<ScriptedRequest> requests_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// "HTTP/1.1 200 OK" with Content-Length and the headers ("Name: value\r\n" each).
std::string HttpAnswer(const std::string& status, const std::string& headers,
                       const std::string& body);

}  // namespace offshoot
