#include "src/signals.h"

#include <unistd.h>

#include <csignal>
#include <initializer_list>

namespace orpo {
namespace {

// A signal handler can reach nothing but globals.
volatile std::sig_atomic_t stop_signal = 0;

extern "C" void on_stop_signal(int signal) {
    if (stop_signal != 0) ::_exit(128 + signal);
    stop_signal = signal;
    constexpr char kWords[] = "\nstopping after this step, then saving; once more to stop at once\n";
    [[maybe_unused]] const auto written = ::write(2, kWords, sizeof kWords - 1);
}

void install(void (*handler)(int)) {
    struct sigaction action = {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

}  // namespace

StopSignals::StopSignals() {
    stop_signal = 0;
    install(on_stop_signal);
}
StopSignals::~StopSignals() { install(SIG_DFL); }
int StopSignals::received() { return stop_signal; }

}  // namespace orpo
