// orpo tokenize, run as a user runs it.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "base/io.h"
#include "tests/program.h"
#include "tests/temp_dir.h"
#include "tests/test_data.h"
#include "tests/tiny_model_dir.h"

using namespace orpo;
using test::Ran;

namespace {

class Place {
  public:
    Place() {
        test::write_tiny_model(dir_ / "model");
        for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
            std::filesystem::copy(test_data(std::string("golden/tokenizer/small/") + name), dir_ / "model",
                                  std::filesystem::copy_options::overwrite_existing);
        }
    }
    Ran run(std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), {"tokenize", "--model", dir_ / "model"});
        return test::run(arguments, dir_ / "log");
    }
    // The same with `input` on standard input.
    Ran pipe(const std::string& arguments, const std::string& input) {
        io::write_file_atomic(dir_ / "in", input);
        const std::string at = "'" + dir_.path() + "/";
        const int status = std::system(("'" + test::program() + "' tokenize --model " + at + "model' " + arguments +
                                        " < " + at + "in' > " + at + "out' 2> " + at + "err'")
                                           .c_str());
        return {WEXITSTATUS(status), io::read_file(dir_ / "out", 1 << 20), io::read_file(dir_ / "err", 1 << 20)};
    }

  private:
    TempDir dir_;
};

}  // namespace

TEST_CASE("orpo tokenize: ids of a text and back, on arguments and standard input") {
    if (test::program().empty()) {
        std::cerr << "skipped: no orpo program in this build\n";
        return;
    }
    Place place;
    const Ran ids = place.run({"What is it? \u00e9 12"});
    CHECK(ids.code == 0);
    CHECK(ids.err == "");
    const std::string list = ids.out.substr(0, ids.out.size() - 1);
    CHECK(place.run({"--decode", list}).out == "What is it? \u00e9 12\n");
    CHECK(place.pipe("-", "What is it? \u00e9 12").out == ids.out);
    CHECK(place.pipe("--decode", ids.out).out == "What is it? \u00e9 12\n");
    CHECK(place.pipe("", "").out == "\n");
    CHECK(place.run({""}).out == "\n");

    CHECK(place.run({"--json", "<|im_end|>"}).out == "[2]\n");
    CHECK(place.run({"--json", "--special=literal", "<|im_end|>"}).out != "[2]\n");
    CHECK(place.run({"--json", "--decode", "[2, 0]"}).out == "\"<|im_end|><|endoftext|>\"\n");
    // One text a line; blank lines are none.
    const Ran lines = place.pipe("--input json --json", "\"<|im_end|>\"\r\n\n\"\"\n\"<|im_end|><|im_end|>\"");
    CHECK(lines.code == 0);
    CHECK(lines.out == "[2]\n[]\n[2,2]\n");
    CHECK(place.pipe("--input json --decode --json", "[2]\n[]\n").out == "\"<|im_end|>\"\n\"\"\n");
}

TEST_CASE("orpo tokenize: what is wrong, where, and the exit code") {
    if (test::program().empty()) return;
    Place place;
    const auto fails = [](const Ran& ran, int code, const std::string& words) {
        CAPTURE(ran.err);
        CHECK(ran.code == code);
        CHECK(ran.err.find(words) != std::string::npos);
    };
    fails(place.run({"--special=error", "a <|im_end|>"}), 3, "<|im_end|> at byte 2");
    fails(place.pipe("", "ab\xff"), 3, "standard input: the text is no valid UTF-8 at byte 2");
    fails(place.pipe("--input json", "\"a\"\n\"b\n"), 3, "standard input:2: not a JSON string");
    fails(place.pipe("--input json", "17"), 3, "standard input:1: not a JSON string");
    fails(place.pipe("--input json", "\"\\ud800\""), 3, "standard input:1");
    fails(place.run({"--decode", "1 x"}), 3, "TEXT: byte 2 begins no token id");
    fails(place.run({"--decode", "99999999999"}), 3, "TEXT: byte 0");
    fails(place.run({"--decode", "800"}), 3, "token id 800 is outside the vocabulary (0 to 799)");
    fails(place.run({"--special=maybe", "a"}), 2, "--special");
    const Ran dropped = place.run({std::string("a\x04") + "b"});
    CHECK(dropped.code == 0);
    CHECK(dropped.err.find("1 byte without a token dropped") != std::string::npos);
}
