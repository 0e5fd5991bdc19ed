// The few parts of SQLite that the store uses, with values that clean up after themselves.
// A connection and its statements belong to one thread at a time.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot {

// RESOURCE_EXHAUSTED for a full disk, DATA_LOSS for a damaged file, else INTERNAL; with SQLite's
// own words and the name of the file.
absl::Status SqliteStatus(sqlite3* database, absl::string_view doing);

// A prepared statement that is reset by Reset or by its next use.
class SqliteStatement {
 public:
  SqliteStatement() = default;
  SqliteStatement(SqliteStatement&& other) noexcept;
  SqliteStatement& operator=(SqliteStatement&& other) noexcept;
  ~SqliteStatement();

  static absl::StatusOr<SqliteStatement> Prepare(sqlite3* database, absl::string_view sql);

  // Parameters from 1. The bytes must live until Step has returned.
  SqliteStatement& Bind(int index, std::int64_t value);
  SqliteStatement& Bind(int index, absl::string_view text);
  SqliteStatement& BindNull(int index);

  // True: a row is there. After false or an error the statement is reset.
  absl::StatusOr<bool> Step();
  // Runs a statement that returns no row.
  absl::Status Run();
  void Reset();

  std::int64_t Int(int column) const { return sqlite3_column_int64(statement_, column); }
  std::string Text(int column) const;

 private:
  sqlite3_stmt* statement_ = nullptr;
};

class SqliteConnection {
 public:
  SqliteConnection() = default;
  SqliteConnection(SqliteConnection&& other) noexcept;
  SqliteConnection& operator=(SqliteConnection&& other) noexcept;
  ~SqliteConnection();

  // WAL, synchronous=FULL, foreign keys on; waits up to 5 s for another connection's lock.
  static absl::StatusOr<SqliteConnection> Open(const std::string& path);

  absl::Status Execute(const char* sql);
  sqlite3* get() const { return database_; }

 private:
  sqlite3* database_ = nullptr;
};

}  // namespace offshoot
