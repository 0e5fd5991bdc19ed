#include "coordinator/store_sqlite.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "coordinator/records_json.h"

namespace offshoot {
namespace {

// One entry a schema version; entry i leads from version i to i + 1. Never change one that was
// released: add another.
constexpr const char* kMigrations[] = {
    R"sql(
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('version', 0);
CREATE TABLE jobs (
  job_id TEXT PRIMARY KEY, request_id TEXT UNIQUE, name TEXT NOT NULL, team TEXT NOT NULL,
  definition TEXT NOT NULL, spec_yaml TEXT NOT NULL);
CREATE TABLE job_records (
  job_id TEXT PRIMARY KEY REFERENCES jobs, state INTEGER NOT NULL, live INTEGER NOT NULL,
  record TEXT NOT NULL);
CREATE INDEX job_records_live ON job_records (job_id) WHERE live = 1;
CREATE INDEX job_records_state ON job_records (state, job_id);
CREATE TABLE job_inputs (job_id TEXT PRIMARY KEY REFERENCES jobs, inputs TEXT NOT NULL);
CREATE TABLE job_events (
  job_id TEXT NOT NULL REFERENCES jobs, sequence INTEGER NOT NULL, event TEXT NOT NULL,
  PRIMARY KEY (job_id, sequence)) WITHOUT ROWID;
CREATE TABLE effects (effect_id INTEGER PRIMARY KEY, effect TEXT NOT NULL);
CREATE TABLE workers (worker_id TEXT PRIMARY KEY, worker TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE preflights (key TEXT PRIMARY KEY, result TEXT NOT NULL);
CREATE TABLE file_digests (
  path TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, modified_ns INTEGER NOT NULL,
  inode INTEGER NOT NULL, digest TEXT NOT NULL);
CREATE TABLE base_models (name TEXT PRIMARY KEY, model TEXT NOT NULL);
CREATE TABLE derivatives (
  number INTEGER PRIMARY KEY AUTOINCREMENT, derivative_id TEXT NOT NULL UNIQUE,
  job_id TEXT NOT NULL UNIQUE REFERENCES jobs, team TEXT NOT NULL,
  base_model_digest TEXT NOT NULL, derivative TEXT NOT NULL);
CREATE TABLE artifact_references (
  owner TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (owner, digest)) WITHOUT ROWID;
CREATE INDEX artifact_references_digest ON artifact_references (digest);
)sql",
    R"sql(
CREATE INDEX file_digests_digest ON file_digests (digest);
)sql",
    R"sql(
CREATE TABLE team_use (team TEXT PRIMARY KEY, device_ms INTEGER NOT NULL, as_of INTEGER NOT NULL);
)sql",
};
constexpr std::int64_t kSchemaVersion = std::size(kMigrations);
constexpr std::size_t kMaxFreeReaders = 4;
constexpr std::size_t kMaxKnown = 4096;

template <typename Map, typename Value>
void Keep(Map& map, const std::string& key, Value value) {
  if (map.size() >= kMaxKnown) map.clear();
  map[key] = std::move(value);
}

constexpr absl::string_view kSelectJobs =
    "SELECT j.definition, j.spec_yaml, r.record, i.inputs FROM jobs j"
    " JOIN job_records r ON r.job_id = j.job_id LEFT JOIN job_inputs i ON i.job_id = j.job_id ";

absl::StatusOr<JobRecord> JobFromRow(const SqliteStatement& row) {
  JobRecord job;
  ASSIGN_OR_RETURN(JobDefinition definition, DecodeDefinition(row.Text(0)));
  definition.spec_yaml = row.Text(1);
  job.definition = std::make_shared<const JobDefinition>(std::move(definition));
  RETURN_IF_ERROR(DecodeJob(row.Text(2), &job));
  if (const std::string inputs = row.Text(3); !inputs.empty()) {
    ASSIGN_OR_RETURN(JobInputs decoded, DecodeInputs(inputs));
    job.inputs = std::make_shared<const JobInputs>(std::move(decoded));
  }
  return job;
}

}  // namespace

absl::StatusOr<SqliteStatement*> SqliteStore::Connection::Statement(absl::string_view sql) {
  const auto it = statements.find(sql);
  if (it != statements.end()) return &it->second;
  ASSIGN_OR_RETURN(SqliteStatement statement, SqliteStatement::Prepare(connection.get(), sql));
  return &statements.emplace(std::string(sql), std::move(statement)).first->second;
}

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::Open(const std::string& path) {
  std::unique_ptr<SqliteStore> store(new SqliteStore());
  store->path_ = path;
  absl::MutexLock lock(&store->writer_mutex_);
  ASSIGN_OR_RETURN(store->writer_.connection, SqliteConnection::Open(path));
  RETURN_IF_ERROR(store->Migrate());
  ASSIGN_OR_RETURN(SqliteStatement * version,
                   store->writer_.Statement("SELECT value FROM meta WHERE key = 'version'"));
  ASSIGN_OR_RETURN(bool found, version->Step());
  if (!found) return absl::DataLossError(absl::StrCat(path, " is not a store of Offshoot"));
  store->version_ = version->Int(0);
  version->Reset();
  return store;
}

absl::Status SqliteStore::Migrate() {
  std::int64_t version = 0;
  {
    ASSIGN_OR_RETURN(SqliteStatement statement,
                     SqliteStatement::Prepare(writer_.connection.get(), "PRAGMA user_version"));
    ASSIGN_OR_RETURN(bool found, statement.Step());
    if (found) version = statement.Int(0);
  }
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the store ", path_, " has schema version ",
                                                      version, "; this coordinator knows ",
                                                      kSchemaVersion, ": run a newer one"));
  }
  for (; version < kSchemaVersion; ++version) {
    const std::string step = absl::StrCat("BEGIN IMMEDIATE;", kMigrations[version],
                                          "PRAGMA user_version = ", version + 1, "; COMMIT;");
    RETURN_IF_ERROR(writer_.connection.Execute(step.c_str()));
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::Write(absl::string_view sql, Bind bind) {
  ASSIGN_OR_RETURN(SqliteStatement * statement, writer_.Statement(sql));
  bind(*statement);
  return statement->Run();
}

absl::StatusOr<std::int64_t> SqliteStore::Commit(const StoreWrite& write) {
  absl::MutexLock lock(&writer_mutex_);
  if (write.if_version && *write.if_version != version_) {
    return absl::AbortedError(
        absl::StrCat("the store is at version ", version_, ", not ", *write.if_version));
  }
  RETURN_IF_ERROR(Write("BEGIN IMMEDIATE", [](SqliteStatement&) {}));
  absl::Status status = WriteAll(write);
  if (status.ok()) status = Write("COMMIT", [](SqliteStatement&) {});
  if (!status.ok()) {
    // Fails harmlessly where the error has rolled back already.
    (void)writer_.connection.Execute("ROLLBACK");
    return status;
  }
  Remember(write);
  return ++version_;
}

void SqliteStore::Remember(const StoreWrite& write) {
  absl::MutexLock lock(&known_mutex_);
  for (const FileDigest& file : write.file_digests) Keep(known_files_, file.identity.path, file);
  for (const PreflightAnswer& answer : write.preflights) {
    Keep(known_preflights_, answer.key, answer.result_json);
  }
}

absl::Status SqliteStore::WriteAll(const StoreWrite& write) {
  RETURN_IF_ERROR(
      Write("UPDATE meta SET value = value + 1 WHERE key = 'version'", [](SqliteStatement&) {}));
  RETURN_IF_ERROR(WriteJobs(write));
  for (const StoredEffect& effect : write.new_effects) {
    const std::string text = EncodeEffect(effect.effect);
    RETURN_IF_ERROR(Write("INSERT OR REPLACE INTO effects VALUES (?, ?)",
                          [&](SqliteStatement& s) { s.Bind(1, effect.effect_id).Bind(2, text); }));
  }
  for (std::int64_t effect_id : write.done_effects) {
    RETURN_IF_ERROR(Write("DELETE FROM effects WHERE effect_id = ?",
                          [&](SqliteStatement& s) { s.Bind(1, effect_id); }));
  }
  return WriteModels(write);
}

absl::Status SqliteStore::WriteJobs(const StoreWrite& write) {
  for (const JobRecord& job : write.new_jobs) {
    const JobDefinition& definition = *job.definition;
    const std::string text = EncodeDefinition(definition);
    RETURN_IF_ERROR(Write("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)", [&](SqliteStatement& s) {
      s.Bind(1, definition.job_id.value()).Bind(3, definition.name).Bind(4, definition.team);
      s.Bind(5, text).Bind(6, definition.spec_yaml);
      if (definition.request_id.empty()) {
        s.BindNull(2);
      } else {
        s.Bind(2, definition.request_id);
      }
    }));
  }
  for (const std::vector<JobRecord>* jobs : {&write.new_jobs, &write.jobs}) {
    for (const JobRecord& job : *jobs) {
      const std::string text = EncodeJob(job);
      const bool live = !IsTerminal(job.state) || job.has_open_attempt();
      RETURN_IF_ERROR(
          Write("INSERT INTO job_records VALUES (?, ?, ?, ?) ON CONFLICT (job_id) DO"
                " UPDATE SET state = excluded.state, live = excluded.live,"
                " record = excluded.record",
                [&](SqliteStatement& s) {
                  s.Bind(1, job.id().value()).Bind(2, static_cast<int>(job.state));
                  s.Bind(3, live ? 1 : 0).Bind(4, text);
                }));
    }
  }
  for (const auto& [job_id, inputs] : write.inputs) {
    const std::string text = EncodeInputs(*inputs);
    RETURN_IF_ERROR(
        Write("INSERT OR REPLACE INTO job_inputs VALUES (?, ?)",
              [&, &id = job_id](SqliteStatement& s) { s.Bind(1, id.value()).Bind(2, text); }));
  }
  for (const JobEventRecord& event : write.events) {
    const std::string text = EncodeEvent(event);
    RETURN_IF_ERROR(Write("INSERT INTO job_events VALUES (?, ?, ?)", [&](SqliteStatement& s) {
      s.Bind(1, event.job_id.value()).Bind(2, event.sequence).Bind(3, text);
    }));
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteModels(const StoreWrite& write) {
  for (const WorkerRecord& worker : write.workers) {
    const std::string text = EncodeWorker(worker);
    RETURN_IF_ERROR(Write("INSERT OR REPLACE INTO workers VALUES (?, ?)", [&](SqliteStatement& s) {
      s.Bind(1, worker.worker_id.value()).Bind(2, text);
    }));
  }
  for (const TeamUseRecord& use : write.team_use) {
    RETURN_IF_ERROR(
        Write("INSERT OR REPLACE INTO team_use VALUES (?, ?, ?)", [&](SqliteStatement& s) {
          s.Bind(1, use.team).Bind(2, static_cast<std::int64_t>(use.device_seconds * 1000));
          s.Bind(3, absl::ToUnixMicros(use.as_of));
        }));
  }
  for (const PreflightAnswer& answer : write.preflights) {
    RETURN_IF_ERROR(
        Write("INSERT OR REPLACE INTO preflights VALUES (?, ?)",
              [&](SqliteStatement& s) { s.Bind(1, answer.key).Bind(2, answer.result_json); }));
  }
  for (const FileDigest& file : write.file_digests) {
    RETURN_IF_ERROR(Write(
        "INSERT OR REPLACE INTO file_digests VALUES (?, ?, ?, ?, ?)", [&](SqliteStatement& s) {
          s.Bind(1, file.identity.path).Bind(2, file.identity.size_bytes);
          s.Bind(3, file.identity.modified_ns);
          s.Bind(4, static_cast<std::int64_t>(file.identity.inode)).Bind(5, file.digest);
        }));
  }
  for (const BaseModelRecord& model : write.base_models) {
    const std::string text = EncodeBaseModel(model);
    RETURN_IF_ERROR(Write("INSERT OR REPLACE INTO base_models VALUES (?, ?)",
                          [&](SqliteStatement& s) { s.Bind(1, model.name).Bind(2, text); }));
  }
  for (const DerivativeRecord& derivative : write.derivatives) {
    const std::string text = EncodeDerivative(derivative);
    RETURN_IF_ERROR(
        Write("INSERT OR IGNORE INTO derivatives (derivative_id, job_id, team, base_model_digest,"
              " derivative) VALUES (?, ?, ?, ?, ?)",
              [&](SqliteStatement& s) {
                s.Bind(1, derivative.derivative_id.value()).Bind(2, derivative.job_id.value());
                s.Bind(3, derivative.team).Bind(4, derivative.base_model_digest).Bind(5, text);
              }));
  }
  for (const References& references : write.references) {
    RETURN_IF_ERROR(Write("DELETE FROM artifact_references WHERE owner = ?",
                          [&](SqliteStatement& s) { s.Bind(1, references.owner); }));
    for (const std::string& digest : references.digests) {
      RETURN_IF_ERROR(
          Write("INSERT OR IGNORE INTO artifact_references VALUES (?, ?)",
                [&](SqliteStatement& s) { s.Bind(1, references.owner).Bind(2, digest); }));
    }
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::Read(absl::string_view sql, Bind bind, OnRow on_row) {
  std::unique_ptr<Connection> reader;
  {
    absl::MutexLock lock(&readers_mutex_);
    if (!free_readers_.empty()) {
      reader = std::move(free_readers_.back());
      free_readers_.pop_back();
    }
  }
  if (reader == nullptr) {
    reader = std::make_unique<Connection>();
    ASSIGN_OR_RETURN(reader->connection, SqliteConnection::Open(path_));
  }
  ASSIGN_OR_RETURN(SqliteStatement * statement, reader->Statement(sql));
  bind(*statement);
  absl::Status status;
  while (status.ok()) {
    absl::StatusOr<bool> row = statement->Step();
    if (!row.ok()) return row.status();
    if (!*row) break;
    status = on_row(*statement);
  }
  statement->Reset();
  absl::MutexLock lock(&readers_mutex_);
  if (free_readers_.size() < kMaxFreeReaders) free_readers_.push_back(std::move(reader));
  return status;
}

absl::StatusOr<std::vector<JobRecord>> SqliteStore::ReadJobs(absl::string_view where, Bind bind) {
  std::vector<JobRecord> jobs;
  RETURN_IF_ERROR(Read(absl::StrCat(kSelectJobs, where), bind, [&](const SqliteStatement& row) {
    ASSIGN_OR_RETURN(JobRecord job, JobFromRow(row));
    jobs.push_back(std::move(job));
    return absl::OkStatus();
  }));
  return jobs;
}

absl::StatusOr<LoadedState> SqliteStore::Load() {
  LoadedState state;
  {
    absl::MutexLock lock(&writer_mutex_);
    state.version = version_;
  }
  const auto no_parameters = [](SqliteStatement&) {};
  ASSIGN_OR_RETURN(state.jobs, ReadJobs("WHERE r.live = 1 ORDER BY j.job_id", no_parameters));
  RETURN_IF_ERROR(Read("SELECT effect_id, effect FROM effects ORDER BY effect_id", no_parameters,
                       [&](const SqliteStatement& row) {
                         ASSIGN_OR_RETURN(Effect effect, DecodeEffect(row.Text(1)));
                         state.effects.push_back({row.Int(0), std::move(effect)});
                         state.last_effect_id = row.Int(0);
                         return absl::OkStatus();
                       }));
  RETURN_IF_ERROR(Read("SELECT worker FROM workers ORDER BY worker_id", no_parameters,
                       [&](const SqliteStatement& row) {
                         ASSIGN_OR_RETURN(WorkerRecord worker, DecodeWorker(row.Text(0)));
                         state.workers.push_back(std::move(worker));
                         return absl::OkStatus();
                       }));
  RETURN_IF_ERROR(Read("SELECT team, device_ms, as_of FROM team_use ORDER BY team", no_parameters,
                       [&](const SqliteStatement& row) {
                         state.team_use.push_back({row.Text(0),
                                                   static_cast<double>(row.Int(1)) / 1000,
                                                   absl::FromUnixMicros(row.Int(2))});
                         return absl::OkStatus();
                       }));
  return state;
}

absl::StatusOr<bool> SqliteStore::IsRequest(const std::string& request_id) {
  ASSIGN_OR_RETURN(SqliteStatement * statement,
                   writer_.Statement("SELECT 1 FROM jobs WHERE request_id = ?"));
  statement->Bind(1, request_id);
  absl::StatusOr<bool> found = statement->Step();
  statement->Reset();
  return found;
}

absl::StatusOr<JobRecord> SqliteStore::GetJob(const JobId& job_id) {
  ASSIGN_OR_RETURN(
      std::vector<JobRecord> jobs,
      ReadJobs("WHERE j.job_id = ?", [&](SqliteStatement& s) { s.Bind(1, job_id.value()); }));
  if (jobs.empty()) return absl::NotFoundError(absl::StrCat("there is no job ", job_id.value()));
  return std::move(jobs.front());
}

// Mostly for a submit, which asks whether it is a repeat and mostly is none: the writing connection
// has the index's pages at hand, where it is free.
absl::StatusOr<std::optional<JobRecord>> SqliteStore::FindRequest(const std::string& request_id) {
  if (writer_mutex_.TryLock()) {
    absl::StatusOr<bool> taken = IsRequest(request_id);
    writer_mutex_.Unlock();
    if (!taken.ok()) return taken.status();
    if (!*taken) return std::nullopt;
  }
  ASSIGN_OR_RETURN(
      std::vector<JobRecord> jobs,
      ReadJobs("WHERE j.request_id = ?", [&](SqliteStatement& s) { s.Bind(1, request_id); }));
  if (jobs.empty()) return std::nullopt;
  return std::move(jobs.front());
}

absl::StatusOr<std::vector<JobRecord>> SqliteStore::ListJobs(const JobFilter& filter) {
  // The number of distinct statements is bounded: states only ever number kJobStateCount.
  std::vector<std::string> conditions;
  if (!filter.before.empty()) conditions.push_back("j.job_id < ?1");
  if (!filter.team.empty()) conditions.push_back("j.team = ?2");
  if (!filter.name_contains.empty()) conditions.push_back("instr(j.name, ?3) > 0");
  if (!filter.states.empty()) {
    conditions.push_back(absl::StrCat(
        "r.state IN (",
        absl::StrJoin(filter.states, ",",
                      [](std::string* out, JobState s) { absl::StrAppend(out, int(s)); }),
        ")"));
  }
  const std::string where =
      absl::StrCat(conditions.empty() ? "" : "WHERE ", absl::StrJoin(conditions, " AND "),
                   " ORDER BY j.job_id DESC LIMIT ?4");
  return ReadJobs(where, [&](SqliteStatement& s) {
    s.Bind(1, filter.before.value()).Bind(2, filter.team).Bind(3, filter.name_contains);
    s.Bind(4, filter.limit);
  });
}

absl::StatusOr<std::vector<JobEventRecord>> SqliteStore::ListEvents(const JobId& job_id,
                                                                    std::int64_t from_sequence,
                                                                    int limit) {
  std::vector<JobEventRecord> events;
  RETURN_IF_ERROR(Read(
      "SELECT sequence, event FROM job_events WHERE job_id = ? AND sequence >= ?"
      " ORDER BY sequence LIMIT ?",
      [&](SqliteStatement& s) { s.Bind(1, job_id.value()).Bind(2, from_sequence).Bind(3, limit); },
      [&](const SqliteStatement& row) {
        JobEventRecord event;
        event.job_id = job_id;
        event.sequence = row.Int(0);
        RETURN_IF_ERROR(DecodeEvent(row.Text(1), &event));
        events.push_back(std::move(event));
        return absl::OkStatus();
      }));
  return events;
}

absl::StatusOr<std::optional<std::string>> SqliteStore::FindPreflight(const std::string& key) {
  {
    absl::MutexLock lock(&known_mutex_);
    const auto known = known_preflights_.find(key);
    if (known != known_preflights_.end()) return known->second;
  }
  std::optional<std::string> found;
  RETURN_IF_ERROR(Read(
      "SELECT result FROM preflights WHERE key = ?", [&](SqliteStatement& s) { s.Bind(1, key); },
      [&](const SqliteStatement& row) {
        found = row.Text(0);
        return absl::OkStatus();
      }));
  if (found) {
    absl::MutexLock lock(&known_mutex_);
    Keep(known_preflights_, key, *found);
  }
  return found;
}

absl::StatusOr<std::optional<std::string>> SqliteStore::FindFileDigest(
    const FileIdentity& identity) {
  {
    absl::MutexLock lock(&known_mutex_);
    const auto known = known_files_.find(identity.path);
    if (known != known_files_.end() && known->second.identity == identity) {
      return known->second.digest;
    }
  }
  std::optional<std::string> found;
  RETURN_IF_ERROR(Read(
      "SELECT digest FROM file_digests WHERE path = ? AND size_bytes = ? AND modified_ns = ?"
      " AND inode = ?",
      [&](SqliteStatement& s) {
        s.Bind(1, identity.path).Bind(2, identity.size_bytes).Bind(3, identity.modified_ns);
        s.Bind(4, static_cast<std::int64_t>(identity.inode));
      },
      [&](const SqliteStatement& row) {
        found = row.Text(0);
        return absl::OkStatus();
      }));
  if (found) {
    absl::MutexLock lock(&known_mutex_);
    Keep(known_files_, identity.path, FileDigest{identity, *found});
  }
  return found;
}

absl::StatusOr<std::vector<FileIdentity>> SqliteStore::FindFilesByDigest(
    const std::string& digest) {
  std::vector<FileIdentity> found;
  RETURN_IF_ERROR(Read(
      "SELECT path, size_bytes, modified_ns, inode FROM file_digests WHERE digest = ?"
      " ORDER BY path LIMIT 16",
      [&](SqliteStatement& s) { s.Bind(1, digest); },
      [&](const SqliteStatement& row) {
        found.push_back(FileIdentity{row.Text(0), row.Int(1), row.Int(2),
                                     static_cast<std::uint64_t>(row.Int(3))});
        return absl::OkStatus();
      }));
  return found;
}

absl::StatusOr<BaseModelRecord> SqliteStore::GetBaseModel(const std::string& name) {
  std::optional<BaseModelRecord> found;
  RETURN_IF_ERROR(Read(
      "SELECT model FROM base_models WHERE name = ?", [&](SqliteStatement& s) { s.Bind(1, name); },
      [&](const SqliteStatement& row) {
        ASSIGN_OR_RETURN(found, DecodeBaseModel(row.Text(0)));
        return absl::OkStatus();
      }));
  if (!found) {
    return absl::NotFoundError(absl::StrCat("no base model is registered as '", name, "'"));
  }
  return *std::move(found);
}

absl::StatusOr<std::vector<BaseModelRecord>> SqliteStore::ListBaseModels(const std::string& after,
                                                                         int limit) {
  std::vector<BaseModelRecord> models;
  RETURN_IF_ERROR(Read(
      "SELECT model FROM base_models WHERE name > ? ORDER BY name LIMIT ?",
      [&](SqliteStatement& s) { s.Bind(1, after).Bind(2, limit); },
      [&](const SqliteStatement& row) {
        ASSIGN_OR_RETURN(BaseModelRecord model, DecodeBaseModel(row.Text(0)));
        models.push_back(std::move(model));
        return absl::OkStatus();
      }));
  return models;
}

absl::StatusOr<DerivativeRecord> SqliteStore::GetDerivative(const DerivativeId& derivative_id) {
  std::optional<DerivativeRecord> found;
  RETURN_IF_ERROR(Read(
      "SELECT derivative FROM derivatives WHERE derivative_id = ?",
      [&](SqliteStatement& s) { s.Bind(1, derivative_id.value()); },
      [&](const SqliteStatement& row) {
        ASSIGN_OR_RETURN(found, DecodeDerivative(row.Text(0)));
        return absl::OkStatus();
      }));
  if (!found) {
    return absl::NotFoundError(absl::StrCat("there is no derivative ", derivative_id.value()));
  }
  return *std::move(found);
}

absl::StatusOr<std::vector<DerivativeRecord>> SqliteStore::ListDerivatives(
    const DerivativeFilter& filter) {
  std::vector<DerivativeRecord> derivatives;
  RETURN_IF_ERROR(Read(
      "SELECT derivative FROM derivatives WHERE (?1 = '' OR base_model_digest = ?1)"
      " AND (?2 = '' OR team = ?2) AND (?3 = '' OR number <"
      " (SELECT number FROM derivatives WHERE derivative_id = ?3)) ORDER BY number DESC LIMIT ?4",
      [&](SqliteStatement& s) {
        s.Bind(1, filter.base_model_digest).Bind(2, filter.team).Bind(3, filter.before.value());
        s.Bind(4, filter.limit);
      },
      [&](const SqliteStatement& row) {
        ASSIGN_OR_RETURN(DerivativeRecord derivative, DecodeDerivative(row.Text(0)));
        derivatives.push_back(std::move(derivative));
        return absl::OkStatus();
      }));
  return derivatives;
}

absl::StatusOr<bool> SqliteStore::IsReferenced(const std::string& digest) {
  bool found = false;
  RETURN_IF_ERROR(Read(
      "SELECT 1 FROM artifact_references WHERE digest = ? LIMIT 1",
      [&](SqliteStatement& s) { s.Bind(1, digest); },
      [&](const SqliteStatement&) {
        found = true;
        return absl::OkStatus();
      }));
  return found;
}

}  // namespace offshoot
