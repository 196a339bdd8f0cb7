// TensorBoard event files, written by hand: records of [u64 length | masked CRC of the length | Event | masked CRC of
// the Event], an Event being a protocol buffer {1: wall_time, 2: step, 3: file_version | 5: Summary{1: {1: tag, 2:
// value}}}. Source: tensorflow/core/util/event.proto, tensorflow/core/lib/io/record_writer.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/io.h"

namespace orpo {

// One record of the file format around `event`.
std::string tensorboard_record(std::string_view event);
std::string tensorboard_version_event(double wall_time);

using Scalar = std::pair<std::string, double>;
std::string tensorboard_scalars_event(double wall_time, int64_t step, std::span<const Scalar> scalars);

// Appends to a file of its own in `directory`; one write a step, so that a killed run leaves at most one torn record at
// the end, which readers skip. A resumed run writes a further file: TensorBoard merges them by step.
class TensorboardLog {
  public:
    explicit TensorboardLog(const std::string& directory);
    // Values that are not finite are left out: metrics.jsonl names them.
    void write(int64_t step, std::span<const Scalar> scalars);
    const std::string& path() const { return file_.path(); }

  private:
    io::AppendFile file_;
};

}  // namespace orpo
