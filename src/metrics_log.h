// metrics.jsonl: one JSON object a line, every line one write, numbers at full precision. What is not finite becomes
// null, and "nonfinite" lists its names.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/io.h"

namespace orpo {

using Json = nlohmann::ordered_json;

// The line for `object` without its '\n'. Invalid UTF-8 in strings (paths) is replaced, never refused.
std::string metrics_line(Json object);

class MetricsLog {
  public:
    // Creates the file, or goes on at its end.
    explicit MetricsLog(const std::string& path) : file_(path) {}

    void write(const Json& object) { file_.append_line(metrics_line(object)); }
    void sync() { file_.sync(); }
    const std::string& path() const { return file_.path(); }

    // Before a run resumes: drops "step" and "eval" lines beyond `step`, "end" lines, a torn last line, and, when
    // resuming from the beginning (step < 0), everything. Rewritten whole or not at all. A missing file is fine.
    static void rewind(const std::string& path, int64_t step);

  private:
    io::AppendFile file_;
};

}  // namespace orpo
