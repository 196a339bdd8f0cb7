#include "tests/simt/simt.h"

#include <numeric>

// The fiber switch, System V x86-64: save what the callee must keep, swap stacks, restore.
//   simt_switch(void** save_sp, void* load_sp)
#if !defined(__x86_64__)
#error "the SIMT runner's fiber switch is written for x86-64"
#endif
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
.size simt_switch,.-simt_switch
)");
extern "C" void simt_switch(void** save_sp, void* load_sp);

namespace simt {

Machine& machine() {
    static Machine m;
    return m;
}

int linear(const Thread& t) { return static_cast<int>(&t - machine().threads.data()); }

namespace {

void before_switch([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#ifdef SIMT_ASAN
    __sanitizer_start_switch_fiber(fake, stack, bytes);
#endif
}

void after_switch_in_fiber([[maybe_unused]] void* fake) {
#ifdef SIMT_ASAN
    __sanitizer_finish_switch_fiber(fake, &machine().scheduler_stack, &machine().scheduler_stack_bytes);
#endif
}

void to_scheduler() {
    Machine& m = machine();
    void* fake = nullptr;
    before_switch(m.self->state == State::kDone ? nullptr : &fake, m.scheduler_stack, m.scheduler_stack_bytes);
    simt_switch(&m.self->sp, m.scheduler_sp);
    after_switch_in_fiber(fake);
}

void fiber_main() {
    after_switch_in_fiber(nullptr);
    Machine& m = machine();
    (*m.body)();
    if (!m.self->copies.empty() && m.fault.empty()) m.fault = "a thread exits with a cp.async that nobody waited for";
    m.self->state = State::kDone;
    to_scheduler();
    std::abort();
}

void prepare(Thread& t) {
    if (!t.stack) t.stack.reset(new char[kStackBytes]);
#ifdef SIMT_ASAN
    __asan_unpoison_memory_region(t.stack.get(), kStackBytes);  // what the fiber before left poisoned
#endif
    const uintptr_t top = reinterpret_cast<uintptr_t>(t.stack.get() + kStackBytes) & ~uintptr_t{15};
    void** sp = reinterpret_cast<void**>(top) - 1;  // rsp % 16 == 8 on entry, as after a call
    *--sp = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
    t.sp = sp;
    t.state = State::kReady;
    t.exchanges = 0;
    t.waits = 0;
    t.commits = 0;
    t.awaited = false;
    t.copies.clear();
}

void resume(Thread& t) {
    Machine& m = machine();
    m.self = &t;
    threadIdx = t.id;
    ++m.switches;
    void* fake = nullptr;
    before_switch(&fake, t.stack.get(), kStackBytes);
    simt_switch(&m.scheduler_sp, t.sp);
#ifdef SIMT_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// Wakes the lanes of every mask whose lanes have all arrived. `first`: the warp's first thread.
bool release_warp(size_t first) {
    auto& threads = machine().threads;
    const size_t end = std::min(threads.size(), first + 32);
    bool released = false;
    for (size_t i = first; i < end; ++i) {
        if (threads[i].state != State::kWarpBarrier) continue;
        const uint32_t mask = threads[i].mask;
        auto takes_part = [&](size_t j) { return (mask >> (j - first) & 1) && threads[j].state != State::kDone; };
        bool all = true;
        for (size_t j = first; j < end; ++j)
            all &= !takes_part(j) || (threads[j].state == State::kWarpBarrier && threads[j].mask == mask);
        if (!all) continue;
        for (size_t j = first; j < end; ++j)
            if (takes_part(j)) threads[j].state = State::kReady;
        released = true;
    }
    return released;
}

std::string divergence() {
    std::string text = "divergent barrier:";
    for (const Thread& t : machine().threads) {
        const char* where = t.state == State::kDone           ? "has exited"
                            : t.state == State::kBlockBarrier ? "waits at __syncthreads"
                                                              : "waits at a warp barrier";
        text += "\n  thread (" + std::to_string(t.id.x) + "," + std::to_string(t.id.y) + "," + std::to_string(t.id.z) +
                ") " + where + ", line " + std::to_string(t.line);
    }
    return text;
}

void arrange(std::vector<size_t>& v) {
    Machine& m = machine();
    std::iota(v.begin(), v.end(), size_t{0});
    if (m.schedule.order == Order::kReverse) std::reverse(v.begin(), v.end());
    if (m.schedule.order == Order::kShuffled)
        for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[m.next_random() % i]);
}

// Runs one block to its end; returns when all threads are done or a fault was set.
void run_block() {
    Machine& m = machine();
    const size_t n = m.threads.size();
    std::vector<size_t> warps((n + 31) / 32), lanes(32);
    for (Thread& t : m.threads) prepare(t);
    for (size_t alive = n; alive > 0;) {
        bool ran = false;
        arrange(warps);
        for (const size_t w : warps) {
            do {
                arrange(lanes);
                for (const size_t l : lanes) {
                    const size_t i = w * 32 + l;
                    if (i >= n || m.threads[i].state != State::kReady) continue;
                    ran = true;
                    resume(m.threads[i]);
                    if (!m.fault.empty()) return;
                    if (m.threads[i].state == State::kDone) --alive;
                }
            } while (release_warp(w * 32));
        }
        size_t waiting = 0;
        for (const Thread& t : m.threads) waiting += t.state == State::kBlockBarrier;
        if (alive > 0 && waiting == alive) {
            for (Thread& t : m.threads)
                if (t.state == State::kBlockBarrier) t.state = State::kReady;
        } else if (alive > 0 && !ran) {
            m.fault = divergence();
            return;
        }
    }
}

void perform(const AsyncCopy& copy) {
    if (copy.zero)
        std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
    else
        std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
}

}  // namespace

void wait(State state, uint32_t mask, int line) {
    Machine& m = machine();
    m.self->state = state;
    m.self->mask = mask;
    m.self->line = line;
    ++m.self->waits;
    to_scheduler();
}

void fail(const std::string& what) {
    machine().fault = what;
    for (;;) to_scheduler();
}

void cp_async(void* to, const void* from, int bytes, bool zero) {
    if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async copies 4, 8 or 16 bytes");
    if (reinterpret_cast<uintptr_t>(to) % bytes || (!zero && reinterpret_cast<uintptr_t>(from) % bytes))
        fail("cp.async: misaligned address");
    Machine& m = machine();
    if (m.observer) {
        const void* pc = __builtin_return_address(0);
        if (!zero) m.observer->access(Observer::Access::kCopyFrom, from, bytes, pc);
        m.observer->access(Observer::Access::kCopyTo, to, bytes, pc);
    }
    const AsyncCopy copy{to, from, bytes, m.self->commits, zero};
    const bool now =
        m.schedule.copies == Copies::kEarly || (m.schedule.copies == Copies::kRandom && m.next_random() % 2);
    if (now) perform(copy);
    // An early copy stays in the list too: it must still be waited for, and lands again at its wait (same bytes unless
    // somebody overwrote the target meanwhile, which is the race to be seen).
    m.self->copies.push_back(copy);
}

void await_kernels_before() { machine().self->awaited = true; }
void kernels_before_awaited() {
    if (!machine().self->awaited)
        fail("a thread of a kernel that is launched early does not wait for the kernels before");
}

uint4 ldmatrix_x4(const void* row, bool transposed, int line) {
    const Slot* rows = publish(row, 0xffffffffu, line);
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix: a row is not 16-byte aligned");
    if (Observer* o = machine().observer) o->access(Observer::Access::kMatrix, row, 16, __builtin_return_address(0));
    uint32_t r[4];
    const int l = lane();
    for (int m = 0; m < 4; ++m) {
        uint16_t low, high;
        if (!transposed) {
            const auto* p = static_cast<const uint16_t*>(peek<const void*>(rows, m * 8 + l / 4));
            low = p[2 * (l % 4)], high = p[2 * (l % 4) + 1];
        } else {
            low = static_cast<const uint16_t*>(peek<const void*>(rows, m * 8 + 2 * (l % 4)))[l / 4];
            high = static_cast<const uint16_t*>(peek<const void*>(rows, m * 8 + 2 * (l % 4) + 1))[l / 4];
        }
        r[m] = low | static_cast<uint32_t>(high) << 16;
    }
    // On a GPU the instruction is over for all lanes at once; a later store by a faster lane must not reach it.
    publish(0, 0xffffffffu, line);
    return {r[0], r[1], r[2], r[3]};
}

void mma_m16n8k16(float (&c)[4], uint4 a, uint2 b, int line) {
    struct Fragment {
        uint32_t a[4], b[2];
    };
    const Slot* all = publish(Fragment{{a.x, a.y, a.z, a.w}, {b.x, b.y}}, 0xffffffffu, line);
    Machine& m = machine();
    if (m.observer) m.observer->mma();
    const auto fragment = [&](int source) -> const Fragment& {
        if (all[source].exchange != m.self->exchanges - 1) fail("mma: a lane did not take part");
        return *reinterpret_cast<const Fragment*>(all[source].bytes);
    };
    const int me = lane(), group = me / 4, in_group = me % 4;
    float c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
    for (int quad = 0; quad < 4; ++quad) {
        const Fragment& row = fragment(group * 4 + quad);  // this lane's two rows of a, its two columns of b
        const Fragment &left = fragment(2 * in_group * 4 + quad), &right = fragment((2 * in_group + 1) * 4 + quad);
        for (int half = 0; half < 2; ++half)
            for (int e = 0; e < 2; ++e) {
                const float upper = bf16_half(row.a[2 * half], e), lower = bf16_half(row.a[2 * half + 1], e);
                const float x = bf16_half(left.b[half], e), y = bf16_half(right.b[half], e);
                c0 += upper * x, c1 += upper * y, c2 += lower * x, c3 += lower * y;
            }
    }
    c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3;
}

void load_vector(void* registers, const void* from, int bytes) {
    if (reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(bytes)) fail("a misaligned vector load");
    if (Observer* o = machine().observer) o->access(Observer::Access::kLoad, from, bytes, __builtin_return_address(0));
    std::memcpy(registers, from, static_cast<size_t>(bytes));
}
void store_vector(void* to, const void* registers, int bytes) {
    if (reinterpret_cast<uintptr_t>(to) % static_cast<uintptr_t>(bytes)) fail("a misaligned vector store");
    if (Observer* o = machine().observer) o->access(Observer::Access::kStore, to, bytes, __builtin_return_address(0));
    std::memcpy(to, registers, static_cast<size_t>(bytes));
}

namespace {

enum class Spoilt { kNot, kDeleted, kWeakened };

struct Mutation {
    std::string file, name;
    int line = 0;  // 0: none
    Spoilt how = Spoilt::kNot;
    bool reached = false;
};
Mutation parse_mutation(const char* text) {
    Mutation m;
    if (!text) return m;
    std::vector<std::string> parts(1);
    for (const char* c = text; *c; ++c) {
        if (*c == ':')
            parts.emplace_back();
        else
            parts.back() += *c;
    }
    if (parts.size() != 4) throw Fault(std::string("SIMT_MUTATION=") + text + ": file:line:name:how is wanted");
    m.file = parts[0], m.line = std::atoi(parts[1].c_str()), m.name = parts[2];
    m.how = parts[3] == "weaken" ? Spoilt::kWeakened : Spoilt::kDeleted;
    return m;
}
Mutation& mutation() {
    static Mutation m = parse_mutation(std::getenv("SIMT_MUTATION"));
    return m;
}
Spoilt spoilt(const char* name, const char* file, int line) {
    Mutation& m = mutation();
    if (m.line != line || m.name != name) return Spoilt::kNot;
    const std::string where = file;
    if (where.size() < m.file.size() || where.compare(where.size() - m.file.size(), m.file.size(), m.file) != 0)
        return Spoilt::kNot;
    if (!m.reached) std::fputs("the mutation was reached\n", stderr);
    m.reached = true;
    return m.how;
}

}  // namespace

void block_barrier(const char* file, int line) {
    switch (spoilt("barrier", file, line)) {
        case Spoilt::kNot:
            return wait(State::kBlockBarrier, 0, line);
        case Spoilt::kWeakened:
            return wait(State::kWarpBarrier, 0xffffffffu, line);
        case Spoilt::kDeleted:
            return;
    }
}

void warp_barrier(uint32_t mask, const char* file, int line) {
    if (spoilt("warp", file, line) == Spoilt::kNot) wait(State::kWarpBarrier, mask, line);
}

void cp_commit(const char* file, int line) {
    if (spoilt("commit", file, line) == Spoilt::kNot) ++machine().self->commits;
}

void cp_wait(int keep, const char* file, int line) {
    const Spoilt how = spoilt("wait", file, line);
    if (how == Spoilt::kDeleted) return;
    if (how == Spoilt::kWeakened) ++keep;
    Thread& t = *machine().self;
    size_t done = 0;
    while (done < t.copies.size() && t.copies[done].group < t.commits - keep) perform(t.copies[done++]);
    t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

namespace {
Recorder& recorder() {
    static Recorder r;
    return r;
}
}  // namespace

void set_recorder(Recorder r) { recorder() = std::move(r); }

void submit(const char* name, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel) {
    if (recorder())
        recorder()(name, grid, block, shared_bytes, std::move(kernel));
    else
        launch(name, grid, block, shared_bytes, kernel);
}

void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
    Machine& m = machine();
    const size_t n = size_t{block.x} * block.y * block.z;
    if (n == 0 || n > 1024) throw Fault(std::string(name) + ": a block has 1 to 1024 threads");
    m.kernel = name;
    m.body = &kernel;
    m.random = m.schedule.seed;
    if (m.threads.size() != n) {
        m.threads.clear();
        m.threads.resize(n);
        m.slots.assign(2 * ((n + 31) / 32 * 32), Slot{});
    }
    gridDim = grid;
    blockDim = block;
    if (m.observer) m.observer->begin_launch(name, grid, block, shared_bytes);
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t b = 0; b < blocks; ++b) {
        blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y)};
        if (m.observer && !m.observer->begin_block(blockIdx)) continue;
        for (size_t i = 0; i < n; ++i)
            m.threads[i].id = {static_cast<unsigned>(i % block.x), static_cast<unsigned>(i / block.x % block.y),
                               static_cast<unsigned>(i / block.x / block.y)};
        // Ends exactly where the allocation ends, so that ASan sees the first byte behind.
        m.shared_storage.reset(new unsigned char[shared_bytes + 128]);
        m.shared_bytes = shared_bytes;
        const uintptr_t end = reinterpret_cast<uintptr_t>(m.shared_storage.get()) + shared_bytes + 128;
        m.shared = reinterpret_cast<unsigned char*>((end - shared_bytes) & ~uintptr_t{127});
        std::memset(m.shared_storage.get(), 0xFF, shared_bytes + 128);
#ifdef SIMT_ASAN
        __asan_unpoison_memory_region(m.shared_storage.get(), shared_bytes + 128);
        const uintptr_t behind = reinterpret_cast<uintptr_t>(m.shared) + shared_bytes;
        __asan_poison_memory_region(reinterpret_cast<void*>(behind), end - behind);
#endif
        m.fault.clear();
        run_block();
        if (m.observer) m.observer->end_block();
#ifdef SIMT_ASAN
        __asan_unpoison_memory_region(m.shared_storage.get(), shared_bytes + 128);
#endif
        if (!m.fault.empty()) {
            const std::string what = std::string(name) + ", block (" + std::to_string(blockIdx.x) + "," +
                                     std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) + "), thread (" +
                                     std::to_string(threadIdx.x) + "," + std::to_string(threadIdx.y) + "," +
                                     std::to_string(threadIdx.z) + "): " + m.fault;
            if (mutation().reached) {  // noticed: nothing more is to be learnt
                std::fprintf(stderr, "fault: %s\n", what.c_str());
                std::_Exit(1);
            }
            m.threads.clear();  // fibers stopped half way are dropped with their stacks
            m.slots.clear();
            throw Fault(what);
        }
    }
}

}  // namespace simt
