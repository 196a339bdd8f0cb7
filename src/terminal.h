// Standard error as people see it: lines of talk, and on a terminal a status (the progress bar) that stays at the
// bottom. Results never come here: they go to standard output through print().
#pragma once

#include <mutex>
#include <string>
#include <string_view>

namespace orpo {

class Terminal {
  public:
    // What the environment says about standard error. `no_color`: the flag.
    // Colour is off with --no-color, NO_COLOR, TERM=dumb or no terminal; CLICOLOR_FORCE and FORCE_COLOR turn it on.
    explicit Terminal(bool no_color);
    // For tests: writes to `fd`, as told.
    Terminal(int fd, bool is_terminal, bool color, int width);
    ~Terminal();
    Terminal(const Terminal&) = delete;
    Terminal& operator=(const Terminal&) = delete;

    bool is_terminal() const { return is_terminal_; }
    bool color() const { return color_; }
    int width() const;  // columns, 80 when unknown

    // A line of talk, above the status line. Never throws: a closed stderr must not stop a training run.
    void line(std::string_view text);
    // Replaces the status (one line or several, none wider than width()); "" removes it. Does nothing when stderr is no
    // terminal.
    void status(std::string_view text);

    // "\x1b[1m" ... when colour is on, else the text as it is.
    std::string bold(std::string_view text) const { return paint("1", text); }
    std::string red(std::string_view text) const { return paint("31", text); }
    std::string yellow(std::string_view text) const { return paint("33", text); }
    std::string green(std::string_view text) const { return paint("32", text); }
    std::string dim(std::string_view text) const { return paint("2", text); }

  private:
    std::string paint(const char* code, std::string_view text) const;
    std::string erase() const;  // what removes the status from the screen
    void put(std::string_view bytes);

    int fd_ = 2;
    bool is_terminal_ = false, color_ = false;
    int fixed_width_ = 0;
    std::mutex mutex_;
    std::string status_;
};

// Standard output was closed by its reader (`orpo data x | head`): the program ends quietly.
struct BrokenPipe {};

// Results: writes all bytes to standard output now. Error(kIo) when that fails (disk full), BrokenPipe on EPIPE.
void print(std::string_view text);
inline void print_line(std::string text) { print(text += '\n'); }
bool stdout_is_terminal();

// A number for people: 1234567 -> "1,234,567"; bytes -> "1.9 GB"; seconds -> "1 h 02 min", "3 min 20 s", "4.1 s".
std::string with_commas(long long n);
std::string human_bytes(double bytes);
std::string human_seconds(double seconds);

}  // namespace orpo
