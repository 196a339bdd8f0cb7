// SIGINT and SIGTERM while training: the first one asks the loop to stop after the step, the second one ends the
// process at once (what is on disk is whole: see src/checkpoint.h).
#pragma once

namespace orpo {

class StopSignals {
  public:
    StopSignals();
    ~StopSignals();
    StopSignals(const StopSignals&) = delete;
    StopSignals& operator=(const StopSignals&) = delete;

    // The signal that asked to stop, 0: none yet.
    static int received();
};

}  // namespace orpo
