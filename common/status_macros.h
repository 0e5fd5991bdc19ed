// RETURN_IF_ERROR and ASSIGN_OR_RETURN: what absl::Status of this version does not ship.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define OFFSHOOT_CONCAT_INNER(a, b) a##b
#define OFFSHOOT_CONCAT(a, b) OFFSHOOT_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                           \
  do {                                                        \
    if (absl::Status _status = (expression); !_status.ok()) { \
      return _status;                                         \
    }                                                         \
  } while (false)

#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_INNER(OFFSHOOT_CONCAT(_status_or_, __LINE__), declaration, expression)
#define ASSIGN_OR_RETURN_INNER(temporary, declaration, expression) \
  auto temporary = (expression);                                   \
  if (!temporary.ok()) {                                           \
    return temporary.status();                                     \
  }                                                                \
  declaration = std::move(temporary).value()
