// Runs the program as a user would: its own process, environment, standard output and error, signals and exit code.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/io.h"

namespace orpo::test {

// The orpo program; "" when the build has none.
inline std::string program() {
    const char* path = std::getenv("ORPO_TEST_BINARY");
    return path != nullptr ? path : "";
}

// A started program. Its standard output and error go to files <log>.out and <log>.err.
class Process {
  public:
    Process(const std::vector<std::string>& arguments, const std::string& log,
            const std::map<std::string, std::string>& environment = {})
        : log_(log) {
        pid_ = ::fork();
        if (pid_ < 0) throw std::runtime_error("fork");
        if (pid_ > 0) return;
        redirect(log + ".out", 1);
        redirect(log + ".err", 2);
        ::unsetenv("ORPO_IO_FAULT");
        ::setenv("NO_COLOR", "1", 1);
        for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
        std::vector<std::string> words = arguments;
        words.insert(words.begin(), program());
        std::vector<char*> argv;
        for (std::string& word : words) argv.push_back(word.data());
        argv.push_back(nullptr);
        ::execv(argv[0], argv.data());
        ::_exit(127);
    }
    ~Process() {
        if (pid_ > 0) kill(SIGKILL), wait();
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;

    void kill(int signal) const { ::kill(pid_, signal); }
    bool running() {
        if (pid_ <= 0) return false;
        int status = 0;
        if (::waitpid(pid_, &status, WNOHANG) == 0) return true;
        finish(status);
        return false;
    }
    // Exit code; 128 + signal when a signal ended it.
    int wait() {
        if (pid_ > 0) {
            int status = 0;
            ::waitpid(pid_, &status, 0);
            finish(status);
        }
        return code_;
    }
    std::string out() const { return io::read_file(log_ + ".out", 1 << 26); }
    std::string err() const { return io::read_file(log_ + ".err", 1 << 26); }

  private:
    void finish(int status) {
        code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        pid_ = -1;
    }
    static void redirect(const std::string& path, int to) {
        const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (fd < 0 || ::dup2(fd, to) < 0) ::_exit(126);
        ::close(fd);
    }

    std::string log_;
    pid_t pid_ = -1;
    int code_ = -1;
};

struct Ran {
    int code = 0;
    std::string out, err;
};
inline Ran run(const std::vector<std::string>& arguments, const std::string& log,
               const std::map<std::string, std::string>& environment = {}) {
    Process process(arguments, log, environment);
    const int code = process.wait();
    return {code, process.out(), process.err()};
}

}  // namespace orpo::test
