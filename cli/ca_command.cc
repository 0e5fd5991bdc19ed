// ca: makes the certificates and tokens of a cluster that asks who its callers are. Works on files
// alone; no coordinator is asked.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "common/certificates.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "common/yaml_tree.h"

namespace offshoot::cli {
namespace {

constexpr std::int64_t kAuthorityDays = 3650;
constexpr std::int64_t kServerDays = 825;  // what the strictest clients take

struct CaOptions {
  std::string directory;
  std::vector<std::string> hosts;
  std::int64_t days = kServerDays;
  std::string user;
  std::string team;
  std::string role = "submit";
};

absl::Status CreateFileWith(const std::string& path, const std::string& text, mode_t mode) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (descriptor < 0 && errno == EEXIST) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " exists; nothing is overwritten: move it away, or name another place"));
  }
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot create ", path));
  const bool whole =
      write(descriptor, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
      fsync(descriptor) == 0;
  const int failed = errno;
  close(descriptor);
  return whole ? absl::OkStatus() : ErrnoStatus(failed, absl::StrCat("cannot write ", path));
}

absl::Status CheckAbsent(const std::string& directory, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const std::string path = JoinPath(directory, name);
    if (!PathExists(path)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, " exists; nothing is overwritten: move it away, or name another place"));
  }
  return absl::OkStatus();
}

// Names by which this machine is likely to be reached.
std::vector<std::string> UsualHosts() {
  std::vector<std::string> hosts;
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) == 0 && name[0] != '\0') hosts.push_back(name);
  for (const char* loopback : {"localhost", "127.0.0.1", "::1"}) {
    if (std::find(hosts.begin(), hosts.end(), loopback) == hosts.end()) hosts.push_back(loopback);
  }
  return hosts;
}

absl::Status AddServerFiles(const CaOptions& options, const KeyAndCertificate& authority) {
  ASSIGN_OR_RETURN(
      const KeyAndCertificate server,
      MakeServerCertificate(authority, options.hosts, absl::Now(), absl::Hours(24) * options.days));
  RETURN_IF_ERROR(CreateFileWith(JoinPath(options.directory, "server.key"), server.key_pem, 0600));
  return CreateFileWith(JoinPath(options.directory, "server.pem"), server.certificate_pem, 0644);
}

absl::Status MakeAll(const CaOptions& options) {
  RETURN_IF_ERROR(MakeDirectories(options.directory));
  RETURN_IF_ERROR(CheckAbsent(options.directory, {"ca.pem", "ca.key", "server.pem", "server.key"}));
  ASSIGN_OR_RETURN(const KeyAndCertificate authority,
                   MakeAuthority(absl::StrCat("Offshoot CA of ", options.hosts.front()),
                                 absl::Now(), absl::Hours(24) * kAuthorityDays));
  RETURN_IF_ERROR(CreateFileWith(JoinPath(options.directory, "ca.key"), authority.key_pem, 0600));
  RETURN_IF_ERROR(
      CreateFileWith(JoinPath(options.directory, "ca.pem"), authority.certificate_pem, 0644));
  return AddServerFiles(options, authority);
}

int Init(const Context& context, CaOptions options) {
  if (options.hosts.empty()) options.hosts = UsualHosts();
  if (const absl::Status made = MakeAll(options); !made.ok()) return context.Fail(made);
  const auto path = [&](const char* name) { return JoinPath(options.directory, name); };
  context.out() << "A CA, and a server certificate for " << absl::StrJoin(options.hosts, ", ")
                << ".\nSettings of the coordinator (--config):\n\n"
                << "tls_certificate: " << path("server.pem") << "\ntls_key: " << path("server.key")
                << "\ntls_client_ca: " << path("ca.pem")
                << "\ntls_client_ca_key: " << path("ca.key")
                << "\nusers_file: " << path("users.yaml")
                << "\n\nGive ca.pem to everybody, and the keys to nobody. Next: offshoot ca user "
                << options.directory << " NAME --team TEAM --role admin\n"
                << std::flush;
  return kOk;
}

absl::Status MakeServer(const CaOptions& options) {
  KeyAndCertificate authority;
  ASSIGN_OR_RETURN(authority.key_pem, ReadFile(JoinPath(options.directory, "ca.key")));
  ASSIGN_OR_RETURN(authority.certificate_pem, ReadFile(JoinPath(options.directory, "ca.pem")));
  RETURN_IF_ERROR(CheckKeyPair(authority));
  RETURN_IF_ERROR(CheckAbsent(options.directory, {"server.pem", "server.key"}));
  return AddServerFiles(options, authority);
}

int Server(const Context& context, CaOptions options) {
  if (options.hosts.empty()) options.hosts = UsualHosts();
  if (const absl::Status made = MakeServer(options); !made.ok()) return context.Fail(made);
  context.out() << "A server certificate for " << absl::StrJoin(options.hosts, ", ")
                << "; start the coordinator again.\n"
                << std::flush;
  return kOk;
}

bool IsPlainName(const std::string& text) {
  return !text.empty() && text.size() <= 100 && std::all_of(text.begin(), text.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.' ||
           c == '@';
  });
}

// Adds the user's line, and gives the token, which is not kept.
absl::StatusOr<std::string> AddUser(const CaOptions& options) {
  const bool is_worker = options.role == "worker";
  if (!IsPlainName(options.user) || (!options.team.empty() && !IsPlainName(options.team))) {
    return absl::InvalidArgumentError(
        "names of users and teams are letters, digits, '.', '_', '-' and '@'");
  }
  if (options.team.empty() && !is_worker) {
    return absl::InvalidArgumentError("a user needs a team; say --team TEAM");
  }
  const std::string file = JoinPath(options.directory, "users.yaml");
  std::string users;
  if (PathExists(file)) {
    ASSIGN_OR_RETURN(users, ReadFile(file));
    const YamlResult tree = ParseYamlTree(users);
    if (!tree.faults.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ", line ", tree.faults[0].line, ": ", tree.faults[0].message));
    }
    for (const YamlEntry& entry : tree.root.entries) {
      if (entry.key.text == options.user) {
        return absl::InvalidArgumentError(absl::StrCat(
            options.user, " is in ", file, " already; remove the line to give a new token"));
      }
    }
    if (!users.empty() && users.back() != '\n') users += '\n';
  }
  std::string token = "off-";
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&token, "%016x", RandomBits());
  absl::StrAppend(&users, options.user, ": {",
                  options.team.empty() ? "" : absl::StrCat("team: \"", options.team, "\", "),
                  "role: ", options.role, ", token: \"", DigestOf(token), "\"}\n");
  RETURN_IF_ERROR(WriteFileAtomically(file, users));
  return token;
}

int User(const Context& context, const CaOptions& options) {
  const absl::StatusOr<std::string> token = AddUser(options);
  if (!token.ok()) return context.Fail(token.status());
  context.err() << "The token of " << options.user
                << " (OFFSHOOT_TOKEN) is shown this once; the coordinator knows it after a"
                   " restart.\n"
                << std::flush;
  context.out() << *token << "\n" << std::flush;
  return kOk;
}

}  // namespace

void AddCaCommand(CLI::App& app, Context& context) {
  auto options = std::make_shared<CaOptions>();
  CLI::App* ca = app.add_subcommand("ca", "Make the certificates and tokens of a cluster");
  ca->require_subcommand(1);

  const auto add_hosts = [&](CLI::App* command) {
    command
        ->add_option("--host", options->hosts,
                     "name or address by which clients reach the coordinator; may be said more than"
                     " once (default: this host's name, and loopback)")
        ->type_name("HOST");
    command->add_option("--days", options->days, "how long the server's certificate is good for")
        ->check(CLI::Range(1, 3650))
        ->type_name("DAYS")
        ->capture_default_str();
  };

  CLI::App* init = ca->add_subcommand("init", "Make a CA and the coordinator's certificate");
  init->add_option("directory", options->directory, "where the files go")
      ->required()
      ->type_name("DIR");
  add_hosts(init);
  context.SetAction(init, [&context, options] { return Init(context, *options); });

  CLI::App* server = ca->add_subcommand("server", "Make another certificate of the coordinator");
  server->add_option("directory", options->directory, "where ca.pem and ca.key are")
      ->required()
      ->type_name("DIR");
  add_hosts(server);
  context.SetAction(server, [&context, options] { return Server(context, *options); });

  CLI::App* user = ca->add_subcommand("user", "Add a user to users.yaml; prints the token");
  user->add_option("directory", options->directory, "where users.yaml is, or is to be")
      ->required()
      ->type_name("DIR");
  user->add_option("name", options->user, "the user's name")->required()->type_name("NAME");
  user->add_option("--team", options->team, "whose jobs, quota and share")->type_name("TEAM");
  user->add_option("--role", options->role, "submit, operate, admin or worker")
      ->check(CLI::IsMember({"submit", "operate", "admin", "worker"}))
      ->type_name("ROLE")
      ->capture_default_str();
  context.SetAction(user, [&context, options] { return User(context, *options); });
}

}  // namespace offshoot::cli
