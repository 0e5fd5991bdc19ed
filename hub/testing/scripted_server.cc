#include "hub/testing/scripted_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace offshoot {

ScriptedServer::ScriptedServer(Answer answer) : answer_(std::move(answer)) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listener_, 64) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    std::abort();
  }
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Serve(); });
}

ScriptedServer::~ScriptedServer() {
  shutdown(listener_, SHUT_RDWR);
  thread_.join();
  close(listener_);
}

std::string ScriptedServer::endpoint() const { return absl::StrCat("http://127.0.0.1:", port_); }

std::vector<ScriptedRequest> ScriptedServer::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

void ScriptedServer::Serve() {
  while (true) {
    const int connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) return;
    Converse(connection);
    close(connection);
  }
}

void ScriptedServer::Converse(int connection) {
  std::string text;
  char piece[4096];
  while (!absl::StrContains(text, "\r\n\r\n")) {
    const ssize_t got = recv(connection, piece, sizeof(piece), 0);
    if (got <= 0) return;
    text.append(piece, static_cast<std::size_t>(got));
  }
  ScriptedRequest request;
  const std::vector<std::string> lines = absl::StrSplit(text, "\r\n");
  const std::vector<std::string> words = absl::StrSplit(lines[0], ' ');
  request.method = words[0];
  if (words.size() > 1) request.path = words[1];
  for (const std::string& line : lines) {
    if (absl::StartsWithIgnoreCase(line, "range: ")) request.range = line.substr(7);
    if (absl::StartsWithIgnoreCase(line, "authorization: "))
      request.authorization = line.substr(15);
  }
  {
    absl::MutexLock lock(&mutex_);
    requests_.push_back(request);
  }
  const std::string answer = answer_(request);
  std::size_t sent = 0;
  while (sent < answer.size()) {
    const ssize_t wrote =
        send(connection, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
    if (wrote <= 0) return;
    sent += static_cast<std::size_t>(wrote);
  }
  shutdown(connection, SHUT_WR);
  while (recv(connection, piece, sizeof(piece), 0) > 0) {
  }
}

std::string HttpAnswer(const std::string& status, const std::string& headers,
                       const std::string& body) {
  return absl::StrCat("HTTP/1.1 ", status, "\r\n", headers, "Content-Length: ", body.size(),
                      "\r\nConnection: close\r\n\r\n", body);
}

}  // namespace offshoot
