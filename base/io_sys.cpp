#include "base/io_sys.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "base/io.h"

namespace orpo::io {

// ---- failures on demand ---------------------------------------------------------------------------------------------

struct ScopedFaults::State {
    FaultPlan plan;
    std::atomic<int64_t> calls{0};
};

namespace {

struct OpName {
    const char* name;
    Op op;
};
constexpr OpName kOpNames[] = {{"open", Op::kOpen},   {"read", Op::kRead},     {"write", Op::kWrite},
                               {"fsync", Op::kFsync}, {"rename", Op::kRename}, {"mkdir", Op::kMkdir},
                               {"close", Op::kClose}};
struct ErrnoName {
    const char* name;
    int error;
};
constexpr ErrnoName kErrnoNames[] = {{"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EACCES", EACCES},
                                     {"EROFS", EROFS},   {"EDQUOT", EDQUOT}, {"EINTR", EINTR}};

// "write:3:ENOSPC", "fsync:1:EIO:forever", "write:1:short".
FaultPlan parse_fault_plan(const std::string& text) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find(':', begin), text.size());
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    FaultPlan plan;
    bool good = parts.size() == 3 || (parts.size() == 4 && parts[3] == "forever");
    if (good) {
        good = false;
        for (const OpName& o : kOpNames) {
            if (parts[0] == o.name) plan.op = o.op, good = true;
        }
        char* rest = nullptr;
        plan.nth = std::strtoll(parts[1].c_str(), &rest, 10);
        good = good && *rest == 0 && plan.nth >= 1;
        plan.forever = parts.size() == 4;
        plan.short_writes = parts[2] == "short";
        bool known = plan.short_writes;
        for (const ErrnoName& e : kErrnoNames) {
            if (parts[2] == e.name) plan.error = e.error, known = true;
        }
        good = good && known;
    }
    if (!good) {
        throw Error(Exit::kUsage, "ORPO_IO_FAULT=" + text +
                                      ": not a failure plan; write op:nth:errno[:forever], for example write:3:ENOSPC "
                                      "(ops: open read write fsync rename mkdir close)");
    }
    return plan;
}

}  // namespace

struct FaultAccess {
    using State = ScopedFaults::State;

    // The one slot, see io.h.
    static std::atomic<State*>& slot() {
        static std::atomic<State*> current{nullptr};
        return current;
    }
    // The plan of ORPO_IO_FAULT, null without one; read once.
    static State* from_environment() {
        static const std::unique_ptr<State> state = []() -> std::unique_ptr<State> {
            const char* text = std::getenv("ORPO_IO_FAULT");
            if (text == nullptr || *text == 0) return nullptr;
            auto parsed = std::make_unique<State>();
            parsed->plan = parse_fault_plan(text);
            return parsed;
        }();
        return state.get();
    }
    // Counts a call. Returns 0 to go on, or the errno to fail with; sets *short_write when writes shall be cut.
    static int next(Op op, bool* short_write = nullptr) {
        State* state = slot().load(std::memory_order_acquire);
        if (state == nullptr) state = from_environment();
        if (state == nullptr || state->plan.op != op) return 0;
        const int64_t call = state->calls.fetch_add(1) + 1;
        const FaultPlan& plan = state->plan;
        if (plan.short_writes) {
            if (short_write != nullptr) *short_write = call >= plan.nth;
            return 0;
        }
        return call == plan.nth || (plan.forever && call > plan.nth) ? plan.error : 0;
    }
};

ScopedFaults::ScopedFaults(const FaultPlan& plan) : state_(std::make_unique<State>()) {
    state_->plan = plan;
    State* expected = nullptr;
    ORPO_CHECK(FaultAccess::slot().compare_exchange_strong(expected, state_.get()));
}
ScopedFaults::~ScopedFaults() { FaultAccess::slot().store(nullptr); }
int64_t ScopedFaults::calls() const { return state_->calls.load(); }

// ---- system calls, each with its place for a failure ----------------------------------------------------------------

namespace {
int fail(int error) {
    errno = error;
    return -1;
}

}  // namespace

int sys_open(const char* path, int flags, mode_t mode) {
    if (int error = FaultAccess::next(Op::kOpen)) return fail(error);
    int fd;
    do fd = ::open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

ssize_t sys_read(int fd, void* out, size_t n) {
    ssize_t got;
    do {
        if (int error = FaultAccess::next(Op::kRead))
            got = fail(error);
        else
            got = ::read(fd, out, n);
    } while (got < 0 && errno == EINTR);
    return got;
}

ssize_t sys_pread(int fd, void* out, size_t n, uint64_t offset) {
    ssize_t got;
    do {
        if (int error = FaultAccess::next(Op::kRead))
            got = fail(error);
        else
            got = ::pread(fd, out, n, static_cast<off_t>(offset));
    } while (got < 0 && errno == EINTR);
    return got;
}

ssize_t sys_write(int fd, const void* data, size_t n) {
    ssize_t put;
    do {
        bool short_write = false;
        if (int error = FaultAccess::next(Op::kWrite, &short_write))
            put = fail(error);
        else
            put = ::write(fd, data, short_write ? std::min<size_t>(n, 1) : n);
    } while (put < 0 && errno == EINTR);
    return put;
}

int sys_fsync(int fd) {
    if (int error = FaultAccess::next(Op::kFsync)) return fail(error);
    return ::fsync(fd);
}

int sys_rename(const char* from, const char* to) {
    if (int error = FaultAccess::next(Op::kRename)) return fail(error);
    return ::rename(from, to);
}

// The descriptor is closed in any case; only the report can fail. EINTR from close means closed, on Linux.
int sys_close(int fd) {
    const int error = FaultAccess::next(Op::kClose);
    const int result = ::close(fd);
    if (error != 0) return fail(error);
    return result < 0 && errno == EINTR ? 0 : result;
}

int sys_mkdir(const char* path, mode_t mode) {
    if (int error = FaultAccess::next(Op::kMkdir)) return fail(error);
    return ::mkdir(path, mode);
}

// What a user can do about it.
namespace {
std::string remedy(int error, const std::string& path) {
    switch (error) {
        case ENOENT:
            return "check the path";
        case EACCES:
        case EPERM:
            return "check who may read and write it (ls -ld), or choose another place";
        case EROFS:
            return "the file system is read-only: choose another place";
        case ENOSPC:
        case EDQUOT: {
            struct statvfs fs;
            const std::string dir = parent_dir(path);
            std::string free;
            if (::statvfs(dir.c_str(), &fs) == 0) {
                free = fmt::format(" ({:.1f} MB free)", double(fs.f_bavail) * double(fs.f_frsize) / 1e6);
            }
            return "the disk or quota is full" + free + ": make room or choose another place";
        }
        case EISDIR:
            return "name a file, not a directory";
        case ENOTDIR:
            return "a part of the path is a file, not a directory: check the path";
        case EEXIST:
            return "something of that name is in the way: move it or choose another name";
        case EMFILE:
        case ENFILE:
            return "too many open files: raise the limit (ulimit -n)";
        case ENAMETOOLONG:
            return "the name is too long: choose a shorter one";
        case EIO:
            return "the device reports damage or was taken away: check the disk (dmesg) and try another";
        default:
            return "check the path and the disk";
    }
}

}  // namespace

void throw_errno(const char* what, const std::string& path, int error) {
    throw Error(Exit::kIo, fmt::format("{}: {}: {}; {}", path, what, std::strerror(error), remedy(error, path)));
}

void write_all(int fd, const void* data, size_t n, const std::string& path) {
    const char* p = static_cast<const char*>(data);
    while (n > 0) {
        const ssize_t put = sys_write(fd, p, n);
        if (put < 0) throw_errno("cannot write", path, errno);
        if (put == 0) throw_errno("cannot write", path, EIO);
        p += put;
        n -= static_cast<size_t>(put);
    }
}

int open_for_reading(const std::string& path) {
    const int fd = sys_open(path.c_str(), O_RDONLY);
    if (fd < 0) throw_errno("cannot open", path, errno);
    return fd;
}

uint64_t regular_size(int fd, const std::string& path) {
    struct stat info;
    if (::fstat(fd, &info) != 0) throw_errno("cannot examine", path, errno);
    if (S_ISDIR(info.st_mode)) throw_errno("cannot read", path, EISDIR);
    if (!S_ISREG(info.st_mode)) {
        throw Error(Exit::kIo,
                    path + ": not a regular file; this input needs random access, so copy it into a file first");
    }
    return static_cast<uint64_t>(info.st_size);
}

}  // namespace orpo::io
