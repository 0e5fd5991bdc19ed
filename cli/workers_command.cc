// workers: list, drain, undrain, invite, expel.
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "cli/format.h"
#include "common/quantity.h"

namespace offshoot::cli {
namespace {

struct WorkerOptions {
  std::string worker;
  bool checkpoint = false;
  std::int64_t valid_minutes = 60;
};

absl::StatusOr<v1::ListWorkersResponse> ListWorkers(Client& client) {
  return client.Call(client.cluster(), &v1::Cluster::Stub::ListWorkers, v1::ListWorkersRequest());
}

int ListWorkers(const Context& context) {
  Client& client = context.client();
  const auto response = ListWorkers(client);
  if (!response.ok()) return context.Fail(response.status());
  if (context.json()) {
    context.PrintJson(*response);
    return kOk;
  }
  std::vector<std::vector<std::string>> rows{
      {"WORKER", "NAME", "STATE", "DEVICES", "MEMORY", "JOBS", "HEARD OF", "MESSAGE"}};
  for (const v1::Worker& worker : response->workers()) {
    std::vector<std::string> devices;
    for (const v1::Device& device : worker.inventory().devices()) {
      devices.push_back(device.threads() > 0
                            ? absl::StrCat(device.device_id(), "@", device.threads())
                            : device.device_id());
      if (device.speed() > 0) {
        absl::StrAppendFormat(&devices.back(), " (%.2f TFLOP/s)", device.speed());
      }
    }
    rows.push_back({worker.worker_id(), worker.name(), StateName(worker.state()),
                    absl::StrJoin(devices, ","), FormatBytes(worker.inventory().memory_bytes()),
                    absl::StrCat(worker.running_jobs_size()),
                    absl::StrCat(FormatAge(worker.last_heartbeat_time(), absl::Now()), " ago"),
                    worker.message()});
  }
  context.out() << FormatTable(rows) << std::flush;
  return kOk;
}

// By id, or by name where only one worker has it.
absl::StatusOr<std::string> WorkerIdOf(Client& client, const std::string& worker) {
  const auto response = ListWorkers(client);
  if (!response.ok()) return response.status();
  std::vector<std::string> found;
  for (const v1::Worker& each : response->workers()) {
    if (each.worker_id() == worker) return worker;
    if (each.name() == worker) found.push_back(each.worker_id());
  }
  if (found.size() == 1) return found[0];
  if (found.empty()) {
    return absl::NotFoundError(absl::StrCat("there is no worker ", worker,
                                            "; `offshoot workers list` shows those there are"));
  }
  return absl::InvalidArgumentError(absl::StrCat("several workers are called ", worker, ": ",
                                                 absl::StrJoin(found, ", "),
                                                 "; name one by its id"));
}

int Report(const Context& context, const absl::StatusOr<v1::Worker>& worker) {
  if (!worker.ok()) return context.Fail(worker.status());
  if (context.json()) {
    context.PrintJson(*worker);
  } else {
    context.out() << "worker " << worker->name() << " " << StateName(worker->state()) << "\n"
                  << std::flush;
  }
  return kOk;
}

int Drain(const Context& context, const WorkerOptions& options) {
  Client& client = context.client();
  const auto worker_id = WorkerIdOf(client, options.worker);
  if (!worker_id.ok()) return context.Fail(worker_id.status());
  v1::DrainWorkerRequest request;
  request.set_worker_id(*worker_id);
  request.set_checkpoint_running(options.checkpoint);
  return Report(context, client.Call(client.cluster(), &v1::Cluster::Stub::DrainWorker, request));
}

int Undrain(const Context& context, const WorkerOptions& options) {
  Client& client = context.client();
  const auto worker_id = WorkerIdOf(client, options.worker);
  if (!worker_id.ok()) return context.Fail(worker_id.status());
  v1::UndrainWorkerRequest request;
  request.set_worker_id(*worker_id);
  return Report(context, client.Call(client.cluster(), &v1::Cluster::Stub::UndrainWorker, request));
}

int Invite(const Context& context, const WorkerOptions& options) {
  Client& client = context.client();
  v1::InviteWorkerRequest request;
  request.set_valid_ms(options.valid_minutes * 60'000);
  const auto invitation = client.Call(client.cluster(), &v1::Cluster::Stub::InviteWorker, request);
  if (!invitation.ok()) return context.Fail(invitation.status());
  if (context.json()) {
    context.PrintJson(*invitation);
    return kOk;
  }
  context.err() << "For one worker, until " << FormatTime(invitation->expire_time())
                << ": write it to a file there and start offshoot-worker with --ca and"
                   " --join-token-file.\n"
                << std::flush;
  context.out() << invitation->token() << "\n" << std::flush;
  return kOk;
}

int Expel(const Context& context, const WorkerOptions& options) {
  Client& client = context.client();
  // A worker that is not listed any more may still have a certificate.
  const auto worker_id = WorkerIdOf(client, options.worker);
  v1::ExpelWorkerRequest request;
  request.set_worker_id(worker_id.ok() ? *worker_id : options.worker);
  if (absl::IsInvalidArgument(worker_id.status())) return context.Fail(worker_id.status());
  const auto expelled = client.Call(client.cluster(), &v1::Cluster::Stub::ExpelWorker, request);
  if (!expelled.ok()) return context.Fail(expelled.status());
  context.out() << "worker " << request.worker_id() << " is expelled\n" << std::flush;
  return kOk;
}

}  // namespace

void AddWorkerCommands(CLI::App& app, Context& context) {
  auto options = std::make_shared<WorkerOptions>();
  CLI::App* workers = app.add_subcommand("workers", "List workers, drain, invite and expel them");
  workers->require_subcommand(0, 1);
  context.AddClientOptions(workers);
  // `offshoot workers` alone lists them; a verb below it sets its own action after this one.
  context.SetAction(workers, [&context] { return ListWorkers(context); });

  CLI::App* list = workers->add_subcommand("list", "List workers");
  context.AddClientOptions(list);
  context.SetAction(list, [&context] { return ListWorkers(context); });

  CLI::App* drain = workers->add_subcommand("drain", "Give a worker no new jobs");
  drain->add_option("worker", options->worker, "id or name")->required()->type_name("WORKER");
  drain->add_flag("--checkpoint", options->checkpoint,
                  "checkpoint what runs there and move it elsewhere");
  context.AddClientOptions(drain);
  context.SetAction(drain, [&context, options] { return Drain(context, *options); });

  CLI::App* undrain = workers->add_subcommand("undrain", "Give it jobs again");
  undrain->add_option("worker", options->worker, "id or name")->required()->type_name("WORKER");
  context.AddClientOptions(undrain);
  context.SetAction(undrain, [&context, options] { return Undrain(context, *options); });

  CLI::App* invite = workers->add_subcommand("invite", "Make a one-time token to join with");
  invite->add_option("--valid-minutes", options->valid_minutes, "how long it may be used")
      ->check(CLI::Range(1, 30 * 24 * 60))
      ->type_name("MINUTES")
      ->capture_default_str();
  context.AddClientOptions(invite);
  context.SetAction(invite, [&context, options] { return Invite(context, *options); });

  CLI::App* expel = workers->add_subcommand("expel", "End what its certificates are good for");
  expel->add_option("worker", options->worker, "id or name")->required()->type_name("WORKER");
  context.AddClientOptions(expel);
  context.SetAction(expel, [&context, options] { return Expel(context, *options); });
}

}  // namespace offshoot::cli
