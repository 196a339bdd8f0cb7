// Stands in for libFuzzer where there is no clang: runs every input of the given directories, then mutations of them
// from a fixed seed. A crash, a sanitizer's report or an exception that a target lets through fails the test.
//   <target> CORPUS... ; ORPO_FUZZ_RUNS=N mutations per input (default 300)
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/philox.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" __attribute__((weak)) int LLVMFuzzerInitialize(int* argc, char*** argv);

namespace {

class Random {
  public:
    explicit Random(uint32_t stream) : stream_(stream) {}
    uint32_t word() { return orpo::philox(1, {count_++, stream_, 0, 0})[0]; }
    size_t below(size_t n) { return word() % n; }

  private:
    uint32_t stream_, count_ = 0;
};

// One to four edits: a flipped bit, a byte, a boundary number over 1, 2, 4 or 8 bytes, a cut, a copy within, a splice
// from another input.
std::string mutated(std::string bytes, const std::vector<std::string>& inputs, Random& random) {
    constexpr uint64_t kNumbers[] = {0,
                                     1,
                                     2,
                                     0x7f,
                                     0x80,
                                     0xff,
                                     0x7fff,
                                     0xffff,
                                     0x7fffffff,
                                     0x80000000,
                                     0xffffffff,
                                     0x7fffffffffffffff,
                                     0x8000000000000000,
                                     0xffffffffffffffff};
    for (size_t edits = 1 + random.below(4); edits > 0; --edits) {
        const size_t at = random.below(bytes.size() + 1), left = bytes.size() - at;
        switch (random.below(7)) {
            case 0:
                if (left > 0) bytes[at] = static_cast<char>(bytes[at] ^ 1 << random.below(8));
                break;
            case 1:
                if (left > 0) bytes[at] = static_cast<char>(random.word());
                break;
            case 2: {
                const uint64_t number = kNumbers[random.below(std::size(kNumbers))];
                const size_t n = std::min<size_t>(left, size_t{1} << random.below(4));
                for (size_t i = 0; i < n; ++i) bytes[at + i] = static_cast<char>(number >> 8 * i);
                break;
            }
            case 3:
                bytes.resize(at);
                break;
            case 4:
                bytes.erase(at, 1 + random.below(8));
                break;
            case 5: {
                const size_t from = random.below(bytes.size() + 1);
                bytes.insert(at, bytes.substr(from, random.below(16)));
                break;
            }
            default: {
                const std::string& other = inputs[random.below(inputs.size())];
                const size_t from = random.below(other.size() + 1);
                bytes.insert(at, other.substr(from, random.below(64)));
            }
        }
    }
    return bytes;
}

void run(const std::string& bytes) {
    // A copy of exactly this size, so that AddressSanitizer sees a read past its end.
    const std::vector<uint8_t> copy(bytes.begin(), bytes.end());
    LLVMFuzzerTestOneInput(copy.data(), copy.size());
}

}  // namespace

int main(int argc, char** argv) {
    if (LLVMFuzzerInitialize != nullptr) LLVMFuzzerInitialize(&argc, &argv);
    std::vector<std::string> inputs;
    for (int i = 1; i < argc; ++i) {
        std::vector<std::filesystem::path> paths;
        if (std::filesystem::is_directory(argv[i])) {
            for (const auto& entry : std::filesystem::directory_iterator(argv[i])) paths.push_back(entry.path());
        } else {
            paths.push_back(argv[i]);
        }
        std::sort(paths.begin(), paths.end());
        for (const auto& path : paths) {
            std::ifstream in(path, std::ios::binary);
            if (!in) {
                std::fprintf(stderr, "%s: cannot be read\n", path.c_str());
                return 1;
            }
            inputs.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
        }
    }
    if (inputs.empty()) {
        std::fprintf(stderr, "no inputs: the corpus is empty or was not found\n");
        return 1;
    }
    const char* wanted = std::getenv("ORPO_FUZZ_RUNS");
    const int runs = wanted != nullptr ? std::atoi(wanted) : 300;
    for (const std::string& input : inputs) run(input);
    for (size_t i = 0; i < inputs.size(); ++i) {
        Random random(static_cast<uint32_t>(i));
        for (int n = 0; n < runs; ++n) run(mutated(inputs[i], inputs, random));
    }
    std::printf("%zu inputs, %zu mutations: sound\n", inputs.size(), inputs.size() * static_cast<size_t>(runs));
    return 0;
}
