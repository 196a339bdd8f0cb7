// Errors: what a user can cause (Error, with a documented exit code) and what only a bug can cause (ORPO_CHECK).
#pragma once

#include <stdexcept>
#include <string>

namespace orpo {

// Exit codes of the program. 130 and 143 are the usual ones for SIGINT and SIGTERM.
enum class Exit : int {
    kDone = 0,
    kInternal = 1,      // a bug
    kUsage = 2,         // wrong command line or configuration
    kBadData = 3,       // bad preference data or prompts
    kBadModel = 4,      // bad or unsupported model, tokenizer or adapter
    kMemory = 5,        // not enough memory, host or device
    kIo = 6,            // reading or writing failed
    kDiverged = 7,      // training met a non-finite number
    kCannotResume = 8,  // changed configuration, data or model; damaged checkpoint
    kNoDevice = 9,      // device unavailable
    kSigint = 130,
    kSigterm = 143,
};

// An error that a user can cause. The message says what is wrong, where (file:line:field) and how to mend it.
class Error : public std::runtime_error {
  public:
    Error(Exit exit, const std::string& message) : std::runtime_error(message), exit_(exit) {}
    Exit exit() const { return exit_; }

  private:
    Exit exit_;
};

// A broken promise inside the program: always a bug.
class InternalError : public std::logic_error {
  public:
    using std::logic_error::logic_error;
};

[[noreturn]] inline void check_failed(const char* expression, const char* file, int line) {
    throw InternalError(std::string(file) + ":" + std::to_string(line) + ": check failed: " + expression);
}

}  // namespace orpo

#define ORPO_CHECK(condition)                                                   \
    do {                                                                        \
        if (!(condition)) ::orpo::check_failed(#condition, __FILE__, __LINE__); \
    } while (0)
