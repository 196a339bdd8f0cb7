// The one layer through which every byte of the program goes: reading, whole-file writing, appending, directories.
//
// Promises:
//  - a failure is an Error(Exit::kIo) that names the path, the operation, the system's words and a remedy;
//  - a file written by write_file_atomic or AtomicFile is there whole or not at all, also after a power cut: temporary
//    name in the same directory, fsync of the file, rename, fsync of the directory;
//  - every system call that can fail asks a FaultInjector first, so that tests can make the n-th one fail.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace orpo::io {

// ---- reading --------------------------------------------------------------------------------------------------------

// Random access to bytes of known size: a file or memory. Parsers of untrusted formats take a Reader, so that the same
// code reads a 3 GB file and a fuzzer's buffer. read_at may be called from several threads at once.
class Reader {
  public:
    virtual ~Reader() = default;
    virtual uint64_t size() const = 0;
    // What error messages call it: the path.
    virtual const std::string& name() const = 0;
    // Reads exactly n bytes. A range outside [0, size()) or a file that shrank is an Error(kIo), never a short read.
    virtual void read_at(uint64_t offset, void* out, size_t n) const = 0;
};

// Opens a regular file. pread, not mmap: a file that is truncated under a mapping kills the process by SIGBUS.
std::unique_ptr<Reader> open_reader(const std::string& path);

// A Reader over bytes that outlive it.
std::unique_ptr<Reader> memory_reader(std::string_view bytes, std::string name);

// The whole file. Larger than max_bytes: Error(kIo). Works for pipes and /dev/stdin too.
std::string read_file(const std::string& path, uint64_t max_bytes);

// A file mapped read-only. For large inputs that are scanned once; whoever truncates the file meanwhile gets us a
// SIGBUS, so formats with offsets go through Reader.
class MappedFile {
  public:
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const std::string& path() const { return path_; }
    uint64_t size() const { return size_; }
    std::string_view bytes() const { return {static_cast<const char*>(data_), static_cast<size_t>(size_)}; }
    // Bounds-checked part: Error(kIo) when [offset, offset + n) is not inside the file.
    std::span<const std::byte> span(uint64_t offset, uint64_t n) const;

  private:
    std::string path_;
    void* data_ = nullptr;
    uint64_t size_ = 0;
};

// ---- writing --------------------------------------------------------------------------------------------------------

// Writes the file whole or not at all; an existing file is replaced in one step. Mode 0666 & ~umask.
void write_file_atomic(const std::string& path, std::string_view bytes);

// The same for content that is produced piece by piece. Without commit() nothing appears under `path` and the temporary
// file is removed.
class AtomicFile {
  public:
    explicit AtomicFile(const std::string& path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(const void* data, size_t n);
    void write(std::string_view bytes) { write(bytes.data(), bytes.size()); }
    uint64_t written() const { return written_; }
    // fsync, rename, fsync of the directory.
    void commit();

  private:
    void flush();

    std::string path_;
    std::string temp_;
    int fd_ = -1;
    uint64_t written_ = 0;
    std::vector<char> buffer_;
};

// A log that only grows: O_APPEND, every append is one write(2) of complete records, so that a killed process leaves
// at most one torn record at the end.
class AppendFile {
  public:
    // Creates the file when it is missing.
    explicit AppendFile(const std::string& path);
    ~AppendFile();
    AppendFile(const AppendFile&) = delete;
    AppendFile& operator=(const AppendFile&) = delete;

    void append(std::string_view record);     // binary record
    void append_line(std::string_view line);  // adds the '\n'
    void sync();
    const std::string& path() const { return path_; }

  private:
    std::string path_;
    int fd_ = -1;
};

// ---- directories ----------------------------------------------------------------------------------------------------

bool exists(const std::string& path);
bool is_directory(const std::string& path);
uint64_t file_size(const std::string& path);
void make_dirs(const std::string& path);
// Names (not paths) without "." and "..", sorted bytewise.
std::vector<std::string> list_dir(const std::string& path);
// Removes a file or a directory with all it holds; symbolic links are removed, not followed. Missing is fine.
void remove_tree(const std::string& path);
// Renames and makes the change durable (fsync of the target's directory). A directory written under a temporary name
// becomes visible whole this way: write its files, sync_dir(temp), rename_durable(temp, final).
void rename_durable(const std::string& from, const std::string& to);
void sync_dir(const std::string& path);
// Bytes that this user may still write on the file system of `path`, or of its nearest existing parent.
uint64_t free_bytes(const std::string& path);

std::string join(std::string_view directory, std::string_view name);
std::string parent_dir(const std::string& path);  // "." for a bare name
std::string base_name(const std::string& path);

// ---- failures on demand ---------------------------------------------------------------------------------------------

enum class Op { kOpen, kRead, kWrite, kFsync, kRename, kMkdir, kClose };

// What should fail: the n-th call (from 1) of `op`, or the n-th and all that follow.
struct FaultPlan {
    Op op = Op::kWrite;
    int64_t nth = 1;
    int error = ENOSPC;
    bool forever = false;
    bool short_writes = false;  // instead of failing, from the nth call on: every write takes at most one byte
};

// Installs a plan for its life. One slot for the process, atomic, and consulted by every thread: the writer that must
// survive a full disk may be a background thread that the test never sees, which no argument or thread-local reaches.
// At most one at a time (ORPO_CHECK). Whole-program tests use the environment instead:
// ORPO_IO_FAULT="write:3:ENOSPC" (op:nth:errno[:forever]), "write:1:short".
class ScopedFaults {
  public:
    explicit ScopedFaults(const FaultPlan& plan);
    ~ScopedFaults();
    ScopedFaults(const ScopedFaults&) = delete;
    ScopedFaults& operator=(const ScopedFaults&) = delete;

    // Calls of plan.op seen so far, failed or not.
    int64_t calls() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
    friend struct FaultAccess;
};

}  // namespace orpo::io
