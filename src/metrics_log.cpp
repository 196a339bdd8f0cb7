#include "src/metrics_log.h"

#include <cmath>
#include <vector>

namespace orpo {
namespace {

// A run of a million steps writes about 600 MB.
constexpr uint64_t kLargestLog = uint64_t{4} << 30;

bool keep_line(std::string_view line, int64_t step) {
    const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object() || !object.contains("type")) return false;  // torn, or not ours
    const Json& type = object["type"];
    if (type == "end") return false;
    if (type != "step" && type != "eval") return true;
    return object.contains("step") && object["step"].is_number_integer() && object["step"].get<int64_t>() <= step;
}

}  // namespace

std::string metrics_line(Json object) {
    std::vector<std::string> nonfinite;
    for (auto& [key, value] : object.items())
        if (value.is_number_float() && !std::isfinite(value.get<double>())) {
            value = nullptr;
            nonfinite.push_back(key);
        }
    if (!nonfinite.empty()) object["nonfinite"] = nonfinite;
    return object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void MetricsLog::rewind(const std::string& path, int64_t step) {
    if (!io::exists(path)) return;
    const std::string text = io::read_file(path, kLargestLog);
    std::string kept;
    for (size_t begin = 0; begin < text.size() && step >= 0;) {
        const size_t end = text.find('\n', begin);
        if (end == std::string::npos) break;  // torn
        const std::string_view line(text.data() + begin, end - begin);
        if (keep_line(line, step)) kept.append(line).append("\n");
        begin = end + 1;
    }
    if (kept != text) io::write_file_atomic(path, kept);
}

}  // namespace orpo
