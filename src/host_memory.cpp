#include "src/host_memory.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/io.h"

namespace orpo {
namespace {

std::string read_small(const char* path) {
    try {
        return io::exists(path) ? io::read_file(path, 1 << 20) : "";
    } catch (const Error&) {
        return "";
    }
}

// The first number after `key`, -1 when it is not there ("max" is no number either).
int64_t number_after(const std::string& text, std::string_view key) {
    size_t at = text.find(key);
    if (at == std::string::npos) return -1;
    at = text.find_first_not_of(" \t", at + key.size());
    if (at == std::string::npos) return -1;
    int64_t value = -1;
    std::from_chars(text.data() + at, text.data() + text.size(), value);
    return value;
}

int64_t status_kilobytes(std::string_view key) {
    return std::max<int64_t>(0, number_after(read_small("/proc/self/status"), key)) * 1024;
}

}  // namespace

int64_t peak_bytes() { return status_kilobytes("VmHWM:"); }
int64_t resident_bytes() { return status_kilobytes("VmRSS:"); }

int64_t available_bytes() {
    const int64_t kilobytes = number_after(read_small("/proc/meminfo"), "MemAvailable:");
    int64_t left = kilobytes < 0 ? std::numeric_limits<int64_t>::max() : kilobytes * 1024;
    const int64_t limit = number_after(read_small("/sys/fs/cgroup/memory.max"), "");
    const int64_t used = number_after(read_small("/sys/fs/cgroup/memory.current"), "");
    // Cached files count as used there, but make room when asked.
    const int64_t cached =
        std::max<int64_t>(0, number_after(read_small("/sys/fs/cgroup/memory.stat"), "inactive_file "));
    if (limit > 0 && used >= 0) left = std::min(left, limit - used + cached);
    return std::max<int64_t>(0, left);
}

}  // namespace orpo
