#include "src/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cctype>
#include <ctime>

#include "base/error.h"
#include "base/io.h"

namespace orpo {
namespace {

constexpr size_t kLongestPart = 60;

// Letters, digits, '.', '_' and '-' only: a name that no shell needs quotes for.
std::string plain(const std::string& text) {
    std::string out;
    for (const unsigned char c : text) {
        const bool kept = std::isalnum(c) || c == '.' || c == '_' || c == '-';
        if (kept)
            out += static_cast<char>(c);
        else if (!out.empty() && out.back() != '-')
            out += '-';
    }
    while (!out.empty() && (out.back() == '-' || out.back() == '.')) out.pop_back();
    while (!out.empty() && (out.front() == '-' || out.front() == '.')) out.erase(0, 1);
    return out.substr(0, kLongestPart);
}

std::string stem(const std::string& path) {
    const std::string name = io::base_name(path);
    const size_t dot = name.rfind('.');
    return dot == std::string::npos || dot == 0 ? name : name.substr(0, dot);
}

// -1: another process holds it. A file system without locks is taken as it is.
int lock_directory(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) throw Error(Exit::kIo, path + ": cannot open the directory; check its permissions");
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        ::close(fd);
        return -1;
    }
    return fd;
}

}  // namespace

RunDirectory RunDirectory::create(const std::string& path) {
    const std::string taken = path +
                              ": exists already and is not overwritten. Choose another --out, or go on with that "
                              "run: orpo train --resume --out " +
                              path;
    if (io::exists(path) && (!io::is_directory(path) || !io::list_dir(path).empty())) throw Error(Exit::kUsage, taken);
    io::make_dirs(path);
    const int lock = lock_directory(path);
    if (lock < 0) throw Error(Exit::kUsage, path + ": another orpo is training in it. Choose another --out");
    RunDirectory run(path, lock);
    if (!io::list_dir(path).empty()) throw Error(Exit::kUsage, taken);
    return run;
}

RunDirectory RunDirectory::create_default(const std::string& parent, const std::string& date, const std::string& data,
                                          const std::string& model) {
    std::string name = date;
    for (const std::string& part : {plain(data == "-" ? "stdin" : stem(data)), plain(model)})
        if (!part.empty()) name += "-" + part;
    for (int n = 1;; ++n) {
        const std::string path = io::join(parent, n == 1 ? name : name + "-" + std::to_string(n));
        if (io::exists(path)) continue;
        io::make_dirs(path);
        const int lock = lock_directory(path);
        if (lock < 0) continue;
        RunDirectory run(path, lock);
        // Made and filled by another process in between.
        if (io::list_dir(path).empty()) return run;
    }
}

RunDirectory RunDirectory::open(const std::string& path) {
    if (!io::is_directory(path))
        throw Error(Exit::kUsage, path + ": no such run directory. --out names the run to resume");
    const int lock = lock_directory(path);
    if (lock < 0) throw Error(Exit::kUsage, path + ": another orpo is training in it. Wait for it to end, or stop it");
    return RunDirectory(path, lock);
}

RunDirectory::~RunDirectory() {
    if (lock_ >= 0) ::close(lock_);
}

std::string today() {
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    ::localtime_r(&now, &local);
    char text[16];
    std::strftime(text, sizeof text, "%Y-%m-%d", &local);
    return text;
}

}  // namespace orpo
