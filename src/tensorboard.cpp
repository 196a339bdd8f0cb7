#include "src/tensorboard.h"

#include <unistd.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/hash.h"

namespace orpo {
namespace {

template <class Unsigned>
void put_fixed(std::string& out, Unsigned value) {
    for (size_t i = 0; i < sizeof(Unsigned); ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

void put_varint(std::string& out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
    out += static_cast<char>(value);
}

void put_bytes(std::string& out, int field, std::string_view bytes) {
    put_varint(out, static_cast<uint64_t>(field) << 3 | 2);
    put_varint(out, bytes.size());
    out += bytes;
}

void put_double(std::string& out, int field, double value) {
    put_varint(out, static_cast<uint64_t>(field) << 3 | 1);
    put_fixed(out, std::bit_cast<uint64_t>(value));
}

void put_float(std::string& out, int field, float value) {
    put_varint(out, static_cast<uint64_t>(field) << 3 | 5);
    put_fixed(out, std::bit_cast<uint32_t>(value));
}

uint32_t masked_crc(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8u; }

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::string file_name() {
    char host[256] = {};
    if (::gethostname(host, sizeof host - 1) != 0) std::strcpy(host, "localhost");
    const std::string base = "events.out.tfevents." + std::to_string(static_cast<int64_t>(now())) + "." + host + "." +
                             std::to_string(::getpid()) + ".";
    return base;
}

// A name that is not there yet: two runs of one process within a second must not share a file.
std::string new_path(const std::string& directory) {
    const std::string base = io::join(directory, file_name());
    int n = 0;
    while (io::exists(base + std::to_string(n))) ++n;
    return base + std::to_string(n);
}

}  // namespace

std::string tensorboard_record(std::string_view event) {
    std::string out;
    put_fixed<uint64_t>(out, event.size());
    put_fixed(out, masked_crc(out));
    out += event;
    put_fixed(out, masked_crc(event));
    return out;
}

std::string tensorboard_version_event(double wall_time) {
    std::string event;
    put_double(event, 1, wall_time);
    put_bytes(event, 3, "brain.Event:2");
    return event;
}

std::string tensorboard_scalars_event(double wall_time, int64_t step, std::span<const Scalar> scalars) {
    std::string summary;
    for (const auto& [tag, value] : scalars) {
        std::string entry;
        put_bytes(entry, 1, tag);
        put_float(entry, 2, static_cast<float>(value));
        put_bytes(summary, 1, entry);
    }
    std::string event;
    put_double(event, 1, wall_time);
    put_varint(event, 2 << 3);
    put_varint(event, static_cast<uint64_t>(step));
    put_bytes(event, 5, summary);
    return event;
}

TensorboardLog::TensorboardLog(const std::string& directory) : file_(new_path(directory)) {
    file_.append(tensorboard_record(tensorboard_version_event(now())));
}

void TensorboardLog::write(int64_t step, std::span<const Scalar> scalars) {
    std::vector<Scalar> finite;
    for (const Scalar& scalar : scalars)
        if (std::isfinite(scalar.second)) finite.push_back(scalar);
    file_.append(tensorboard_record(tensorboard_scalars_event(now(), step, finite)));
}

}  // namespace orpo
