#include "coordinator/sqlite.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace offshoot {

absl::Status SqliteStatus(sqlite3* database, absl::string_view doing) {
  const char* file = database == nullptr ? nullptr : sqlite3_db_filename(database, "main");
  const std::string message =
      absl::StrCat(doing, " in the store ", file == nullptr ? "" : file,
                   " failed: ", database == nullptr ? "out of memory" : sqlite3_errmsg(database));
  switch (database == nullptr ? SQLITE_NOMEM : sqlite3_errcode(database)) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(
          absl::StrCat(message, "; free space on its disk and try again"));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(absl::StrCat(message, "; restore it from a copy"));
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(message);
    case SQLITE_IOERR:
      // A full disk shows as a failed write where space runs out in the middle of one.
      return absl::UnavailableError(absl::StrCat(message, "; check the disk and its free space"));
    default:
      return absl::InternalError(message);
  }
}

SqliteStatement::SqliteStatement(SqliteStatement&& other) noexcept
    : statement_(std::exchange(other.statement_, nullptr)) {}

SqliteStatement& SqliteStatement::operator=(SqliteStatement&& other) noexcept {
  std::swap(statement_, other.statement_);
  return *this;
}

SqliteStatement::~SqliteStatement() { sqlite3_finalize(statement_); }

absl::StatusOr<SqliteStatement> SqliteStatement::Prepare(sqlite3* database, absl::string_view sql) {
  SqliteStatement statement;
  if (sqlite3_prepare_v3(database, sql.data(), static_cast<int>(sql.size()),
                         SQLITE_PREPARE_PERSISTENT, &statement.statement_, nullptr) != SQLITE_OK) {
    return SqliteStatus(database, absl::StrCat("preparing '", sql, "'"));
  }
  return statement;
}

SqliteStatement& SqliteStatement::Bind(int index, std::int64_t value) {
  sqlite3_bind_int64(statement_, index, value);
  return *this;
}

SqliteStatement& SqliteStatement::Bind(int index, absl::string_view text) {
  sqlite3_bind_text64(statement_, index, text.data() == nullptr ? "" : text.data(), text.size(),
                      SQLITE_STATIC, SQLITE_UTF8);
  return *this;
}

SqliteStatement& SqliteStatement::BindNull(int index) {
  sqlite3_bind_null(statement_, index);
  return *this;
}

absl::StatusOr<bool> SqliteStatement::Step() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) {
    Reset();
    return false;
  }
  absl::Status status = SqliteStatus(sqlite3_db_handle(statement_), "a statement");
  Reset();
  return status;
}

absl::Status SqliteStatement::Run() {
  absl::StatusOr<bool> row = Step();
  if (!row.ok()) return row.status();
  Reset();
  return absl::OkStatus();
}

void SqliteStatement::Reset() {
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

std::string SqliteStatement::Text(int column) const {
  const auto* text = sqlite3_column_text(statement_, column);
  if (text == nullptr) return std::string();
  return std::string(reinterpret_cast<const char*>(text),
                     static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
}

SqliteConnection::SqliteConnection(SqliteConnection&& other) noexcept
    : database_(std::exchange(other.database_, nullptr)) {}

SqliteConnection& SqliteConnection::operator=(SqliteConnection&& other) noexcept {
  std::swap(database_, other.database_);
  return *this;
}

SqliteConnection::~SqliteConnection() { sqlite3_close_v2(database_); }

absl::StatusOr<SqliteConnection> SqliteConnection::Open(const std::string& path) {
  SqliteConnection connection;
  if (sqlite3_open_v2(path.c_str(), &connection.database_,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                      nullptr) != SQLITE_OK) {
    return SqliteStatus(connection.database_, absl::StrCat("opening ", path));
  }
  sqlite3_busy_timeout(connection.database_, 5000);
  absl::Status status = connection.Execute(
      "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
      "PRAGMA wal_autocheckpoint=4000; PRAGMA journal_size_limit=67108864;");
  if (!status.ok()) return status;
  return connection;
}

absl::Status SqliteConnection::Execute(const char* sql) {
  if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) {
    return SqliteStatus(database_, "a statement");
  }
  return absl::OkStatus();
}

}  // namespace offshoot
