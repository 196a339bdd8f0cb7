#include "tests/simt/compiled.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "base/io.h"
#include "tests/simt/source_names.h"

namespace simt {

namespace fs = std::filesystem;
using orpo::Error;
using orpo::Exit;

namespace {

constexpr uint64_t kMost = 64u << 20;  // bytes of a file that is read

std::string demangled(const std::string& name) {
    int status = 0;
    const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status),
                                                      std::free);
    return status == 0 ? text.get() : name;
}

// The number before `unit` in a line: "0 bytes stack frame, 8 bytes spill stores" of "spill stores" is 8.
int number_before(const std::string& line, const std::string& unit) {
    const size_t at = line.find(" " + unit);
    if (at == std::string::npos) return -1;
    size_t begin = at;
    while (begin > 0 && std::isdigit(static_cast<unsigned char>(line[begin - 1]))) --begin;
    return begin == at ? -1 : std::stoi(line.substr(begin, at - begin));
}

// The low nine bits of a 16-byte instruction say what it does (the next three where its operands are). Found by
// comparing with the disassembler of CUDA 12 and 13 for sm_80 to sm_120.
const char* instruction(uint64_t word) {
    switch (word & 0x1ff) {
        case 0x03c:
            return "mma";
        case 0x03b:
            return "ldmatrix";
        case 0x1ae:
            return "cp.async";
        case 0x181:
            return "global load";
        case 0x186:
            return "global store";
        case 0x184:
            return "shared load";
        case 0x188:
            return "shared store";
        case 0x183:
            return "local load";
        case 0x187:
            return "local store";
        case 0x108:
            return "special function";
        case 0x189:
            return "shuffle";
        default:
            return nullptr;
    }
}

template <class T>
T at(const std::string& bytes, uint64_t offset, const std::string& name) {
    if (offset > bytes.size() || bytes.size() - offset < sizeof(T))
        throw Error(Exit::kIo, name + ": the cubin is cut off");
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

}  // namespace

std::map<std::string, std::map<std::string, int>> cubin_instructions(const std::string& bytes,
                                                                     const std::string& name) {
    if (bytes.compare(0, 4, "\177ELF") != 0) throw Error(Exit::kIo, name + ": not a cubin");
    // ELF64: section headers of 64 bytes; fields at 0 name, 24 offset, 32 size.
    const auto headers = at<uint64_t>(bytes, 0x28, name);
    const int sections = at<uint16_t>(bytes, 0x3c, name), names = at<uint16_t>(bytes, 0x3e, name);
    const auto field = [&](int section, int offset) {
        return at<uint64_t>(bytes, headers + static_cast<uint64_t>(section * 64 + offset), name);
    };
    const uint64_t strings = field(names, 24);
    std::map<std::string, std::map<std::string, int>> kernels;
    for (int s = 0; s < sections; ++s) {
        const uint64_t begin = strings + at<uint32_t>(bytes, headers + static_cast<uint64_t>(s * 64), name);
        const size_t end = bytes.find('\0', begin);
        if (begin >= bytes.size() || end == std::string::npos) throw Error(Exit::kIo, name + ": the cubin is cut off");
        const std::string section = bytes.substr(begin, end - begin), prefix = ".text.";
        if (section.rfind(prefix, 0) != 0) continue;
        auto& counts = kernels[section.substr(prefix.size())];
        for (uint64_t i = 0, n = field(s, 32); i + 16 <= n; i += 16)
            if (const char* what = instruction(at<uint64_t>(bytes, field(s, 24) + i, name))) ++counts[what];
    }
    return kernels;
}

std::map<std::string, CompiledKernel> ptxas_kernels(const std::string& log, const std::string& name) {
    std::map<std::string, CompiledKernel> kernels;
    CompiledKernel* now = nullptr;
    for (size_t begin = 0, end; begin < log.size(); begin = end + 1) {
        end = std::min(log.find('\n', begin), log.size());
        const std::string line = log.substr(begin, end - begin), entry = "Compiling entry function '";
        if (const size_t from = line.find(entry); from != std::string::npos) {
            const size_t first = from + entry.size(), last = line.find('\'', first), target = line.find("'sm_");
            if (last == std::string::npos || target == std::string::npos)
                throw Error(Exit::kIo, name + ": a line that was not expected: " + line);
            const std::string mangled = line.substr(first, last - first);
            now = &kernels[mangled];
            now->kernel = kernel_name(demangled(mangled));
            now->target = std::stoi(line.substr(target + 4));
        } else if (now && line.find("bytes stack frame") != std::string::npos) {
            now->stack = number_before(line, "bytes stack frame");
            now->spill_stores = number_before(line, "bytes spill stores");
            now->spill_loads = number_before(line, "bytes spill loads");
        } else if (now && line.find("Used ") != std::string::npos) {
            now->registers = number_before(line, "registers");
        }
    }
    return kernels;
}

std::vector<CompiledKernel> read_compiled(const std::string& folder) {
    std::vector<CompiledKernel> all;
    for (const auto& file : fs::directory_iterator(folder)) {
        if (file.path().extension() != ".log") continue;
        const std::string log = file.path().string(), cubin = log.substr(0, log.size() - 4) + ".cubin";
        const auto instructions = cubin_instructions(orpo::io::read_file(cubin, kMost), cubin);
        for (auto& [mangled, kernel] : ptxas_kernels(orpo::io::read_file(log, kMost), log)) {
            if (kernel.registers <= 0 || kernel.stack < 0 || kernel.spill_stores < 0 || !instructions.count(mangled))
                throw Error(Exit::kIo, log + ": no registers or no code of " + kernel.kernel);
            kernel.instructions = instructions.at(mangled);
            all.push_back(kernel);
        }
    }
    std::sort(all.begin(), all.end(), [](const CompiledKernel& a, const CompiledKernel& b) {
        return std::pair(a.kernel, a.target) < std::pair(b.kernel, b.target);
    });
    return all;
}

Recorded read_record(const std::string& path) {
    const auto json = nlohmann::json::parse(orpo::io::read_file(path, kMost));
    Recorded record{json.at("compiler"), json.at("sources"), {}};
    for (const auto& [kernel, targets] : json.at("kernels").items())
        for (const auto& [target, k] : targets.items())
            record.kernels.push_back({kernel, std::stoi(target.substr(3)), k.at("registers"), k.at("stack"),
                                      k.at("spill stores"), k.at("spill loads"),
                                      k.at("instructions").get<std::map<std::string, int>>()});
    return record;
}

void write_record(const std::string& path, const Recorded& record) {
    nlohmann::json kernels;
    for (const CompiledKernel& k : record.kernels)
        kernels[k.kernel]["sm_" + std::to_string(k.target)] = {{"registers", k.registers},
                                                               {"stack", k.stack},
                                                               {"spill stores", k.spill_stores},
                                                               {"spill loads", k.spill_loads},
                                                               {"instructions", k.instructions}};
    // One kernel and target a line.
    std::string text = "{\n\"compiler\": " + nlohmann::json(record.compiler).dump() +
                       ",\n\"sources\": " + nlohmann::json(record.sources).dump() + ",\n\"kernels\": {";
    const char* comma = "";
    for (const auto& [kernel, targets] : kernels.items()) {
        text += std::string(comma) + "\n" + nlohmann::json(kernel).dump() + ": {";
        comma = "";
        for (const auto& [target, k] : targets.items())
            text += std::string(comma) + "\n  \"" + target + "\": " + k.dump(), comma = ",";
        text += "}";
        comma = ",";
    }
    orpo::io::write_file_atomic(path, text + "\n}\n}\n");
}

std::string source_hash(const std::string& root) {
    std::vector<std::string> files = {"kernels/batch.h",    "kernels/bf16.h",      "kernels/border.h",
                                      "kernels/low_rank.h", "kernels/orpo_pair.h", "kernels/sample.h"};
    for (const auto& file : fs::directory_iterator(root + "/kernels/cuda")) {
        const std::string name = file.path().filename().string(), ending = file.path().extension().string();
        if (ending == ".cu" || ending == ".cuh" || name == "ops.h" || name == "low_rank_cut.h")
            files.push_back("kernels/cuda/" + name);
    }
    std::sort(files.begin(), files.end());
    std::string all;
    for (const std::string& file : files) all += file + " " + orpo::sha256_file(root + "/" + file) + "\n";
    return orpo::sha256_hex(all);
}

Occupancy occupancy(int target, int registers, int threads, int64_t shared_bytes) {
    // CUDA programming guide, "Technical specifications per compute capability": warps, blocks, KiB of shared memory of
    // a multiprocessor. Each of its four parts has 16384 registers and hands them out by 256 a warp; every block takes
    // 1 KiB of shared memory more.
    struct Limits {
        int target, warps, blocks, shared;
    };
    constexpr Limits kLimits[] = {{80, 64, 32, 164}, {86, 48, 16, 100},  {89, 48, 24, 100},
                                  {90, 64, 32, 228}, {100, 64, 32, 228}, {120, 48, 24, 100}};
    for (const Limits& l : kLimits) {
        if (l.target != target) continue;
        const int warps = (threads + 31) / 32, a_warp = (registers * 32 + 255) / 256 * 256;
        const std::pair<int, const char*> ends[] = {
            {l.warps / warps, "threads"},
            {l.blocks, "blocks"},
            {16384 / a_warp * 4 / warps, "registers"},
            {static_cast<int>(l.shared * 1024 / (shared_bytes + 1024)), "shared memory"}};
        const auto least = *std::min_element(std::begin(ends), std::end(ends),
                                             [](const auto& a, const auto& b) { return a.first < b.first; });
        return {least.first, static_cast<double>(least.first * warps) / l.warps, least.second};
    }
    throw Error(Exit::kUsage, "no limits are known for sm_" + std::to_string(target));
}

}  // namespace simt
