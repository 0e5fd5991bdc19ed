// The coordinator's HTTP port, by GNU libmicrohttpd: a small, bounded server whose answers are
// short texts or parts of files. Files go from the page cache to the socket by sendfile, never
// through this process's memory, unless there is TLS. What it serves, and which requests with a
// body it takes, is the handlers' affair. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot {

struct WebRequest {
  std::string method;  // GET and HEAD go to the handler, POST and PUT to the body handler
  std::string path;    // percent-decoded
  std::function<std::string(const char* name)> header;  // empty: not sent
  std::function<std::string(const char* name)> query;
};

struct WebReply {
  int status = 200;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  // In place of body: a regular file, of which the server sends the range that was asked for. The
  // ETag header decides about If-None-Match and If-Range.
  std::string file_path;
  std::int64_t file_bytes = 0;
};

// Takes the body of one request piece by piece. Used by one thread at a time; destroyed without
// Finish when the client goes away before its end.
class WebBody {
 public:
  virtual ~WebBody() = default;
  // False: no more of it is wanted; Finish says why, and the connection ends.
  virtual bool Append(absl::string_view data) = 0;
  virtual WebReply Finish() = 0;
};

// What a request with a body gets: an answer at once, before its body is read, or somebody to take
// it. The request's functions may not be kept.
struct WebReception {
  WebReply refusal;  // where body is null
  std::unique_ptr<WebBody> body;
};

struct HttpServerOptions {
  int threads = 4;
  int max_connections = 4096;
  int idle_seconds = 60;
  std::size_t connection_memory_bytes = 32 << 10;  // bounds the headers of a request
  std::string tls_certificate_pem;                 // with tls_key_pem; empty: no TLS
  std::string tls_key_pem;
};

class HttpServer {
 public:
  using Handler = std::function<WebReply(const WebRequest&)>;
  using BodyHandler = std::function<WebReception(const WebRequest&)>;

  // address: host:port, port 0 for any. The handler is called from several threads and must not
  // block for long. FAILED_PRECONDITION naming the address when it is taken.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address,
                                                           Handler handler,
                                                           const HttpServerOptions& options = {},
                                                           BodyHandler body_handler = nullptr);
  ~HttpServer();  // ends open connections
  int port() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The bytes that a Range header asks of a file of so many: one range as RFC 9110 has it; several,
// or nonsense, mean the whole. Pure.
struct ByteRange {
  std::int64_t first = 0;
  std::int64_t length = 0;
  enum class Kind { kWhole, kPart, kUnsatisfiable } kind = Kind::kWhole;
  bool operator==(const ByteRange&) const = default;
};
ByteRange ParseByteRange(const std::string& header, std::int64_t file_bytes);

}  // namespace offshoot
