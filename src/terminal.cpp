#include "src/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "base/io_sys.h"

namespace orpo {
namespace {

bool set(const char* variable) {
    const char* value = std::getenv(variable);
    return value != nullptr && *value != '\0';
}

bool forced(const char* variable) { return set(variable) && std::string_view(std::getenv(variable)) != "0"; }

bool wants_color(bool is_terminal, bool no_color) {
    if (no_color || set("NO_COLOR")) return false;
    if (forced("CLICOLOR_FORCE") || forced("FORCE_COLOR")) return true;
    const char* term = std::getenv("TERM");
    return is_terminal && term != nullptr && std::string_view(term) != "dumb";
}

bool dumb_terminal() {
    const char* term = std::getenv("TERM");
    return term != nullptr && std::string_view(term) == "dumb";
}

}  // namespace

// A dumb terminal cannot rewrite a line, so it gets whole lines as a file does.
Terminal::Terminal(bool no_color)
    : is_terminal_(isatty(2) == 1 && !dumb_terminal()), color_(wants_color(isatty(2) == 1, no_color)) {}

Terminal::Terminal(int fd, bool is_terminal, bool color, int width)
    : fd_(fd), is_terminal_(is_terminal), color_(color), fixed_width_(width) {}

Terminal::~Terminal() { status(""); }

int Terminal::width() const {
    if (fixed_width_ > 0) return fixed_width_;
    winsize size{};
    return ioctl(fd_, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void Terminal::put(std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return;
        bytes.remove_prefix(static_cast<size_t>(n));
    }
}

std::string Terminal::erase() const {
    if (status_.empty()) return "";
    std::string bytes = "\r";
    for (const char c : status_)
        if (c == '\n') bytes += "\x1b[A";
    return bytes + "\x1b[J";
}

void Terminal::line(std::string_view text) {
    const std::lock_guard lock(mutex_);
    put(erase() + std::string(text) + '\n' + status_);
}

void Terminal::status(std::string_view text) {
    const std::lock_guard lock(mutex_);
    if (!is_terminal_) return;
    put(erase() + std::string(text));
    status_ = text;
}

std::string Terminal::paint(const char* code, std::string_view text) const {
    return color_ ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

void print(std::string_view text) {
    while (!text.empty()) {
        const ssize_t n = io::sys_write(1, text.data(), text.size());
        if (n < 0 && errno == EPIPE) throw BrokenPipe{};
        if (n < 0) io::throw_errno("writing", "standard output", errno);
        text.remove_prefix(static_cast<size_t>(n));
    }
}

bool stdout_is_terminal() { return isatty(1) == 1; }

std::string with_commas(long long n) {
    std::string digits = std::to_string(n);
    const int first = digits[0] == '-' ? 1 : 0;
    for (int i = static_cast<int>(digits.size()) - 3; i > first; i -= 3) digits.insert(i, ",");
    return digits;
}

std::string human_bytes(double bytes) {
    if (bytes < 1e3) return fmt::format("{:.0f} B", bytes);
    if (bytes < 1e6) return fmt::format("{:.0f} kB", bytes / 1e3);
    if (bytes < 1e9) return fmt::format("{:.0f} MB", bytes / 1e6);
    return fmt::format("{:.2f} GB", bytes / 1e9);
}

std::string human_seconds(double seconds) {
    if (!(seconds >= 0)) return "?";
    if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
    const auto s = static_cast<long long>(std::llround(seconds));
    if (s < 60) return fmt::format("{} s", s);
    if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
    if (s < 48 * 3600) return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
    return fmt::format("{} d {:02} h", s / 86400, s % 86400 / 3600);
}

}  // namespace orpo
