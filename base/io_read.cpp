#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/io.h"
#include "base/io_sys.h"

namespace orpo::io {

namespace {

class FileReader : public Reader {
  public:
    explicit FileReader(const std::string& path) : path_(path) {
        file_.fd = open_for_reading(path);
        size_ = regular_size(file_.fd, path);
    }
    uint64_t size() const override { return size_; }
    const std::string& name() const override { return path_; }
    void read_at(uint64_t offset, void* out, size_t n) const override {
        if (offset > size_ || n > size_ - offset) {
            throw Error(
                Exit::kIo,
                fmt::format("{}: {} bytes at {} were asked for, but the file has {}; it is truncated: get it again",
                            path_, n, offset, size_));
        }
        char* p = static_cast<char*>(out);
        while (n > 0) {
            const ssize_t got = sys_pread(file_.fd, p, std::min<size_t>(n, 1u << 30), offset);
            if (got < 0) throw_errno("cannot read", path_, errno);
            if (got == 0)
                throw Error(Exit::kIo,
                            path_ + ": became shorter while it was read; get it again and leave it in peace");
            p += got;
            offset += static_cast<uint64_t>(got);
            n -= static_cast<size_t>(got);
        }
    }

  private:
    std::string path_;
    Descriptor file_;
    uint64_t size_ = 0;
};

class MemoryReader : public Reader {
  public:
    MemoryReader(std::string_view bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}
    uint64_t size() const override { return bytes_.size(); }
    const std::string& name() const override { return name_; }
    void read_at(uint64_t offset, void* out, size_t n) const override {
        if (offset > bytes_.size() || n > bytes_.size() - offset) {
            throw Error(Exit::kIo, fmt::format("{}: {} bytes at {} were asked for, but there are {}; it is truncated",
                                               name_, n, offset, bytes_.size()));
        }
        if (n > 0) std::memcpy(out, bytes_.data() + offset, n);
    }

  private:
    std::string_view bytes_;
    std::string name_;
};

}  // namespace

std::unique_ptr<Reader> open_reader(const std::string& path) { return std::make_unique<FileReader>(path); }

std::unique_ptr<Reader> memory_reader(std::string_view bytes, std::string name) {
    return std::make_unique<MemoryReader>(bytes, std::move(name));
}

std::string read_file(const std::string& path, uint64_t max_bytes) {
    Descriptor file{open_for_reading(path)};
    struct stat info;
    if (::fstat(file.fd, &info) != 0) throw_errno("cannot examine", path, errno);
    if (S_ISDIR(info.st_mode)) throw_errno("cannot read", path, EISDIR);
    std::string bytes;
    // The size is a hint only: pipes have none, and files may grow meanwhile.
    if (S_ISREG(info.st_mode)) bytes.reserve(std::min<uint64_t>(static_cast<uint64_t>(info.st_size), max_bytes) + 1);
    for (;;) {
        const size_t old = bytes.size();
        const size_t chunk = std::max<size_t>(std::min<size_t>(bytes.capacity() - old, 64 << 20), 64 << 10);
        bytes.resize(old + chunk);
        const ssize_t got = sys_read(file.fd, bytes.data() + old, chunk);
        if (got < 0) throw_errno("cannot read", path, errno);
        bytes.resize(old + static_cast<size_t>(got));
        if (bytes.size() > max_bytes) {
            throw Error(
                Exit::kIo,
                fmt::format("{}: larger than {} bytes, the most that is sensible here; check that it is the right file",
                            path, max_bytes));
        }
        if (got == 0) return bytes;
    }
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
    Descriptor file{open_for_reading(path)};
    size_ = regular_size(file.fd, path);
    if (size_ == 0) return;  // an empty mapping is an error for mmap
    void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (data == MAP_FAILED) throw_errno("cannot map", path, errno);
    data_ = data;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(data_, size_);
}

std::span<const std::byte> MappedFile::span(uint64_t offset, uint64_t n) const {
    if (offset > size_ || n > size_ - offset) {
        throw Error(Exit::kIo,
                    fmt::format("{}: {} bytes at {} were asked for, but the file has {}; it is truncated: get it again",
                                path_, n, offset, size_));
    }
    return {static_cast<const std::byte*>(data_) + offset, static_cast<size_t>(n)};
}

}  // namespace orpo::io
