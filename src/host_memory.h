// What this process uses and what the machine has left, in bytes.
#pragma once

#include <cstdint>

namespace orpo {

// High-water mark of the resident set (VmHWM), and the resident set now (VmRSS). 0 when the system does not tell.
int64_t peak_bytes();
int64_t resident_bytes();
// What may still be allocated without swapping: MemAvailable, and within the limit of the control group.
int64_t available_bytes();

}  // namespace orpo
