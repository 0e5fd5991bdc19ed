// One HTTP connection at a time, by libcurl, for hubs: bounded headers, bodies, redirects and
// silences; the token goes to the endpoint's own origin only and appears in no message.
//
// Not thread-safe: one client a thread. Send blocks. Proxies come from the environment, as libcurl
// reads them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "hub/environment.h"

namespace offshoot {

struct HttpLimits {
  std::size_t header_bytes = 64 << 10;  // of one answer
  std::size_t body_bytes = 32 << 20;    // of an answer that is kept in memory
  int redirects = 8;
  absl::Duration connect = absl::Seconds(10);
  absl::Duration silence = absl::Seconds(30);  // with less than 1 KiB/s
  absl::Duration total = absl::InfiniteDuration();
};

// A part of a file as the body of a request.
struct HttpUpload {
  std::string path;
  std::int64_t offset = 0;
  std::int64_t size_bytes = 0;
};

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  // Of the endpoint's own answer, when it redirected to another place: there it says what is there.
  std::map<std::string, std::string> endpoint_headers;
  std::string body;  // empty when it was streamed

  std::string Header(const std::string& name) const;  // the endpoint's own first; empty: none
};

struct HttpRequest {
  std::string method = "GET";
  std::string url;
  std::vector<std::string> headers;  // "Name: value"
  std::string body;
  const HttpUpload* upload = nullptr;
  bool with_token = true;
  // Streams the body of a 2xx answer: on_start once with its headers, then on_data. An error ends
  // the request with it.
  std::function<absl::Status(const HttpResponse&)> on_start;
  std::function<absl::Status(absl::string_view)> on_data;
  std::function<bool()> cancelled;  // asked a few times a second
};

class HttpClient {
 public:
  explicit HttpClient(const HubEnvironment& environment, const HttpLimits& limits = {});
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // Any answer with a status is an answer. UNAVAILABLE: no answer, or it broke off (worth another
  // try). FAILED_PRECONDITION: the server does what no hub does. CANCELLED.
  absl::StatusOr<HttpResponse> Send(const HttpRequest& request);

 private:
  struct Transfer;
  absl::Status SendOnce(const HttpRequest& request, const std::string& url, HttpResponse* response,
                        std::string* redirect);

  const std::string origin_;  // of the endpoint
  const std::string token_;
  const std::string ca_file_;
  const HttpLimits limits_;
  void* const curl_;
};

// "https://host:port" of a URL, and the URL without query and user: what may be shown.
std::string OriginOf(absl::string_view url);
std::string ShownUrl(absl::string_view url);
// Percent-encodes what a path of a URL cannot hold; slashes stay.
std::string EncodePath(absl::string_view path);

}  // namespace offshoot
