#include "tests/simt/source_names.h"

#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>

extern "C" const char __executable_start;  // from the linker: where the program lies

namespace simt {

std::map<uintptr_t, std::vector<Frame>> name_addresses(const std::set<uintptr_t>& addresses) {
    std::map<uintptr_t, std::vector<Frame>> frames;
    char program[PATH_MAX + 1] = {};
    if (addresses.empty() || readlink("/proc/self/exe", program, PATH_MAX) <= 0) return frames;
    const auto start = reinterpret_cast<uintptr_t>(&__executable_start);
    std::string command = "addr2line -aifC -e '" + std::string(program) + "'";
    for (const uintptr_t address : addresses) {
        char text[32];
        // A return address stands behind the call.
        std::snprintf(text, sizeof text, " %#lx", static_cast<unsigned long>(address - 1 - start));
        command += text;
    }
    FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
    if (!pipe) return frames;
    // "0x...", then pairs of lines: function, path:line (discriminator n)
    std::string lines[2];
    int have = 0;
    uintptr_t now = 0;
    char* text = nullptr;
    size_t room = 0;
    for (ssize_t n; (n = getline(&text, &room, pipe)) > 0;) {
        std::string line(text, static_cast<size_t>(n - (text[n - 1] == '\n')));
        if (line.rfind("0x", 0) == 0) {
            now = std::strtoull(line.c_str(), nullptr, 16) + 1 + start;
            have = 0;
            continue;
        }
        lines[have++] = line;
        if (have < 2) continue;
        have = 0;
        const size_t slash = lines[1].rfind('/'), colon = lines[1].rfind(':');
        if (colon == std::string::npos) continue;
        const size_t from = slash == std::string::npos ? 0 : slash + 1;
        frames[now].push_back({lines[0], lines[1].substr(from, colon - from), std::atoi(lines[1].c_str() + colon + 1)});
    }
    std::free(text);
    pclose(pipe);
    return frames;
}

std::string kernel_name(const std::string& demangled) {
    const size_t at = demangled.find("_kernel");
    if (at == std::string::npos) return "";
    size_t begin = at;
    while (begin > 0 && (std::isalnum(static_cast<unsigned char>(demangled[begin - 1])) || demangled[begin - 1] == '_'))
        --begin;
    size_t end = at + 7;
    if (end < demangled.size() && demangled[end] == '<') {
        int depth = 0;
        do depth += demangled[end] == '<' ? 1 : demangled[end] == '>' ? -1 : 0;
        while (++end < demangled.size() && depth > 0);
    }
    std::string name = demangled.substr(begin, end - begin);
    for (const std::string space : {"orpo::cuda::", "orpo::"})
        for (size_t i; (i = name.find(space)) != std::string::npos;) name.erase(i, space.size());
    return name;
}

}  // namespace simt
