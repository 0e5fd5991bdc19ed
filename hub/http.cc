#include "hub/http.h"

#include <curl/curl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <mutex>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

constexpr long kBufferBytes = 512 << 10;
constexpr long kSlowestBytesPerSecond = 1 << 10;

void InitialiseCurl() {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
}

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
struct ListFreer {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};

}  // namespace

std::string OriginOf(absl::string_view url) {
  const std::size_t scheme = url.find("://");
  if (scheme == absl::string_view::npos) return "";
  const std::size_t end = std::min(url.find_first_of("/?#", scheme + 3), url.size());
  absl::string_view host = url.substr(scheme + 3, end - scheme - 3);
  if (const std::size_t at = host.rfind('@'); at != absl::string_view::npos) {
    host.remove_prefix(at + 1);
  }
  return absl::AsciiStrToLower(
      absl::StrCat(std::string(url.substr(0, scheme)), "://", std::string(host)));
}

std::string ShownUrl(absl::string_view url) {
  const std::size_t scheme = url.find("://");
  const std::size_t path =
      scheme == absl::string_view::npos ? 0 : url.find_first_of("/?#", scheme + 3);
  if (path == absl::string_view::npos) return OriginOf(url);
  const absl::string_view rest = url.substr(path);
  return absl::StrCat(OriginOf(url),
                      rest.substr(0, std::min(rest.find_first_of("?#"), rest.size())));
}

std::string EncodePath(absl::string_view path) {
  std::string encoded;
  for (const unsigned char c : path) {
    if (absl::ascii_isalnum(c) ||
        absl::StrContains("-._~/", absl::string_view(reinterpret_cast<const char*>(&c), 1))) {
      encoded.push_back(static_cast<char>(c));
    } else {
      absl::StrAppend(&encoded, "%", absl::Hex(c, absl::kZeroPad2));
    }
  }
  return encoded;
}

std::string HttpResponse::Header(const std::string& name) const {
  for (const auto* from : {&endpoint_headers, &headers}) {
    if (const auto found = from->find(name); found != from->end()) return found->second;
  }
  return "";
}

// What libcurl's callbacks work on.
struct HttpClient::Transfer {
  const HttpRequest& request;
  const HttpLimits& limits;
  HttpResponse* response;
  std::size_t header_bytes = 0;
  bool streaming = false;
  bool started = false;
  absl::Status failed = absl::OkStatus();
  std::FILE* upload = nullptr;
  std::int64_t upload_left = 0;

  static std::size_t OnHeader(char* data, std::size_t size, std::size_t count, void* self) {
    return static_cast<Transfer*>(self)->TakeHeader(absl::string_view(data, size * count))
               ? size * count
               : 0;
  }
  static std::size_t OnBody(char* data, std::size_t size, std::size_t count, void* self) {
    return static_cast<Transfer*>(self)->TakeBody(absl::string_view(data, size * count))
               ? size * count
               : 0;
  }
  static std::size_t OnRead(char* data, std::size_t size, std::size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    const std::size_t wanted =
        std::min(size * count, static_cast<std::size_t>(transfer.upload_left));
    const std::size_t got = std::fread(data, 1, wanted, transfer.upload);
    transfer.upload_left -= static_cast<std::int64_t>(got);
    if (got < wanted) {
      transfer.failed = absl::FailedPreconditionError(
          absl::StrCat(transfer.request.upload->path, " became shorter while it was sent"));
      return CURL_READFUNC_ABORT;
    }
    return got;
  }
  static int OnSeek(void* self, curl_off_t offset, int origin) {
    auto& transfer = *static_cast<Transfer*>(self);
    if (origin != SEEK_SET) return CURL_SEEKFUNC_CANTSEEK;
    const HttpUpload& upload = *transfer.request.upload;
    if (fseeko(transfer.upload, upload.offset + offset, SEEK_SET) != 0) return CURL_SEEKFUNC_FAIL;
    transfer.upload_left = upload.size_bytes - offset;
    return CURL_SEEKFUNC_OK;
  }
  static int OnProgress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    const auto& transfer = *static_cast<Transfer*>(self);
    return transfer.request.cancelled && transfer.request.cancelled() ? 1 : 0;
  }

  bool TakeHeader(absl::string_view line) {
    header_bytes += line.size();
    if (header_bytes > limits.header_bytes) {
      failed = absl::FailedPreconditionError(
          absl::StrCat(ShownUrl(request.url), " answers with more than ", limits.header_bytes,
                       " bytes of headers, which no hub does; check HF_ENDPOINT"));
      return false;
    }
    if (absl::StartsWith(line, "HTTP/")) {  // also after a 100 Continue
      response->headers.clear();
      const std::vector<absl::string_view> parts = absl::StrSplit(line, ' ');
      response->status = 0;
      if (parts.size() < 2 ||
          !absl::SimpleAtoi(absl::StripAsciiWhitespace(parts[1]), &response->status)) {
        response->status = 0;
      }
      return true;
    }
    const std::size_t colon = line.find(':');
    if (colon == absl::string_view::npos) return true;
    response->headers[absl::AsciiStrToLower(line.substr(0, colon))] =
        std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
    return true;
  }

  bool TakeBody(absl::string_view data) {
    const bool wanted = request.on_data && response->status >= 200 && response->status < 300;
    if (!wanted) {
      if (response->body.size() + data.size() > limits.body_bytes) {
        failed = absl::FailedPreconditionError(
            absl::StrCat(ShownUrl(request.url), " answers with more than ", limits.body_bytes,
                         " bytes where a short answer belongs; check HF_ENDPOINT"));
        return false;
      }
      response->body.append(data.data(), data.size());
      return true;
    }
    failed = Start();
    if (failed.ok()) failed = request.on_data(data);
    return failed.ok();
  }

  absl::Status Start() {
    if (started) return absl::OkStatus();
    started = true;
    return request.on_start ? request.on_start(*response) : absl::OkStatus();
  }
};

HttpClient::HttpClient(const HubEnvironment& environment, const HttpLimits& limits)
    : origin_(OriginOf(environment.endpoint)),
      token_(environment.token),
      ca_file_(environment.ca_file),
      limits_(limits),
      curl_((InitialiseCurl(), curl_easy_init())) {}

HttpClient::~HttpClient() { curl_easy_cleanup(curl_); }

absl::StatusOr<HttpResponse> HttpClient::Send(const HttpRequest& request) {
  if (curl_ == nullptr) return absl::ResourceExhaustedError("libcurl has no memory");
  std::string url = request.url;
  HttpResponse response;
  for (int redirects = 0; redirects <= limits_.redirects; ++redirects) {
    std::string next;
    RETURN_IF_ERROR(SendOnce(request, url, &response, &next));
    if (next.empty()) return response;
    if (!absl::StartsWith(next, "https://") &&
        !(absl::StartsWith(next, "http://") && absl::StartsWith(url, "http://"))) {
      return absl::FailedPreconditionError(
          absl::StrCat(ShownUrl(url), " redirects to ", ShownUrl(next),
                       ", which is less safe than where it was asked"));
    }
    for (const auto& [name, value] : response.headers) {
      if (OriginOf(url) == origin_) response.endpoint_headers.insert({name, value});
    }
    url = std::move(next);
    response.headers.clear();
    response.body.clear();
  }
  return absl::FailedPreconditionError(absl::StrCat(ShownUrl(request.url), " redirects more than ",
                                                    limits_.redirects,
                                                    " times; check HF_ENDPOINT"));
}

absl::Status HttpClient::SendOnce(const HttpRequest& request, const std::string& url,
                                  HttpResponse* response, std::string* redirect) {
  CURL* curl = curl_;
  curl_easy_reset(curl);
  Transfer transfer{request, limits_, response};
  curl_slist* raw = nullptr;
  for (const std::string& header : request.headers) raw = curl_slist_append(raw, header.c_str());
  if (request.with_token && !token_.empty() && OriginOf(url) == origin_) {
    raw = curl_slist_append(raw, absl::StrCat("Authorization: Bearer ", token_).c_str());
  }
  raw = curl_slist_append(raw, "Expect:");
  const std::unique_ptr<curl_slist, ListFreer> headers(raw);
  std::unique_ptr<std::FILE, FileCloser> file;
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "offshoot/" OFFSHOOT_VERSION);
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, kBufferBytes);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, absl::ToInt64Milliseconds(limits_.connect));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, kSlowestBytesPerSecond);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, absl::ToInt64Seconds(limits_.silence));
  if (limits_.total != absl::InfiniteDuration()) {
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, absl::ToInt64Milliseconds(limits_.total));
  }
  if (!ca_file_.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, ca_file_.c_str());
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &Transfer::OnHeader);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &Transfer::OnBody);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &Transfer::OnProgress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &transfer);
  if (request.upload != nullptr) {
    file.reset(std::fopen(request.upload->path.c_str(), "rbe"));
    if (file == nullptr || fseeko(file.get(), request.upload->offset, SEEK_SET) != 0) {
      return ErrnoStatus(errno, absl::StrCat("cannot read ", request.upload->path));
    }
    transfer.upload = file.get();
    transfer.upload_left = request.upload->size_bytes;
    curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(curl, CURLOPT_READFUNCTION, &Transfer::OnRead);
    curl_easy_setopt(curl, CURLOPT_READDATA, &transfer);
    curl_easy_setopt(curl, CURLOPT_SEEKFUNCTION, &Transfer::OnSeek);
    curl_easy_setopt(curl, CURLOPT_SEEKDATA, &transfer);
    curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE,
                     static_cast<curl_off_t>(request.upload->size_bytes));
  } else if (request.method == "HEAD") {
    curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
  } else if (request.method != "GET") {
    curl_easy_setopt(curl, CURLOPT_POST, 1L);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request.body.data());
  }
  if (request.method != "HEAD" && request.method != "GET") {
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  }
  const CURLcode code = curl_easy_perform(curl);
  RETURN_IF_ERROR(transfer.failed);
  if (code == CURLE_ABORTED_BY_CALLBACK) return absl::CancelledError("given up by request");
  if (code != CURLE_OK) {
    return absl::UnavailableError(absl::StrCat(ShownUrl(url), ": ", curl_easy_strerror(code)));
  }
  if (response->status >= 300 && response->status < 400) {
    char* next = nullptr;
    curl_easy_getinfo(curl, CURLINFO_REDIRECT_URL, &next);
    if (next != nullptr) *redirect = next;
  }
  if (redirect->empty() && request.on_data && response->status >= 200 && response->status < 300) {
    RETURN_IF_ERROR(transfer.Start());  // an empty body
  }
  return absl::OkStatus();
}

}  // namespace offshoot
