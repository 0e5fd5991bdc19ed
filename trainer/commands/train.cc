// train: prepares, trains, evaluates, exports.

#include <cstdio>
#include <filesystem>
#include <system_error>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/job_session.h"
#include "trainer/error.h"
#include "trainer/heap.h"
#include "trainer/memory_plan.h"
#include "trainer/parallel/collective.h"
#include "trainer/parallel/file_exchange.h"
#include "trainer/prepared_job.h"
#include "trainer/publication.h"
#include "trainer/train_spec.h"
#include "trainer/training_job.h"

namespace offshoot::trainer {
namespace {

void MakeWorkDirectory(const std::string& path) {
  std::error_code failure;
  std::filesystem::create_directories(path + "/checkpoints", failure);
  if (failure) {
    throw Error(failure == std::errc::no_space_on_device ? Reason::kDiskFull : Reason::kInternal,
                "cannot make the work directory " + path + ": " + failure.message() + ".");
  }
}

int Stopped(const TrainOutcome& outcome, EventWriter& events) {
  std::fprintf(stderr, "stopped by request after step %lld\n",
               static_cast<long long>(outcome.last_step));
  nlohmann::json fields = {{"step", outcome.last_step}, {"path", nullptr}};
  if (!outcome.stopped_checkpoint.empty()) {
    fields["path"] = outcome.stopped_checkpoint;
  }
  events.Emit("stopped", std::move(fields));
  return kExitStopped;
}

// A contribution that the worker is told of is carried to the workers of the other ranks.
std::unique_ptr<Collective> ExchangeByWorker(const RankEnvironment& ranks,
                                             const std::string& work_directory, EventWriter& events,
                                             RunControl& control) {
  if (!control.has_control_line()) {
    throw Error(Reason::kBadSpec,
                "OFFSHOOT_EXCHANGE is worker, but no worker listens; give --events-fd and "
                "--control-fd, or unset it.");
  }
  ExchangeLine line;
  line.announce = [&events](std::int64_t round, const std::string& path) {
    events.Emit("contribution", {{"round", round}, {"path", path}});
  };
  line.await = [&control](std::int64_t round, std::int64_t rank) {
    return control.WaitForContribution(round, rank);
  };
  return MakeFileExchange(ranks, work_directory + "/exchange", std::move(line));
}

int Train(const TrainSpec& asked, const std::string& work_directory, EventWriter& events,
          RunControl& control) {
  MakeWorkDirectory(work_directory);
  const RankEnvironment ranks = RankEnvironment::FromProcess();
  const bool by_worker = ranks.by_worker && ranks.world_size > 1;
  std::unique_ptr<Rendezvous> rendezvous;
  if (!by_worker) {
    // The others are told where to come while this rank loads.
    rendezvous = OpenRendezvous(ranks, [&](std::int64_t port) {
      events.Emit("listening", {{"port", port}});
    });
  }
  const PreparedJob prepared =
      PrepareJob(asked, work_directory + "/cache", /*load_weights=*/true, events);
  const std::unique_ptr<Collective> collective =
      by_worker ? ExchangeByWorker(ranks, work_directory, events, control)
                : rendezvous->Join(asked.device);
  const TrainSpec spec =
      WithChosenBatch(asked, *prepared.decoder, *prepared.data.train, *collective, events);
  const JobParts parts = {spec,    *prepared.decoder, prepared.data, events,
                          control, *collective,       work_directory};
  TrainingJob job(parts);
  events.Emit("stage", {{"stage", "training"}});
  TrainOutcome outcome = job.Train();
  if (outcome.stopped) {
    return Stopped(outcome, events);
  }
  TrimHeap();
  const bool published = Publish(parts, prepared, job, outcome);
  collective->Barrier();
  if (!published) {
    outcome.stopped = true;
    if (control.stop_request() == StopRequest::kStop && outcome.last_step > 0) {
      outcome.stopped_checkpoint = job.SaveCheckpoint();
    }
    return Stopped(outcome, events);
  }
  return kExitDone;
}

}  // namespace

int RunTrain(const std::vector<std::string>& words) {
  Arguments arguments(
      "train", "trains an adapter and exports the derivative",
      WithSessionArguments({{"spec", "FILE", "the job's spec (JSON)", true},
                            {"work-dir", "DIR", "checkpoints, metrics and the result", true}}));
  if (!arguments.Parse(words)) {
    return kExitDone;
  }
  return RunJobSession(arguments, [&](EventWriter& events, RunControl& control) {
    const TrainSpec spec = ReadTrainSpec(arguments.Text("spec"));
    SetThreads(spec.threads);
    return Train(spec, arguments.Text("work-dir"), events, control);
  });
}

}  // namespace offshoot::trainer
