#include "src/log.h"

#include <fmt/chrono.h>
#include <spdlog/sinks/base_sink.h>

#include <ctime>
#include <mutex>

#include "base/error.h"
#include "base/io.h"

namespace orpo {
namespace {

std::string_view payload(const spdlog::details::log_msg& message) {
    return {message.payload.data(), message.payload.size()};
}

std::string marked(const Terminal* terminal, const spdlog::details::log_msg& message) {
    std::string mark;
    if (message.level == spdlog::level::warn) mark = terminal ? terminal->yellow("warning: ") : "warning: ";
    if (message.level >= spdlog::level::err) mark = terminal ? terminal->red("error: ") : "error: ";
    return mark + std::string(payload(message));
}

class TerminalSink : public spdlog::sinks::base_sink<std::mutex> {
  public:
    explicit TerminalSink(Terminal& terminal) : terminal_(terminal) {}

  protected:
    void sink_it_(const spdlog::details::log_msg& message) override { terminal_.line(marked(&terminal_, message)); }
    void flush_() override {}

  private:
    Terminal& terminal_;
};

class FileSink : public spdlog::sinks::base_sink<std::mutex> {
  public:
    explicit FileSink(const std::string& path) : file_(path) {}

  protected:
    void sink_it_(const spdlog::details::log_msg& message) override {
        file_.append_line(fmt::format("{:%Y-%m-%dT%H:%M:%SZ} {}",
                                      fmt::gmtime(spdlog::log_clock::to_time_t(message.time)),
                                      marked(nullptr, message)));
    }
    void flush_() override { file_.sync(); }

  private:
    io::AppendFile file_;
};

}  // namespace

Log make_log(Terminal& terminal, bool quiet) {
    auto sink = std::make_shared<TerminalSink>(terminal);
    if (quiet) sink->set_level(spdlog::level::warn);
    auto log = std::make_shared<spdlog::logger>("orpo", std::move(sink));
    log->set_level(spdlog::level::info);
    // A full disk under the log file must not be swallowed, nor reported through the log itself.
    log->set_error_handler([](const std::string& message) { throw Error(Exit::kIo, message); });
    return log;
}

void add_log_file(const Log& log, const std::string& path) { log->sinks().push_back(std::make_shared<FileSink>(path)); }

}  // namespace orpo
