// Inside of the io layer: system calls with their places for injected failures, and errno as an Error.
// Nobody but base/io_*.cpp includes this.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <string>

namespace orpo::io {

// As the system calls of the same name: -1 and errno. EINTR is tried again.
int sys_open(const char* path, int flags, mode_t mode = 0);
ssize_t sys_read(int fd, void* out, size_t n);
ssize_t sys_pread(int fd, void* out, size_t n, uint64_t offset);
ssize_t sys_write(int fd, const void* data, size_t n);
int sys_fsync(int fd);
int sys_rename(const char* from, const char* to);
int sys_mkdir(const char* path, mode_t mode);
// The descriptor is closed in any case; only the report can fail.
int sys_close(int fd);

// Error(kIo): path, what was tried, the system's words, and what a user can do about it.
[[noreturn]] void throw_errno(const char* what, const std::string& path, int error);
void write_all(int fd, const void* data, size_t n, const std::string& path);
int open_for_reading(const std::string& path);
// Of an open regular file; anything else is an Error.
uint64_t regular_size(int fd, const std::string& path);

// Closes on every way out.
struct Descriptor {
    int fd = -1;
    ~Descriptor() {
        if (fd >= 0) ::close(fd);
    }
};

}  // namespace orpo::io
