#include "base/io.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "base/error.h"
#include "tests/temp_dir.h"

using namespace orpo;

namespace {

// Runs f, which must throw an Error of this exit code; returns its words.
template <typename F>
std::string message_of(Exit exit, F&& f) {
    try {
        f();
    } catch (const Error& e) {
        CHECK(static_cast<int>(e.exit()) == static_cast<int>(exit));
        return e.what();
    }
    FAIL("nothing was thrown");
    return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a file comes back as it was written, with mode 0644 under the usual umask") {
    const TempDir dir;
    const std::string path = dir / "a.bin";
    const std::string bytes("one\0two\n", 8);
    const mode_t old = ::umask(022);
    io::write_file_atomic(path, bytes);
    ::umask(old);
    CHECK(io::read_file(path, 100) == bytes);
    CHECK(io::file_size(path) == 8);
    struct stat info;
    REQUIRE(::stat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0644);
    CHECK(io::list_dir(dir.path()) == std::vector<std::string>{"a.bin"});
}

TEST_CASE("read_file refuses what is larger than its cap, and directories, and what is missing") {
    const TempDir dir;
    io::write_file_atomic(dir / "a", std::string(100, 'x'));
    CHECK(io::read_file(dir / "a", 100).size() == 100);
    CHECK(contains(message_of(Exit::kIo, [&] { io::read_file(dir / "a", 99); }), dir / "a"));
    CHECK(contains(message_of(Exit::kIo, [&] { io::read_file(dir.path(), 99); }), "not a directory"));
    const std::string missing = message_of(Exit::kIo, [&] { io::read_file(dir / "none", 99); });
    CHECK(contains(missing, dir / "none"));
    CHECK(contains(missing, "No such file"));
    CHECK(contains(missing, "check the path"));
}

TEST_CASE("a reader gives exact ranges and refuses others, overflow included") {
    const TempDir dir;
    io::write_file_atomic(dir / "a", "0123456789");
    const auto file = io::open_reader(dir / "a");
    const auto memory = io::memory_reader("0123456789", "mem");
    for (const io::Reader* reader : {file.get(), memory.get()}) {
        CHECK(reader->size() == 10);
        char out[4] = {};
        reader->read_at(7, out, 3);
        CHECK(std::string(out) == "789");
        reader->read_at(10, out, 0);
        message_of(Exit::kIo, [&] { reader->read_at(8, out, 3); });
        message_of(Exit::kIo, [&] { reader->read_at(UINT64_MAX, out, 3); });
        message_of(Exit::kIo, [&] { reader->read_at(1, out, SIZE_MAX); });
    }
    message_of(Exit::kIo, [&] { io::open_reader(dir.path()); });
    message_of(Exit::kIo, [&] { io::open_reader("/dev/null"); });
}

TEST_CASE("a mapped file checks its spans") {
    const TempDir dir;
    io::write_file_atomic(dir / "a", "0123456789");
    io::write_file_atomic(dir / "empty", "");
    const io::MappedFile file(dir / "a");
    CHECK(file.bytes() == "0123456789");
    CHECK(file.span(3, 2).size() == 2);
    CHECK(static_cast<char>(file.span(3, 2)[0]) == '3');
    message_of(Exit::kIo, [&] { file.span(9, 2); });
    message_of(Exit::kIo, [&] { file.span(2, UINT64_MAX - 1); });
    CHECK(io::MappedFile(dir / "empty").bytes().empty());
}

TEST_CASE("an atomic file that is not committed leaves nothing, and the old one alone") {
    const TempDir dir;
    io::write_file_atomic(dir / "a", "old");
    {
        io::AtomicFile file(dir / "a");
        file.write("new, half wri");
        CHECK(file.written() == 13);
    }
    CHECK(io::read_file(dir / "a", 100) == "old");
    CHECK(io::list_dir(dir.path()).size() == 1);
}

TEST_CASE("large and small pieces arrive in order") {
    const TempDir dir;
    std::string expected;
    {
        io::AtomicFile file(dir / "a");
        for (size_t n : {size_t{5}, size_t{3} << 20, size_t{7}, (size_t{1} << 20) - 7, size_t{1}, size_t{1} << 20}) {
            const std::string piece(n, static_cast<char>('a' + expected.size() % 26));
            file.write(piece);
            expected += piece;
        }
        file.commit();
    }
    CHECK(io::read_file(dir / "a", 1 << 26) == expected);
}

TEST_CASE("every failing write, fsync, rename, close or open leaves the old file whole and names path and remedy") {
    const TempDir dir;
    const std::string path = dir / "a";
    const std::string big(5 << 20, 'x');
    io::write_file_atomic(path, "old");
    struct Case {
        io::Op op;
        int calls;  // of that operation in one write_file_atomic of `big` handed over in pieces
    };
    for (const Case& c : {Case{io::Op::kOpen, 1}, Case{io::Op::kWrite, 5}, Case{io::Op::kFsync, 1},
                          Case{io::Op::kClose, 1}, Case{io::Op::kRename, 1}}) {
        for (int nth = 1; nth <= c.calls; ++nth) {
            for (int error : {ENOSPC, EIO}) {
                const io::ScopedFaults faults({.op = c.op, .nth = nth, .error = error});
                const std::string words = message_of(Exit::kIo, [&] {
                    io::AtomicFile file(path);
                    for (int i = 0; i < 5; ++i) file.write(big.data(), 1 << 20);
                    file.commit();
                });
                CHECK(contains(words, path));
                CHECK(contains(words, std::strerror(error)));
                CHECK(contains(words, error == ENOSPC ? "make room" : "dmesg"));
                CHECK(faults.calls() >= nth);
            }
            CHECK(io::read_file(path, 100) == "old");
            CHECK(io::list_dir(dir.path()).size() == 1);
        }
    }
    // The directory's fsync comes after the rename: the new file is there, and the caller is told that it may not last.
    {
        const io::ScopedFaults faults({.op = io::Op::kFsync, .nth = 2, .error = EIO});
        message_of(Exit::kIo, [&] { io::write_file_atomic(path, "new"); });
    }
    CHECK(io::read_file(path, 100) == "new");
}

TEST_CASE("short writes and interruptions are carried on") {
    const TempDir dir;
    {
        const io::ScopedFaults faults({.op = io::Op::kWrite, .nth = 1, .short_writes = true});
        io::write_file_atomic(dir / "a", "byte by byte");
        CHECK(faults.calls() == 12);
    }
    CHECK(io::read_file(dir / "a", 100) == "byte by byte");
    const io::ScopedFaults faults({.op = io::Op::kWrite, .nth = 1, .error = EINTR});
    io::write_file_atomic(dir / "a", "interrupted");
    CHECK(io::read_file(dir / "a", 100) == "interrupted");
}

TEST_CASE("a failure reaches writers in other threads") {
    const TempDir dir;
    const io::ScopedFaults faults({.op = io::Op::kWrite, .nth = 1, .error = ENOSPC, .forever = true});
    bool failed = false;
    std::thread writer([&] {
        try {
            io::write_file_atomic(dir / "a", "x");
        } catch (const Error&) {
            failed = true;
        }
    });
    writer.join();
    CHECK(failed);
    CHECK_FALSE(io::exists(dir / "a"));
}

TEST_CASE("a truly full file system is reported as such") {
    // /dev/full takes no byte; it stands in for a full disk where nothing can be mounted.
    io::AppendFile full("/dev/full");
    CHECK(contains(message_of(Exit::kIo, [&] { full.append_line("x"); }), "make room"));
}

TEST_CASE("append adds complete lines and keeps what was there") {
    const TempDir dir;
    {
        io::AppendFile log(dir / "log");
        log.append_line("one");
        log.append_line("two");
        log.sync();
    }
    io::AppendFile(dir / "log").append_line("three");
    CHECK(io::read_file(dir / "log", 100) == "one\ntwo\nthree\n");
}

TEST_CASE("directories: made with parents, listed in order, removed without following links") {
    const TempDir dir;
    io::make_dirs(dir / "a/b/c");
    io::make_dirs(dir / "a/b/c");
    CHECK(io::is_directory(dir / "a/b/c"));
    io::write_file_atomic(dir / "a/2", "");
    io::write_file_atomic(dir / "a/1", "");
    CHECK(io::list_dir(dir / "a") == std::vector<std::string>{"1", "2", "b"});
    io::make_dirs(dir / "keep");
    io::write_file_atomic(dir / "keep/x", "x");
    REQUIRE(::symlink((dir / "keep").c_str(), (dir / "a/link").c_str()) == 0);
    io::remove_tree(dir / "a");
    io::remove_tree(dir / "a");
    CHECK_FALSE(io::exists(dir / "a"));
    CHECK(io::exists(dir / "keep/x"));
    CHECK(contains(message_of(Exit::kIo, [&] { io::make_dirs(dir / "keep/x/y"); }), "keep/x"));
    io::rename_durable(dir / "keep", dir / "kept");
    CHECK(io::exists(dir / "kept/x"));
    CHECK(io::free_bytes(dir / "not/yet/there") > 0);
}

TEST_CASE("names of paths") {
    CHECK(io::join("a", "b") == "a/b");
    CHECK(io::join("a/", "b") == "a/b");
    CHECK(io::join("", "b") == "b");
    CHECK(io::parent_dir("a/b") == "a");
    CHECK(io::parent_dir("a/b//") == "a");
    CHECK(io::parent_dir("b") == ".");
    CHECK(io::parent_dir("/b") == "/");
    CHECK(io::parent_dir("/") == "/");
    CHECK(io::base_name("a/b/") == "b");
    CHECK(io::base_name("/") == "");
}
