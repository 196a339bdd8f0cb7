// Talk on standard error, through spdlog: info as it is, "warning: ..." and "error: ..." marked; lines go above the
// progress bar. A run can copy everything to a file of its own.
#pragma once

#include <spdlog/logger.h>

#include <memory>
#include <string>

#include "src/terminal.h"

namespace orpo {

using Log = std::shared_ptr<spdlog::logger>;

// quiet: warnings and errors only. The terminal outlives the log.
Log make_log(Terminal& terminal, bool quiet);

// From now on every message, also those that --quiet hides, is appended to `path` with the UTC time before it.
void add_log_file(const Log& log, const std::string& path);

}  // namespace orpo
