#include "coordinator/http_server.h"

#include <fcntl.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "coordinator/net_address.h"
#include "coordinator/uncorker.h"

namespace offshoot {
namespace {

constexpr int kBacklog = 256;
constexpr std::size_t kThreadStackBytes = 256 << 10;
constexpr absl::Duration kFullPause = absl::Milliseconds(50);
constexpr std::int64_t kLargeFileBytes = 4 << 20;

std::string OrEmpty(const char* text) { return text == nullptr ? "" : text; }

// A socket that listens; the port that was bound goes to *port.
absl::StatusOr<int> Listen(const NetAddress& address, int* port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen for HTTP on ", address.host, ": ", gai_strerror(error)));
  }
  int descriptor = -1;
  int failed = 0;
  for (const addrinfo* one = found; one != nullptr && descriptor < 0; one = one->ai_next) {
    descriptor = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
    const int yes = 1;
    if (descriptor >= 0 &&
        (setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
         bind(descriptor, one->ai_addr, one->ai_addrlen) != 0 ||
         listen(descriptor, kBacklog) != 0)) {
      failed = errno;
      close(descriptor);
      descriptor = -1;
    }
  }
  freeaddrinfo(found);
  if (descriptor < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen for HTTP on ", FormatNetAddress(address), ": ",
                     ErrnoStatus(failed, "the address is in use or not ours").message()));
  }
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  getsockname(descriptor, reinterpret_cast<sockaddr*>(&bound), &size);
  *port = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                            : reinterpret_cast<sockaddr_in&>(bound).sin_port);
  return descriptor;
}

std::string HeaderOf(const WebReply& reply, absl::string_view name) {
  for (const auto& [key, value] : reply.headers) {
    if (absl::EqualsIgnoreCase(key, name)) return value;
  }
  return "";
}

// Percent-decoding in place. A NUL stays encoded, or it would cut the path short.
std::size_t Unescape(void*, MHD_Connection*, char* text) {
  char* to = text;
  for (const char* from = text; *from != '\0'; ++from) {
    const auto digit = [](char c) {
      return absl::ascii_isdigit(static_cast<unsigned char>(c))
                 ? c - '0'
                 : absl::ascii_tolower(static_cast<unsigned char>(c)) - 'a' + 10;
    };
    const bool encoded = *from == '%' &&
                         absl::ascii_isxdigit(static_cast<unsigned char>(from[1])) &&
                         absl::ascii_isxdigit(static_cast<unsigned char>(from[2]));
    const int value = encoded ? digit(from[1]) * 16 + digit(from[2]) : 0;
    *to++ = value == 0 ? *from : static_cast<char>(value);
    if (value != 0) from += 2;
  }
  *to = '\0';
  return static_cast<std::size_t>(to - text);
}

// Of a request that is refused: read, and dropped.
class RefusedBody : public WebBody {
 public:
  explicit RefusedBody(WebReply reply) : reply_(std::move(reply)) {}
  bool Append(absl::string_view) override { return true; }
  WebReply Finish() override { return std::move(reply_); }

 private:
  WebReply reply_;
};

int SocketOf(MHD_Connection* connection) {
  return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
}

WebReply PlainReply(int status, const std::string& text) {
  return WebReply{status, {{"Content-Type", "text/plain"}}, text + "\n", "", 0};
}

}  // namespace

ByteRange ParseByteRange(const std::string& header, std::int64_t file_bytes) {
  const ByteRange whole{0, file_bytes, ByteRange::Kind::kWhole};
  absl::string_view text = header;
  if (!absl::ConsumePrefix(&text, "bytes=") || absl::StrContains(text, ',')) return whole;
  text = absl::StripAsciiWhitespace(text);
  const std::size_t dash = text.find('-');
  if (dash == absl::string_view::npos) return whole;
  const absl::string_view begin = text.substr(0, dash);
  const absl::string_view end = text.substr(dash + 1);
  const auto number = [](absl::string_view digits, std::int64_t* value) {
    return !digits.empty() && std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit) &&
           absl::SimpleAtoi(digits, value);
  };
  std::int64_t first = 0;
  std::int64_t last = file_bytes - 1;
  if (begin.empty()) {  // the last so many bytes
    std::int64_t suffix = 0;
    if (!number(end, &suffix)) return whole;
    if (suffix == 0) return {0, 0, ByteRange::Kind::kUnsatisfiable};
    first = std::max<std::int64_t>(0, file_bytes - suffix);
  } else {
    if (!number(begin, &first)) return whole;
    if (!end.empty()) {
      if (!number(end, &last) || last < first) return whole;
      last = std::min(last, file_bytes - 1);
    }
  }
  if (first >= file_bytes) return {0, 0, ByteRange::Kind::kUnsatisfiable};
  return {first, last - first + 1, ByteRange::Kind::kPart};
}

class HttpServer::Impl {
 public:
  Impl(Handler handler, const HttpServerOptions& options, BodyHandler body_handler)
      : handler_(std::move(handler)), body_handler_(std::move(body_handler)), options_(options) {}

  absl::Status Start(const std::string& address) {
    ASSIGN_OR_RETURN(const NetAddress where, ParseNetAddress(address));
    ASSIGN_OR_RETURN(const int listener, Listen(where, &port_));
    const bool tls = !options_.tls_key_pem.empty();
    if (tls && MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES) {
      close(listener);
      return absl::FailedPreconditionError(
          "this libmicrohttpd was built without TLS; install one that was, or set no http_listen");
    }
    const unsigned flags = static_cast<unsigned>(MHD_USE_EPOLL | MHD_USE_INTERNAL_POLLING_THREAD |
                                                 MHD_USE_ITC | MHD_USE_NO_LISTEN_SOCKET) |
                           (tls ? static_cast<unsigned>(MHD_USE_TLS) : 0U);
    connections_each_ =
        static_cast<unsigned>((options_.max_connections + options_.threads - 1) / options_.threads);
    // Without TLS the list ends at once.
    const MHD_OptionItem security[] = {
        {tls ? MHD_OPTION_HTTPS_MEM_KEY : MHD_OPTION_END, 0, Pem(options_.tls_key_pem)},
        {MHD_OPTION_HTTPS_MEM_CERT, 0, Pem(options_.tls_certificate_pem)},
        {MHD_OPTION_END, 0, nullptr}};
    for (int i = 0; i < options_.threads; ++i) {
      MHD_Daemon* daemon = MHD_start_daemon(
          flags, 0, nullptr, nullptr, &OnRequest, this, MHD_OPTION_ARRAY, security,
          MHD_OPTION_NOTIFY_COMPLETED, &OnCompleted, this, MHD_OPTION_CONNECTION_LIMIT,
          connections_each_, MHD_OPTION_CONNECTION_TIMEOUT,
          static_cast<unsigned>(options_.idle_seconds), MHD_OPTION_CONNECTION_MEMORY_LIMIT,
          options_.connection_memory_bytes, MHD_OPTION_THREAD_STACK_SIZE, kThreadStackBytes,
          MHD_OPTION_UNESCAPE_CALLBACK, &Unescape, nullptr, MHD_OPTION_END);
      if (daemon == nullptr) {
        close(listener);
        return absl::FailedPreconditionError(
            absl::StrCat("cannot serve HTTP on ", address,
                         tls ? "; are tls_certificate and tls_key what they should be?" : ""));
      }
      daemons_.push_back(daemon);
    }
    listener_ = listener;
    acceptor_ = std::thread([this] { Accept(); });
    return absl::OkStatus();
  }

  ~Impl() {
    stopping_ = true;
    if (acceptor_.joinable()) {
      shutdown(listener_, SHUT_RDWR);  // ends the waiting for the next connection
      acceptor_.join();
      close(listener_);
    }
    for (MHD_Daemon* daemon : daemons_) MHD_stop_daemon(daemon);
  }

  int port() const { return port_; }

 private:
  // One request: whoever takes its body, if anybody does.
  struct Exchange {
    std::unique_ptr<WebBody> body;
    bool sated = false;  // no more of the body is wanted
  };

  // Connections are dealt out evenly: left to themselves, the threads that wait for the next one
  // would let two downloads share one of them while the others are idle.
  void Accept() {
    std::size_t next = 0;
    while (!stopping_) {
      pollfd someone{listener_, POLLIN, 0};
      if (poll(&someone, 1, -1) < 0) continue;
      MHD_Daemon* const daemon = Idlest(next);
      if (daemon == nullptr) {  // who comes now waits in the backlog
        absl::SleepFor(kFullPause);
        continue;
      }
      sockaddr_storage peer{};
      socklen_t size = sizeof(peer);
      const int connection = accept4(listener_, reinterpret_cast<sockaddr*>(&peer), &size,
                                     SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (connection >= 0) {
        // Closes it in any case.
        MHD_add_connection(daemon, connection, reinterpret_cast<sockaddr*>(&peer), size);
      } else if (errno != EINTR && errno != ECONNABORTED) {
        absl::SleepFor(kFullPause);  // no descriptors, say
      }
    }
  }

  // The one with the fewest connections, the next in turn among equals; null: all are full.
  MHD_Daemon* Idlest(std::size_t& next) const {
    MHD_Daemon* best = nullptr;
    unsigned fewest = connections_each_;
    for (std::size_t i = 0; i < daemons_.size(); ++i) {
      MHD_Daemon* const daemon = daemons_[(next + i) % daemons_.size()];
      const unsigned connections =
          MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS)->num_connections;
      if (connections >= fewest) continue;
      fewest = connections;
      best = daemon;
    }
    ++next;
    return best;
  }

  static char* Pem(const std::string& pem) { return const_cast<char*>(pem.c_str()); }

  static void OnCompleted(void* self, MHD_Connection* connection, void** state,
                          MHD_RequestTerminationCode) {
    static_cast<Impl*>(self)->uncorker_.End(SocketOf(connection));
    delete static_cast<Exchange*>(*state);
    *state = nullptr;
  }

  static MHD_Result OnRequest(void* self, MHD_Connection* connection, const char* url,
                              const char* method, const char*, const char* data, std::size_t* size,
                              void** state) {
    return static_cast<Impl*>(self)->OnRequest(connection, url, method, data, size,
                                               reinterpret_cast<Exchange**>(state));
  }

  MHD_Result OnRequest(MHD_Connection* connection, const char* url, const char* method,
                       const char* data, std::size_t* size, Exchange** exchange) {
    const auto lookup = [connection](MHD_ValueKind kind) {
      return [connection, kind](const char* name) {
        return OrEmpty(MHD_lookup_connection_value(connection, kind, name));
      };
    };
    const WebRequest request{method, url, lookup(MHD_HEADER_KIND), lookup(MHD_GET_ARGUMENT_KIND)};
    const bool has_body = request.method == "POST" || request.method == "PUT";
    // The first call comes before the body: an answer to it is possible only where there may be
    // one.
    if (*exchange == nullptr) {
      *exchange = new Exchange;
      if (!has_body || body_handler_ == nullptr) return MHD_YES;
      WebReception reception = body_handler_(request);
      if (reception.body == nullptr) {
        // A client that is still sending would not see an answer that comes with the end of the
        // connection.
        if (!MayDropTheRest(request)) return Send(connection, request, reception.refusal);
        reception.body = std::make_unique<RefusedBody>(std::move(reception.refusal));
      }
      (*exchange)->body = std::move(reception.body);
      return MHD_YES;
    }
    WebBody* const body = (*exchange)->body.get();
    if (*size != 0) {
      if (body != nullptr && !(*exchange)->sated) {
        (*exchange)->sated = !body->Append(absl::string_view(data, *size));
      }
      if ((*exchange)->sated && !MayDropTheRest(request)) return MHD_NO;  // cuts the connection
      *size = 0;
      return MHD_YES;
    }
    if (body != nullptr) return Send(connection, request, body->Finish());
    return Answer(connection, request);
  }

  // An answer cannot be queued while a body arrives: the rest of it is read and dropped if it is
  // small.
  static bool MayDropTheRest(const WebRequest& request) {
    constexpr std::int64_t kMaxDropped = 16 << 20;
    std::int64_t announced = 0;
    return absl::SimpleAtoi(request.header("Content-Length"), &announced) &&
           announced <= kMaxDropped;
  }

  MHD_Result Answer(MHD_Connection* connection, const WebRequest& request) {
    if (request.method != "GET" && request.method != "HEAD") {
      return Send(connection, request, PlainReply(405, "only GET and HEAD are answered here"));
    }
    WebReply reply = handler_(request);
    if (reply.file_path.empty()) return Send(connection, request, reply);
    return SendFile(connection, request, std::move(reply));
  }

  MHD_Result Send(MHD_Connection* connection, const WebRequest&, const WebReply& reply) {
    return Queue(
        connection, reply,
        MHD_create_response_from_buffer(reply.body.size(), const_cast<char*>(reply.body.data()),
                                        MHD_RESPMEM_MUST_COPY));
  }

  MHD_Result SendFile(MHD_Connection* connection, const WebRequest& request, WebReply reply) {
    const std::string etag = HeaderOf(reply, "ETag");
    if (!etag.empty() && request.header("If-None-Match") == etag) {
      return Send(connection, request, WebReply{304, reply.headers, "", "", 0});
    }
    reply.headers.emplace_back("Accept-Ranges", "bytes");
    const std::string if_range = request.header("If-Range");
    const bool ranged = reply.status == 200 && (if_range.empty() || if_range == etag);
    const ByteRange range = ParseByteRange(ranged ? request.header("Range") : "", reply.file_bytes);
    if (range.kind == ByteRange::Kind::kUnsatisfiable) {
      WebReply refused = PlainReply(416, "the file has fewer bytes");
      refused.headers.emplace_back("Content-Range", absl::StrCat("bytes */", reply.file_bytes));
      return Send(connection, request, refused);
    }
    if (range.kind == ByteRange::Kind::kPart) {
      reply.status = 206;
      reply.headers.emplace_back(
          "Content-Range", absl::StrCat("bytes ", range.first, "-", range.first + range.length - 1,
                                        "/", reply.file_bytes));
    }
    const int descriptor = open(reply.file_path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
    struct stat info;
    if (descriptor < 0 || fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode) ||
        info.st_size != reply.file_bytes) {
      if (descriptor >= 0) close(descriptor);
      spdlog::warn("{} is missing or changed: it is not served", reply.file_path);
      return Send(connection, request, PlainReply(500, "the file is missing or was changed"));
    }
    if (range.length >= kLargeFileBytes) uncorker_.Begin(SocketOf(connection));
    // libmicrohttpd closes the descriptor.
    return Queue(connection, reply,
                 MHD_create_response_from_fd_at_offset64(static_cast<std::uint64_t>(range.length),
                                                         descriptor,
                                                         static_cast<std::uint64_t>(range.first)));
  }

  static MHD_Result Queue(MHD_Connection* connection, const WebReply& reply,
                          MHD_Response* response) {
    if (response == nullptr) return MHD_NO;
    for (const auto& [name, value] : reply.headers) {
      MHD_add_response_header(response, name.c_str(), value.c_str());
    }
    const MHD_Result result =
        MHD_queue_response(connection, static_cast<unsigned>(reply.status), response);
    MHD_destroy_response(response);
    return result;
  }

  const Handler handler_;
  const BodyHandler body_handler_;
  const HttpServerOptions options_;
  Uncorker uncorker_;
  unsigned connections_each_ = 0;
  std::vector<MHD_Daemon*> daemons_;  // a thread each
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread acceptor_;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;
int HttpServer::port() const { return impl_->port(); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                              Handler handler,
                                                              const HttpServerOptions& options,
                                                              BodyHandler body_handler) {
  auto impl = std::make_unique<Impl>(std::move(handler), options, std::move(body_handler));
  RETURN_IF_ERROR(impl->Start(address));
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

}  // namespace offshoot
