// Spoils every barrier, every cp.async wait and every cp.async commit of the kernels in turn (simt.h, "barriers") and
// shows which test notices. A mutation that no test notices fails the check: a test is missing, or the barrier is
// redundant and goes.
//   mutation_check KERNELS_FOLDER TEST...
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <thread>
#include <vector>

#include <sys/wait.h>

namespace {

namespace fs = std::filesystem;

struct Mutant {
    std::string file;    // "cuda/head.cu"
    std::string kernel;  // the function that it stands in
    int line = 0;
    std::string name, how;  // as simt.h names them
    std::string caught_by;  // a test case; empty: none
    bool reached = false;
};

// Every place that can be spoilt, from the text of a kernel file.
void find_mutants(const fs::path& path, const std::string& file, std::vector<Mutant>& mutants) {
    struct Kind {
        const char *pattern, *name;
        std::vector<std::string> how;
    };
    static const Kind kinds[] = {{R"(\b__syncthreads\s*\()", "barrier", {"delete", "weaken"}},
                                 {R"(\b__syncwarp\s*\()", "warp", {"delete"}},
                                 {R"(\bcp_async_wait\s*<)", "wait", {"delete", "weaken"}},
                                 {R"(\bcp_async_commit\s*\()", "commit", {"delete"}}};
    static const std::regex comment("//.*"), bounds(R"(__launch_bounds__\([^)]*\))"), function(R"((\w+)\s*\()"),
        definition(R"(cp_async_\w+.*\{)");
    std::ifstream in(path);
    std::string line, kernel;
    bool named = true;
    for (int number = 1; std::getline(in, line); ++number) {
        line = std::regex_replace(std::regex_replace(line, comment, ""), bounds, "");
        if (line.find("__global__") != std::string::npos || line.find("__device__") != std::string::npos) named = false;
        std::smatch match;
        if (!named && std::regex_search(line, match, function)) kernel = match[1], named = true;
        if (std::regex_search(line, definition)) continue;  // device.cuh's own
        for (const Kind& kind : kinds) {
            const std::regex pattern(kind.pattern);
            const auto count = std::distance(std::sregex_iterator(line.begin(), line.end(), pattern), {});
            if (count == 0) continue;
            if (count > 1) {
                std::fprintf(stderr, "%s:%d: two of a kind in one line cannot be told apart\n", file.c_str(), number);
                std::exit(2);
            }
            for (const std::string& how : kind.how) mutants.push_back({file, kernel, number, kind.name, how, "", false});
        }
    }
}

// The tests named like the file or its folder, those that share more of the name first: head.cu -> simt_head_test.
std::vector<std::string> tests_of(std::vector<std::string> tests, const std::string& file) {
    const auto alike = [&](const std::string& test) {
        const std::string name = fs::path(test).filename().string().substr(5);  // after "simt_"
        size_t best = 0;
        for (const std::string& other : {fs::path(file).stem().string(), fs::path(file).parent_path().string()}) {
            size_t n = 0;
            while (n < std::min(name.size(), other.size()) && name[n] == other[n]) ++n;
            best = std::max(best, n);
        }
        return best;
    };
    tests.erase(std::remove_if(tests.begin(), tests.end(), [&](const std::string& t) { return alike(t) < 4; }), tests.end());
    std::stable_sort(tests.begin(), tests.end(),
                     [&](const std::string& a, const std::string& b) { return alike(a) > alike(b); });
    return tests;
}

void run(Mutant& m, const std::vector<std::string>& tests) {
    const std::string setting = m.file + ":" + std::to_string(m.line) + ":" + m.name + ":" + m.how;
    for (const std::string& test : tests_of(tests, m.file)) {
        const std::string command = "SIMT_MUTATION='" + setting + "' ASAN_OPTIONS=detect_leaks=0 timeout 300 '" + test +
                                    "' --abort-after=1 --no-path-filenames 2>&1";
        FILE* pipe = popen(command.c_str(), "r");
        if (!pipe) std::exit(2);
        std::string text;
        char buffer[4096];
        while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) text.append(buffer, n);
        const int status = pclose(pipe);
        m.reached |= text.find("the mutation was reached") != std::string::npos;
        if (status == 0) continue;
        std::smatch match;
        static const std::regex test_case("TEST CASE: *([^\n]*)"), fault("fault: ([^\n]*)"),
            sanitizer("(ERROR: AddressSanitizer: [^ \n]*|runtime error: [^\n]*)");
        m.caught_by = fs::path(test).filename().string();
        if (std::regex_search(text, match, test_case)) m.caught_by += ": " + match[1].str();
        if (std::regex_search(text, match, fault)) m.caught_by += ": the runner: " + match[1].str();
        if (std::regex_search(text, match, sanitizer)) m.caught_by += ": " + match[1].str();
        if (WIFEXITED(status) && WEXITSTATUS(status) == 124) m.caught_by += ": it does not end";
        if (!m.reached) m.caught_by.clear();  // the test fails by itself
        return;
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s KERNELS_FOLDER TEST...\n", argv[0]);
        return 2;
    }
    const fs::path folder = argv[1];
    const std::vector<std::string> tests(argv + 2, argv + argc);
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
        if (entry.path().extension() == ".cu" || entry.path().extension() == ".cuh") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<Mutant> mutants;
    for (const fs::path& file : files) find_mutants(file, fs::relative(file, folder).string(), mutants);

    const auto start = std::chrono::steady_clock::now();
    std::atomic<size_t> next{0};
    std::vector<std::thread> workers;
    for (unsigned w = 0; w < std::max(1u, std::thread::hardware_concurrency()); ++w)
        workers.emplace_back([&] {
            for (size_t i = next++; i < mutants.size(); i = next++) run(mutants[i], tests);
        });
    for (std::thread& worker : workers) worker.join();

    int survivors = 0;
    std::printf("%-28s %-26s %5s  %-15s  caught by\n", "file", "function", "line", "mutation");
    for (const Mutant& m : mutants) {
        const bool caught = !m.caught_by.empty();
        survivors += !caught;
        std::printf("%-28s %-26s %5d  %-15s  %s\n", m.file.c_str(), m.kernel.c_str(), m.line,
                    (m.name + " " + m.how).c_str(),
                    caught      ? m.caught_by.c_str()
                    : m.reached ? "NO TEST NOTICES"
                                : "NO TEST GETS HERE, or one fails by itself");
    }
    std::printf("%zu mutations, %d not caught, %.0f s\n", mutants.size(), survivors,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    return survivors == 0 && !mutants.empty() ? 0 : 1;
}
