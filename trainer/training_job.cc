#include "trainer/training_job.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "trainer/error.h"
#include "trainer/failure.h"
#include "trainer/metrics_log.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

constexpr std::size_t kMaxRanksInMetrics = 64;

// splitmix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators").
std::uint64_t Mix(std::uint64_t value) {
  value += 0x9E3779B97F4A7C15ULL;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

std::uint64_t DropoutSeed(std::uint64_t seed, std::int64_t step, std::int64_t rank,
                          std::int64_t micro_batch) {
  std::uint64_t mixed = Mix(seed);
  for (const std::int64_t part : {step, rank, micro_batch}) {
    mixed = Mix(mixed ^ static_cast<std::uint64_t>(part));
  }
  return mixed;
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string CheckpointsDirectory(const std::string& work_directory) {
  return work_directory + "/checkpoints";
}

}  // namespace

TrainingJob::TrainingJob(const JobParts& parts)
    : parts_(parts),
      batch_options_(BatchOptionsFromSpec(parts.spec.resolved, parts.collective.world_size())) {
  const TrainSpec& spec = parts_.spec;
  adapters_ = spec.init_adapter.empty() ? LoraSet::Create(parts_.decoder, spec.lora, spec.seed)
                                        : LoraSet::Load(parts_.decoder, spec.init_adapter);
  adapters_->SetDropout(spec.lora.dropout);
  std::vector<at::Tensor> tensors;
  for (const LoraSet::Parameter& parameter : adapters_->parameters()) {
    tensors.push_back(parameter.tensor);
  }
  optimizer_ = std::make_unique<FlatAdamW>(tensors,
                                           AdamWOptions{.beta1 = spec.adam_beta1,
                                                        .beta2 = spec.adam_beta2,
                                                        .epsilon = spec.adam_epsilon,
                                                        .weight_decay = spec.weight_decay},
                                           RankTable::SizeFor(parts_.collective.world_size()));
  if (spec.local_steps > 0) {
    outer_ = std::make_unique<OuterStep>(*optimizer_, spec.outer,
                                         RankTable::SizeFor(parts_.collective.world_size()));
  }
  planner_ = std::make_unique<BatchPlanner>(*parts_.data.train, batch_options_);
  total_steps_ =
      planner_->TotalSteps(spec.num_train_epochs, std::max<std::int64_t>(0, spec.max_steps));
  schedule_ = {.kind = spec.lr_scheduler_type,
               .warmup_steps = spec.warmup_steps,
               .warmup_ratio = spec.warmup_ratio,
               .total_steps = total_steps_};
  state_.data_digest = parts_.data.digest;
  state_.identity = TrainingIdentity(spec);
  // With another global batch it would be another training.
  state_.identity["ranks"] = batch_options_.planned_ranks > 0 ? batch_options_.planned_ranks
                                                              : parts_.collective.world_size();
  speeds_ = parts_.first_speeds;
  state_.environment =
      TrainingEnvironment(spec.threads, parts_.collective.world_size(), spec.device);
  const bool first_rank = parts_.collective.rank() == 0;
  const std::string metrics_path = parts_.work_directory + "/" + kMetricsFile;
  if (spec.resume_from.empty()) {
    if (first_rank) {
      metrics_ = std::make_unique<MetricsLog>(metrics_path, "");
    }
  } else {
    Restore(spec.resume_from);
    if (first_rank) {
      metrics_ = std::make_unique<MetricsLog>(metrics_path, spec.resume_from + "/" + kMetricsFile);
    }
  }
  if (first_rank) {
    RemoveStaleCheckpoints(CheckpointsDirectory(parts_.work_directory), state_.step);
  }
}

void TrainingJob::Restore(const std::string& checkpoint_path) {
  const at::NoGradGuard no_grad;
  const Checkpoint checkpoint = ReadCheckpoint(checkpoint_path);
  CheckResumable(checkpoint_path, checkpoint.state, state_, parts_.spec.reproducible);
  const auto refuse = [&](const std::string& what) {
    throw Error(Reason::kBadSpec,
                "the checkpoint " + checkpoint_path + " does not fit this job: " + what + ".");
  };
  if (checkpoint.optimizer.first_moments.numel() != optimizer_->first_moments().numel() ||
      checkpoint.optimizer.second_moments.numel() != optimizer_->second_moments().numel() ||
      checkpoint.optimizer.first_moments.scalar_type() != at::kFloat ||
      checkpoint.optimizer.second_moments.scalar_type() != at::kFloat) {
    refuse("its optimizer state has another size");
  }
  for (const LoraSet::Parameter& parameter : adapters_->parameters()) {
    const auto found = checkpoint.adapter.find(parameter.name);
    if (found == checkpoint.adapter.end()) {
      refuse("its adapter lacks " + parameter.name);
    }
    if (found->second.sizes() != parameter.tensor.sizes()) {
      refuse("its adapter's " + parameter.name + " has another shape");
    }
    parameter.tensor.detach().copy_(found->second);
  }
  optimizer_->first_moments().copy_(checkpoint.optimizer.first_moments.view({-1}));
  optimizer_->second_moments().copy_(checkpoint.optimizer.second_moments.view({-1}));
  if (outer_ != nullptr) {
    if (!checkpoint.optimizer.outer_momentum.defined() ||
        checkpoint.optimizer.outer_momentum.numel() != outer_->momentum().numel()) {
      refuse("its outer momentum is missing or has another size");
    }
    outer_->momentum().copy_(checkpoint.optimizer.outer_momentum.view({-1}));
  }
  state_.step = round_begin_ = checkpoint.state.step;
  state_.cursor = checkpoint.state.cursor;
  state_.tokens = checkpoint.state.tokens;
  last_checkpoint_ = state_.step;
}

TrainOutcome TrainingJob::Train() {
  TrainOutcome outcome;
  outcome.first_step = state_.step + 1;
  if (parts_.collective.rank() == 0) {
    parts_.events.Emit("started", {{"first_step", outcome.first_step},
                                   {"total_steps", total_steps_},
                                   {"rows", parts_.data.train->size()},
                                   {"trainable_parameters", adapters_->parameter_count()}});
  }
  activity_ = std::make_unique<Activity>(parts_.events);
  if (parts_.collective.world_size() > 1) {
    Begin("waiting for all ranks to be ready", Activity::Kind::kWaitingForRanks);
    parts_.collective.Barrier();
  }
  last_exchange_ = std::chrono::steady_clock::now();
  StopRequest stop = StopRequest::kNone;
  while (state_.step < total_steps_) {
    const auto start = std::chrono::steady_clock::now();
    const Requests requests = TakeRequests();
    stop = requests.stop;
    if (stop != StopRequest::kNone) {
      break;
    }
    MaybeCheckpoint(requests.checkpoint);
    round_begin_ = state_.step;
    const StepResult result =
        outer_ != nullptr ? RunRound() : RunStep(planner_->Step(state_.cursor));
    if (result.abandoned) {
      continue;
    }
    Log(result, SecondsSince(start));
    seconds_after_exchange_ = SecondsSince(last_exchange_);
    MaybeEvaluate();
    MaybeCheckpoint(false);
  }
  outcome.last_step = state_.step;
  outcome.stopped = stop != StopRequest::kNone && state_.step < total_steps_;
  if (outcome.stopped && stop == StopRequest::kStop && state_.step > 0) {
    outcome.stopped_checkpoint = SaveCheckpoint();
  }
  activity_.reset();
  return outcome;
}

void TrainingJob::Begin(std::string what, Activity::Kind kind) {
  if (activity_ != nullptr) {
    activity_->Begin(state_.step + 1, std::move(what), kind);
  }
}

TrainingJob::Requests TrainingJob::TakeRequests() {
  if (parts_.collective.world_size() == 1) {
    return {parts_.control.stop_request(), parts_.control.TakeCheckpointRequest()};
  }
  return std::exchange(requests_, {});
}

TrainingJob::StepResult TrainingJob::RunStep(const StepPlan& plan) {
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<MicroBatch> mine =
      RankShare(plan, batch_options_, parts_.collective.rank(), speeds_);
  StepResult result;
  RankRow row;
  result.abandoned = !Compute(mine, plan.trained_tokens, row);
  if (result.abandoned) {
    return result;
  }
  row.fixed_seconds = seconds_after_exchange_ + SecondsSince(begin) - row.compute_seconds;
  const double own_loss = row.loss_sum;
  at::Tensor bucket = optimizer_->bucket();
  const double loss_sum = Exchange(row, bucket, result);
  result.loss = loss_sum / static_cast<double>(plan.trained_tokens);
  result.gradient_norm = optimizer_->GradientNorm();
  if (!std::isfinite(result.loss) || !std::isfinite(result.gradient_norm)) {
    FailWithBadNumbers(plan, mine, result, own_loss);
  }
  result.learning_rate = parts_.spec.learning_rate * LearningRateFactor(schedule_, state_.step + 1);
  optimizer_->Step(state_.step + 1, result.learning_rate,
                   ClippingCoefficient(result.gradient_norm, parts_.spec.max_grad_norm));
  Advance(plan, result);
  return result;
}

bool TrainingJob::Compute(const std::vector<MicroBatch>& mine, std::int64_t trained_tokens,
                          RankRow& row) {
  optimizer_->ZeroGradients();
  const auto begin = std::chrono::steady_clock::now();
  std::vector<at::Tensor> losses;  // read when all are on their way: a GPU is not waited for before
  for (std::size_t i = 0; i < mine.size(); ++i) {
    // Alone, a rank can leave in the midst of a step: nothing has changed until the update. In the
    // midst of a round something has: only when nothing is to be kept.
    const StopRequest stop = parts_.control.stop_request();
    if (parts_.collective.world_size() == 1 && stop != StopRequest::kNone &&
        (outer_ == nullptr || stop == StopRequest::kStopWithoutCheckpoint)) {
      return false;
    }
    Begin("computing micro-batch " + std::to_string(i + 1) + " of " + std::to_string(mine.size()));
    losses.push_back(RunMicroBatch(mine[i], static_cast<std::int64_t>(i), trained_tokens));
    for (const std::int64_t index : mine[i]) {
      row.tokens += static_cast<double>(parts_.data.train->ids(index).size());
    }
  }
  for (const at::Tensor& loss : losses) {
    row.loss_sum += loss.item<double>();
  }
  row.compute_seconds += SecondsSince(begin);
  return true;
}

void TrainingJob::Advance(const StepPlan& plan, StepResult& result) {
  for (const std::int64_t tokens : plan.row_tokens) {
    result.tokens += tokens;
  }
  ++state_.step;
  state_.tokens += plan.trained_tokens;
  state_.cursor = planner_->Next(state_.cursor);
}

double TrainingJob::Exchange(RankRow mine, at::Tensor& bucket, StepResult& result) {
  const std::int64_t ranks = parts_.collective.world_size();
  if (ranks == 1) {
    last_exchange_ = std::chrono::steady_clock::now();
    return mine.loss_sum;
  }
  const StopRequest stop = parts_.control.stop_request();
  mine.stop = stop != StopRequest::kNone;
  mine.stop_without_checkpoint = stop == StopRequest::kStopWithoutCheckpoint;
  mine.checkpoint = parts_.control.TakeCheckpointRequest();
  mine.busy_seconds = SecondsSince(last_exchange_);
  const std::int64_t tail = RankTable::SizeFor(ranks);
  const at::Tensor table = bucket.narrow(0, bucket.numel() - tail, tail);
  RankTable::Write(table, parts_.collective.rank(), mine, next_speeds_);
  Begin(outer_ != nullptr ? "averaging the ranks' updates" : "summing the gradients",
        Activity::Kind::kWaitingForRanks);
  parts_.collective.AllReduceSum(bucket);
  last_exchange_ = std::chrono::steady_clock::now();
  Begin("updating the adapter");
  result.ranks = RankTable::Read(table, ranks);
  double loss_sum = 0;
  for (const RankRow& row : result.ranks) {
    loss_sum += row.loss_sum;
    requests_.checkpoint = requests_.checkpoint || row.checkpoint;
    if (row.stop_without_checkpoint) {
      requests_.stop = StopRequest::kStopWithoutCheckpoint;
    } else if (row.stop && requests_.stop == StopRequest::kNone) {
      requests_.stop = StopRequest::kStop;
    }
  }
  if (result.ranks.front().next_speed_given) {
    speeds_.clear();
    for (const RankRow& row : result.ranks) {
      speeds_.push_back(row.next_speed);
    }
  }
  // Fixed shares are part of what makes a run with several ranks repeatable.
  if (parts_.collective.rank() == 0 && !parts_.spec.reproducible) {
    speed_estimate_.Add(result.ranks);
    next_speeds_ = speed_estimate_.Speeds();
  }
  return loss_sum;
}

// Returns the summed loss of the rows' tokens; their gradient, divided by the trained tokens of the
// whole step, is added to the optimizer's.
at::Tensor TrainingJob::RunMicroBatch(const MicroBatch& rows, std::int64_t index,
                                      std::int64_t trained_tokens) {
  std::string out_of_memory;
  try {
    const TokenBatch batch =
        MoveTo(MakeTokenBatch(*parts_.data.train, rows), parts_.decoder.device());
    if (batch.trained_tokens == 0) {
      return at::zeros({}, at::kFloat);
    }
    at::Tensor router_loss;
    const ForwardOptions options = {
        .recomputed = parts_.spec.recomputed,
        .dropout_seed =
            DropoutSeed(parts_.spec.seed, state_.step + 1, parts_.collective.rank(), index),
        .training = true,
        .router_loss = parts_.decoder.spec().router_loss_coefficient > 0 ? &router_loss : nullptr};
    const at::Tensor hidden = parts_.decoder.Forward(batch, adapters_.get(), options);
    at::Tensor loss = CrossEntropySum(hidden, parts_.decoder.head(), batch.labels);
    const at::Tensor sum = loss.detach();
    if (router_loss.defined()) {
      // A mean over this batch's tokens: weighed so that the step's is a mean over all of them.
      loss = loss.add(router_loss, batch.trained_tokens);
    }
    loss.backward(at::full({}, 1.0 / static_cast<double>(trained_tokens), loss.options()));
    return sum;
  } catch (...) {
    if (!CurrentExceptionIsOutOfMemory()) {
      throw;
    }
    out_of_memory = DescribeCurrentException().message;
  }
  FailWithOutOfMemory(rows, out_of_memory);
}

void TrainingJob::Log(const StepResult& result, double seconds) {
  if (parts_.collective.rank() != 0) {
    return;
  }
  const bool due =
      Reached(parts_.spec.logging_steps) || round_begin_ == 0 || state_.step == total_steps_;
  if (!due) {
    return;
  }
  const std::int64_t steps = state_.step - round_begin_;
  const double epoch = static_cast<double>(state_.cursor.epoch) +
                       static_cast<double>(state_.cursor.step_in_epoch) /
                           static_cast<double>(std::max<std::int64_t>(
                               1, planner_->StepsInEpoch(state_.cursor.epoch)));
  nlohmann::json line = {{"step", state_.step},
                         {"epoch", epoch},
                         {"train_loss", EncodeNumber(result.loss)},
                         {"grad_norm", EncodeNumber(result.gradient_norm)},
                         {"learning_rate", result.learning_rate},
                         {"tokens", state_.tokens},
                         {"step_seconds", seconds / static_cast<double>(steps)},
                         {"tokens_per_second", static_cast<double>(result.tokens) / seconds}};
  if (!result.ranks.empty() && result.ranks.size() <= kMaxRanksInMetrics) {
    const std::vector<double> shares = SharesOf(result.ranks);
    const std::vector<double> waits = WaitSeconds(result.ranks);
    line["ranks"] = nlohmann::json::array();
    for (std::size_t i = 0; i < result.ranks.size(); ++i) {
      const RankRow& row = result.ranks[i];
      line["ranks"].push_back(
          {{"share", shares[i]},
           {"tokens_per_second", row.compute_seconds > 0 ? row.tokens / row.compute_seconds : 0.0},
           {"wait_seconds", waits[i]}});
    }
  }
  metrics_->Append(line);
  std::fprintf(stderr, "step %lld/%lld  loss %.4f  grad norm %.3f  lr %.3g  %.2f s\n",
               static_cast<long long>(state_.step), static_cast<long long>(total_steps_),
               result.loss, result.gradient_norm, result.learning_rate,
               seconds / static_cast<double>(steps));
  parts_.events.EmitMetrics(std::move(line));
}

LossSum TrainingJob::EvaluateHeldOut(bool base) {
  EvaluationOptions options;
  options.rows_per_batch = std::max<std::int64_t>(8, parts_.spec.per_device_train_batch_size);
  options.max_tokens_per_batch = std::max<std::int64_t>(2048, parts_.spec.sequence_len);
  options.interrupted = [this] {
    Begin("evaluating");  // asked before each batch, so each is progress
    return parts_.control.stop_request() != StopRequest::kNone;
  };
  options.waits = [this] {
    if (parts_.collective.world_size() > 1) {
      Begin("evaluating: waiting for the other ranks", Activity::Kind::kWaitingForRanks);
    }
  };
  adapters_->SetEnabled(!base);
  const LossSum sum =
      Evaluate(parts_.decoder, adapters_.get(), *parts_.data.held_out, options, parts_.collective);
  adapters_->SetEnabled(true);
  return sum;
}

bool TrainingJob::Reached(std::int64_t every) const {
  return every > 0 && state_.step / every != round_begin_ / every;
}

void TrainingJob::MaybeEvaluate() {
  const std::int64_t every = parts_.spec.eval_steps;
  // The last step's evaluation is the final one, with the base beside it.
  if (!Reached(every) || state_.step == total_steps_ || parts_.data.held_out->size() == 0) {
    return;
  }
  const LossSum sum = EvaluateHeldOut(/*base=*/false);
  std::int64_t expected = 0;
  for (std::int64_t row = 0; row < parts_.data.held_out->size(); ++row) {
    expected += parts_.data.held_out->trained_tokens(row);
  }
  if (sum.tokens != expected || parts_.collective.rank() != 0) {
    return;  // interrupted by a stop: a part is no result
  }
  nlohmann::json line = {
      {"step", state_.step}, {"eval_loss", EncodeNumber(sum.Mean())}, {"tokens", sum.tokens}};
  metrics_->Append({{"step", state_.step}, {"eval_loss", EncodeNumber(sum.Mean())}});
  std::fprintf(stderr, "step %lld  held-out loss %.4f\n", static_cast<long long>(state_.step),
               sum.Mean());
  parts_.events.Emit("eval", std::move(line));
}

// After the step that is due, and after the last one: what is left then can be repeated from here.
void TrainingJob::MaybeCheckpoint(bool requested) {
  const std::int64_t every = parts_.spec.save_steps;
  const bool due = every > 0 && (Reached(every) || state_.step == total_steps_);
  if (state_.step == 0 || state_.step == last_checkpoint_ || !(due || requested)) {
    return;
  }
  Begin("waiting until the last checkpoint is stored", Activity::Kind::kWaitingForWorker);
  if (unconfirmed_ >= 0 && !parts_.control.WaitUntilStored(unconfirmed_)) {
    return;  // a stop came while waiting; it writes its own
  }
  SaveCheckpoint();
}

std::string TrainingJob::SaveCheckpoint() {
  const std::string root = CheckpointsDirectory(parts_.work_directory);
  if (parts_.collective.rank() != 0) {
    last_checkpoint_ = state_.step;
    return "";
  }
  Begin("writing a checkpoint");
  const BaseModelRef& base = parts_.spec.base_model;
  const std::string path = WriteCheckpoint(
      root, state_,
      [&](const std::string& directory) {
        adapters_->Save(directory, base.id.empty() ? base.digest : base.id, "");
      },
      {.first_moments = optimizer_->first_moments(),
       .second_moments = optimizer_->second_moments(),
       .outer_momentum = outer_ != nullptr ? outer_->momentum() : at::Tensor()},
      metrics_->path());
  last_checkpoint_ = state_.step;
  unconfirmed_ = state_.step;
  PruneCheckpoints(root, parts_.spec.save_total_limit);
  parts_.events.Emit("checkpoint", {{"step", state_.step}, {"path", path}});
  return path;
}

}  // namespace offshoot::trainer
