#include "coordinator/monitoring.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <utility>
#include <vector>

namespace offshoot {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

void AddGauge(MetricFamily& family, double value, std::vector<ClientMetric::Label> labels = {}) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  family.metric.push_back(std::move(metric));
}

void AddCounter(std::vector<MetricFamily>& families, const char* name, const char* help,
                double value) {
  MetricFamily family{name, help, MetricType::Counter, {}};
  ClientMetric metric;
  metric.counter.value = value;
  family.metric.push_back(std::move(metric));
  families.push_back(std::move(family));
}

// Count and sum: Prometheus divides one rate by the other.
void AddDuration(std::vector<MetricFamily>& families, const char* name, const char* help,
                 std::int64_t count, std::int64_t microseconds) {
  MetricFamily family{name, help, MetricType::Summary, {}};
  ClientMetric metric;
  metric.summary.sample_count = static_cast<std::uint64_t>(count);
  metric.summary.sample_sum = static_cast<double>(microseconds) * 1e-6;
  family.metric.push_back(std::move(metric));
  families.push_back(std::move(family));
}

}  // namespace

std::string RenderMetrics(const ControllerCounters& controller, const RpcCounters& calls) {
  std::vector<MetricFamily> families;
  MetricFamily jobs{"offshoot_jobs", "Jobs that have not ended, by state.", MetricType::Gauge, {}};
  for (int i = 0; i < kJobStateCount; ++i) {
    const auto state = static_cast<JobState>(i + 1);
    if (IsTerminal(state)) continue;
    AddGauge(jobs, static_cast<double>(controller.live_jobs[static_cast<std::size_t>(i)]),
             {{"state", std::string(JobStateName(state))}});
  }
  families.push_back(std::move(jobs));
  MetricFamily workers{"offshoot_workers", "Workers by state.", MetricType::Gauge, {}};
  AddGauge(workers, static_cast<double>(controller.workers_connected), {{"state", "connected"}});
  AddGauge(workers, static_cast<double>(controller.workers_draining), {{"state", "draining"}});
  AddGauge(workers, static_cast<double>(controller.workers_lost), {{"state", "not_connected"}});
  families.push_back(std::move(workers));
  MetricFamily streams{
      "offshoot_streams_open", "Watchers, downloads and uploads under way.", MetricType::Gauge, {}};
  AddGauge(streams, static_cast<double>(calls.streams_open));
  families.push_back(std::move(streams));

  AddDuration(families, "offshoot_store_commit_seconds",
              "Time of a transaction of the store, sync included.", controller.commits,
              controller.commit_microseconds);
  AddDuration(families, "offshoot_schedule_seconds", "Time of a scheduling cycle.",
              controller.schedules, controller.schedule_microseconds);
  AddDuration(families, "offshoot_queue_wait_seconds",
              "From submit, or the end of the attempt before, until a job is placed.",
              controller.placements, controller.queue_wait_microseconds);
  AddCounter(families, "offshoot_store_commit_failures_total",
             "Transactions that failed and were undone.",
             static_cast<double>(controller.commit_failures));
  AddCounter(families, "offshoot_preemptions_total",
             "Running jobs asked to make room for jobs of higher priority.",
             static_cast<double>(controller.preemptions));
  AddCounter(families, "offshoot_submits_total", "Jobs taken in.",
             static_cast<double>(controller.submits));
  AddCounter(families, "offshoot_fenced_reports_total",
             "Reports refused because their attempt was not the current one.",
             static_cast<double>(controller.fenced_reports));
  MetricFamily rpcs{"offshoot_rpcs_total", "Calls by service.", MetricType::Counter, {}};
  for (const auto& [service, count] : {std::pair<const char*, std::int64_t>{"Jobs", calls.jobs},
                                       {"Models", calls.models},
                                       {"Cluster", calls.cluster}}) {
    ClientMetric metric;
    metric.label = {{"service", service}};
    metric.counter.value = static_cast<double>(count);
    rpcs.metric.push_back(std::move(metric));
  }
  families.push_back(std::move(rpcs));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace offshoot
