#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/error.h"
#include "base/io.h"
#include "base/io_sys.h"

namespace orpo::io {
namespace {

constexpr size_t kBuffer = 1 << 20;

}  // namespace

// ---- writing --------------------------------------------------------------------------------------------------------

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
    // The name is unique in this process and among processes; O_EXCL catches the rest.
    static std::atomic<uint64_t> counter{0};
    temp_ = join(parent_dir(path), fmt::format(".{}.tmp-{}-{}", base_name(path), ::getpid(), counter.fetch_add(1)));
    buffer_.reserve(kBuffer);
    fd_ = sys_open(temp_.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd_ < 0) throw_errno("cannot create", path_, errno);
}

AtomicFile::~AtomicFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!temp_.empty()) ::unlink(temp_.c_str());
}

void AtomicFile::write(const void* data, size_t n) {
    ORPO_CHECK(fd_ >= 0);
    written_ += n;
    if (buffer_.size() + n > kBuffer) flush();
    if (n >= kBuffer) {
        write_all(fd_, data, n, path_);
    } else {
        const char* p = static_cast<const char*>(data);
        buffer_.insert(buffer_.end(), p, p + n);
    }
}

void AtomicFile::flush() {
    if (!buffer_.empty()) write_all(fd_, buffer_.data(), buffer_.size(), path_);
    buffer_.clear();
}

void AtomicFile::commit() {
    ORPO_CHECK(fd_ >= 0);
    flush();
    // After a failed fsync the kernel may have dropped the pages: the file is lost, trying again would lie.
    if (sys_fsync(fd_) != 0) throw_errno("cannot bring to disk", path_, errno);
    const int fd = fd_;
    fd_ = -1;
    if (sys_close(fd) != 0) throw_errno("cannot finish writing", path_, errno);
    if (sys_rename(temp_.c_str(), path_.c_str()) != 0) throw_errno("cannot put in place", path_, errno);
    temp_.clear();
    sync_dir(parent_dir(path_));
}

void write_file_atomic(const std::string& path, std::string_view bytes) {
    AtomicFile file(path);
    file.write(bytes);
    file.commit();
}

AppendFile::AppendFile(const std::string& path) : path_(path) {
    fd_ = sys_open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (fd_ < 0) throw_errno("cannot open for appending", path, errno);
}

AppendFile::~AppendFile() {
    if (fd_ >= 0) ::close(fd_);
}

void AppendFile::append(std::string_view record) { write_all(fd_, record.data(), record.size(), path_); }

void AppendFile::append_line(std::string_view line) {
    std::string record;
    record.reserve(line.size() + 1);
    record.append(line);
    record.push_back('\n');
    append(record);
}

void AppendFile::sync() {
    if (sys_fsync(fd_) != 0) throw_errno("cannot bring to disk", path_, errno);
}

// ---- directories ----------------------------------------------------------------------------------------------------

bool exists(const std::string& path) {
    struct stat info;
    return ::stat(path.c_str(), &info) == 0;
}

bool is_directory(const std::string& path) {
    struct stat info;
    return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

uint64_t file_size(const std::string& path) {
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) throw_errno("cannot examine", path, errno);
    return static_cast<uint64_t>(info.st_size);
}

void make_dirs(const std::string& path) {
    if (path.empty() || is_directory(path)) return;
    const std::string parent = parent_dir(path);
    if (parent != path) make_dirs(parent);
    // Another process may have made it in between.
    if (sys_mkdir(path.c_str(), 0777) != 0 && !(errno == EEXIST && is_directory(path)))
        throw_errno("cannot make the directory", path, errno);
}

std::vector<std::string> list_dir(const std::string& path) {
    DIR* dir = ::opendir(path.c_str());
    if (dir == nullptr) throw_errno("cannot list", path, errno);
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(dir)) {
        const std::string name = entry->d_name;
        if (name != "." && name != "..") names.push_back(name);
        errno = 0;
    }
    const int error = errno;
    ::closedir(dir);
    if (error != 0) throw_errno("cannot list", path, error);
    std::sort(names.begin(), names.end());
    return names;
}

void remove_tree(const std::string& path) {
    struct stat info;
    if (::lstat(path.c_str(), &info) != 0) {
        if (errno == ENOENT) return;
        throw_errno("cannot examine", path, errno);
    }
    if (S_ISDIR(info.st_mode)) {
        for (const std::string& name : list_dir(path)) remove_tree(join(path, name));
        if (::rmdir(path.c_str()) != 0 && errno != ENOENT) throw_errno("cannot remove", path, errno);
    } else if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
        throw_errno("cannot remove", path, errno);
    }
}

void rename_durable(const std::string& from, const std::string& to) {
    if (sys_rename(from.c_str(), to.c_str()) != 0) throw_errno("cannot put in place", to, errno);
    sync_dir(parent_dir(to));
}

void sync_dir(const std::string& path) {
    Descriptor dir{sys_open(path.c_str(), O_RDONLY | O_DIRECTORY)};
    if (dir.fd < 0) throw_errno("cannot open the directory", path, errno);
    // Some file systems cannot sync directories (EINVAL): then there is nothing more to be had.
    if (sys_fsync(dir.fd) != 0 && errno != EINVAL) throw_errno("cannot bring the directory to disk", path, errno);
}

uint64_t free_bytes(const std::string& path) {
    std::string place = path;
    while (!exists(place)) {
        const std::string parent = parent_dir(place);
        if (parent == place) break;
        place = parent;
    }
    struct statvfs fs;
    if (::statvfs(place.c_str(), &fs) != 0) throw_errno("cannot examine the file system", place, errno);
    return static_cast<uint64_t>(fs.f_bavail) * fs.f_frsize;
}

std::string join(std::string_view directory, std::string_view name) {
    std::string path(directory);
    if (!path.empty() && path.back() != '/') path.push_back('/');
    path.append(name);
    return path;
}

std::string parent_dir(const std::string& path) {
    const size_t end = path.find_last_not_of('/');
    if (end == std::string::npos) return path.empty() ? "." : "/";
    const size_t slash = path.rfind('/', end);
    if (slash == std::string::npos) return ".";
    const size_t last = path.find_last_not_of('/', slash);
    return last == std::string::npos ? "/" : path.substr(0, last + 1);
}

std::string base_name(const std::string& path) {
    const size_t end = path.find_last_not_of('/');
    if (end == std::string::npos) return "";
    const size_t slash = path.rfind('/', end);
    const size_t begin = slash == std::string::npos ? 0 : slash + 1;
    return path.substr(begin, end + 1 - begin);
}

}  // namespace orpo::io
