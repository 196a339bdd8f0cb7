// Checkpoints: whole or invisible, every damage noticed, and older ones left alone whatever fails.
#include "src/checkpoint.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/io.h"
#include "base/philox.h"
#include "model/peft_adapter.h"
#include "tests/temp_dir.h"

using namespace orpo;

namespace {

PeftAdapter small_adapter() {
    PeftAdapter adapter;
    adapter.rank = 1;
    adapter.alpha = 2;
    adapter.targets = {"q_proj"};
    adapter.base_name = "test";
    adapter.tensors[adapter_key(0, Linear::kQ, 'A')] = {1, 3, {1, 2, 3}};
    adapter.tensors[adapter_key(0, Linear::kQ, 'B')] = {2, 1, {4, 5}};
    return adapter;
}

struct State {
    Json trainer = {{"best", 1.0 / 3}}, identity = {{"data", "abc"}};
    std::vector<float> masters, m, v, best;

    explicit State(int64_t step, bool with_best = true) {
        for (uint32_t i = 0; i < 100; ++i) {
            const auto words = philox(static_cast<uint64_t>(step), {i, 0, 0, 0});
            masters.push_back(static_cast<float>(uniform(words[0])));
            m.push_back(static_cast<float>(uniform(words[1])));
            v.push_back(static_cast<float>(uniform(words[2])));
            if (with_best) best.push_back(static_cast<float>(uniform(words[3])));
        }
    }
    CheckpointView view(int64_t step) const { return {step, 2, 7, &trainer, &identity, masters, m, v, best}; }
};

void save(const std::string& run, int64_t step) { save_checkpoint(run, State(step).view(step), small_adapter()); }

void check_equal(const Checkpoint& loaded, int64_t step) {
    const State state(step);
    CHECK(loaded.step == step);
    CHECK(loaded.epoch == 2);
    CHECK(loaded.position == 7);
    CHECK(loaded.trainer == state.trainer);
    CHECK(loaded.identity == state.identity);
    CHECK(loaded.masters == state.masters);
    CHECK(loaded.m == state.m);
    CHECK(loaded.v == state.v);
    CHECK(loaded.best == state.best);
}

std::string load_error(const std::string& directory) {
    try {
        load_checkpoint(directory);
    } catch (const Error& error) {
        CHECK(error.exit() == Exit::kCannotResume);
        return error.what();
    }
    return "";
}

const std::vector<std::string> kFiles = {"manifest.json", "state.f32", "adapter/adapter_config.json",
                                         "adapter/adapter_model.safetensors"};

}  // namespace

TEST_CASE("a checkpoint comes back as it was saved") {
    TempDir run;
    save(run.path(), 12);
    check_equal(load_checkpoint(checkpoint_path(run.path(), 12)), 12);
    const State state(3, /*with_best=*/false);
    save_checkpoint(run.path(), state.view(3), small_adapter());
    CHECK(load_checkpoint(checkpoint_path(run.path(), 3)).best.empty());
    CHECK(list_checkpoints(run.path()) == std::vector<int64_t>{3, 12});
    save(run.path(), 3);  // again: replaced
    check_equal(load_checkpoint(checkpoint_path(run.path(), 3)), 3);
    CHECK(io::list_dir(run / "checkpoints") == std::vector<std::string>{"step-12", "step-3"});
}

TEST_CASE("a thousand damages, a thousand refusals, and the older checkpoint is found") {
    TempDir run;
    save(run.path(), 1);
    save(run.path(), 2);
    const std::string newest = checkpoint_path(run.path(), 2);
    int found = 0;
    for (uint32_t i = 0; i < 1000; ++i) {
        const auto r = philox(7, {i, 0, 0, 0});
        const std::string file = newest + "/" + kFiles[i % kFiles.size()];
        const std::string sound = io::read_file(file, 1 << 20);
        std::string bytes = sound;
        const size_t at = r[0] % bytes.size();
        if (i / 4 % 4 == 0)
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << r[1] % 8));  // bit flip
        else if (i / 4 % 4 == 1)
            bytes.resize(at);  // torn
        else if (i / 4 % 4 == 2)
            bytes.replace(at, std::string::npos, bytes.size() - at, '\0');  // zeroed to the end
        else
            bytes.insert(at, 1, static_cast<char>(r[1]));  // a byte too many
        if (bytes == sound) bytes += 'x';                  // its last bytes were zero already
        io::write_file_atomic(file, bytes);
        if (load_error(newest).find("damaged checkpoint") != std::string::npos) ++found;
        io::write_file_atomic(file, sound);
    }
    CHECK(found == 1000);
    check_equal(load_checkpoint(newest), 2);

    for (const std::string& file : kFiles) {
        save(run.path(), 2);
        REQUIRE(::unlink((newest + "/" + file).c_str()) == 0);
        CHECK(load_error(newest).find(file + ": damaged checkpoint: the file is missing") != std::string::npos);
        std::vector<std::string> warnings;
        const auto checkpoint = newest_checkpoint(run.path(), [&](const std::string& w) { warnings.push_back(w); });
        REQUIRE(checkpoint);
        check_equal(*checkpoint, 1);
        CHECK(warnings.size() == 1);
    }
    REQUIRE(::unlink((checkpoint_path(run.path(), 1) + "/state.f32").c_str()) == 0);
    try {
        newest_checkpoint(run.path(), [](const std::string&) {});
        FAIL("no sound checkpoint, and no error");
    } catch (const Error& error) {
        CHECK(error.exit() == Exit::kCannotResume);
    }
    TempDir empty;
    CHECK_FALSE(newest_checkpoint(empty.path(), [](const std::string&) {}));
}

TEST_CASE("whichever system call fails while saving, older checkpoints stay sound and the new one is whole or absent") {
    for (const io::Op op :
         {io::Op::kOpen, io::Op::kWrite, io::Op::kFsync, io::Op::kRename, io::Op::kMkdir, io::Op::kClose})
        for (const bool forever : {false, true}) {
            int failures = 0;
            for (int64_t nth = 1; nth < 200; ++nth) {
                TempDir run;
                save(run.path(), 1);
                save(run.path(), 2);
                bool failed = false;
                {
                    io::ScopedFaults fault({.op = op, .nth = nth, .error = EIO, .forever = forever});
                    try {
                        save_checkpoint(run.path(), State(3).view(3), small_adapter());
                    } catch (const Error& error) {
                        CHECK(error.exit() == Exit::kIo);
                        failed = true;
                    }
                }
                check_equal(load_checkpoint(checkpoint_path(run.path(), 1)), 1);
                check_equal(load_checkpoint(checkpoint_path(run.path(), 2)), 2);
                if (io::exists(checkpoint_path(run.path(), 3)))
                    check_equal(load_checkpoint(checkpoint_path(run.path(), 3)), 3);
                save(run.path(), 3);  // the disk has recovered
                check_equal(load_checkpoint(checkpoint_path(run.path(), 3)), 3);
                prune_checkpoints(run.path(), 2);
                CHECK(io::list_dir(run / "checkpoints") == std::vector<std::string>{"step-2", "step-3"});
                if (!failed) break;
                ++failures;
            }
            CHECK_MESSAGE(failures > 0, static_cast<int>(op));
            CHECK(failures < 199);
        }
}

TEST_CASE("a failure while a checkpoint is replaced leaves the other checkpoints") {
    for (int64_t nth = 1; nth < 20; ++nth) {
        TempDir run;
        save(run.path(), 1);
        save(run.path(), 2);
        bool failed = false;
        {
            io::ScopedFaults fault({.op = io::Op::kRename, .nth = nth, .error = EIO});
            try {
                save(run.path(), 2);
            } catch (const Error&) {
                failed = true;
            }
        }
        check_equal(load_checkpoint(checkpoint_path(run.path(), 1)), 1);
        REQUIRE(newest_checkpoint(run.path(), [](const std::string&) {}));
        if (!failed) {
            CHECK(nth > 2);
            break;
        }
    }
}

TEST_CASE("short writes still make a whole checkpoint") {
    TempDir run;
    io::ScopedFaults fault({.op = io::Op::kWrite, .nth = 1, .short_writes = true});
    save(run.path(), 5);
    check_equal(load_checkpoint(checkpoint_path(run.path(), 5)), 5);
}

TEST_CASE("pruning keeps the newest") {
    TempDir run;
    for (const int64_t step : {1, 2, 9, 10}) save(run.path(), step);
    io::make_dirs(run / "checkpoints/.tmp-step-11-1/adapter");
    prune_checkpoints(run.path(), 0);
    CHECK(list_checkpoints(run.path()).size() == 4);
    CHECK_FALSE(io::exists(run / "checkpoints/.tmp-step-11-1"));
    prune_checkpoints(run.path(), 2);
    CHECK(list_checkpoints(run.path()) == std::vector<int64_t>{9, 10});
}
