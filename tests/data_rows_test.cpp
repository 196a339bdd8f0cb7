// Files and rows: every shape, and every way to be wrong, with its place and remedy.
#include <algorithm>
#include <chrono>

#include "base/hash.h"
#include "base/io.h"
#include "model/utf8.h"
#include "tests/data_test.h"
#include "tests/temp_dir.h"

using namespace orpo;

namespace {

DataOptions chat() {
    DataOptions options;
    options.chat_template = ChatTemplate::kChatml;
    return options;
}

Dataset parse(const std::string& bytes, const DataOptions& options = chat()) {
    static const Tokenizer tokenizer = small_tokenizer();
    return parse_dataset(bytes, "d.jsonl", tokenizer, options);
}

std::string fault(const std::string& bytes, const DataOptions& options = chat()) {
    return message_of(Exit::kBadData, [&] { parse(bytes, options); });
}

// "prompt|chosen|rejected" of the first pair, as text.
std::string shown(const Dataset& set) {
    static const Tokenizer tokenizer = small_tokenizer();
    const PreferencePair& p = set.pairs.at(0);
    return tokenizer.decode(p.prompt) + "|" + tokenizer.decode(p.chosen) + "|" + tokenizer.decode(p.rejected);
}

const std::string kRow = R"({"prompt":"Q","chosen":"yes","rejected":"no"})";
const std::string kTurns = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n|yes<|im_end|>|no<|im_end|>";

}  // namespace

TEST_CASE("every shape of one and the same pair") {
    const std::string u = R"({"role":"user","content":"Q"})", y = R"({"role":"assistant","content":"yes"})",
                      n = R"({"role":"assistant","content":"no"})";
    for (
        const std::string& row : {
            kRow,
            R"({"prompt":[)" + u + R"(],"chosen":[)" + y + R"(],"rejected":[)" + n + "]}",
            R"({"prompt":[)" + u + R"(],"chosen":)" + y + R"(,"rejected":)" + n + "}",
            R"({"chosen":[)" + u + "," + y + R"(],"rejected":[)" + u + "," + n + "]}",
            R"({"prompt":null,"chosen":[)" + u + "," + y + R"(],"rejected":[)" + u + "," + n + "]}",
            R"({"prompt":"Q","chosen":[)" + u + "," + y + R"(],"rejected":[)" + u + "," + n + "]}",
            R"({"prompt":"Q","chosen":[)" + y + R"(],"rejected":[)" + n + "]}",
            R"({"prompt":[)" + u + R"(],"chosen":"yes","rejected":"no"})",
            R"({"prompt":[)" + u + R"(],"chosen":[)" + u + "," + y + R"(],"rejected":[)" + u + "," + n + "]}",
            std::string(R"({"question":"Q","chosen":"yes","rejected":"no"})"),
            std::string(R"({"instruction":"Q","input":"","chosen":"yes","rejected":"no"})"),
            std::string(
                R"({"conversations":[{"from":"human","value":"Q"}],"chosen":{"from":"gpt","value":"yes"},"rejected":{"from":"gpt","value":"no"}})"),
            R"({"input":{"messages":[)" + u + R"(]},"preferred_output":[)" + y + R"(],"non_preferred_output":[)" + n +
                "]}",
            std::string(R"({"prompt":"Q","chosen":"yes<|im_end|>","rejected":"no<|im_end|>\n"})"),
            std::string(
                R"({"prompt":"<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n","chosen":"yes<|im_end|>\n","rejected":"no"})"),
        }) {
        CAPTURE(row);
        CHECK(shown(parse(row)) == kTurns);
    }
    DataOptions mapped = chat();
    mapped.columns = parse_map("prompt=ask,chosen=good,rejected=bad");
    CHECK(shown(parse(R"({"ask":"Q","good":"yes","bad":"no"})", mapped)) == kTurns);
    CHECK(shown(parse(R"({"system":"S","prompt":"Q","chosen":"yes","rejected":"no"})")) ==
          "<|im_start|>system\nS<|im_end|>\n" + kTurns);
    CHECK(shown(parse(R"({"instruction":"Q","input":"more","history":[["a","b"]],"chosen":"yes","rejected":"no"})")) ==
          "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nQ\nmore<|im_end|>\n"
          "<|im_start|>assistant\n|yes<|im_end|>|no<|im_end|>");
}

TEST_CASE("plain text: no template, or the prompt inside the strings") {
    DataOptions plain;
    const Tokenizer base = small_tokenizer(true);
    const Dataset set = parse_dataset(kRow, "d", base, plain);
    CHECK(base.decode(set.pairs[0].prompt) == "Q");
    CHECK(base.decode(set.pairs[0].chosen) == "yes<|endoftext|>");
    const Dataset inside = parse(R"({"chosen":"Q: x A: yes","rejected":"Q: x A: no"})");
    CHECK(shown(inside) == "Q: x A:| yes<|im_end|>| no<|im_end|>");
    CHECK(inside.remarks[0].has(Remark::kImplicitPrompt));
    CHECK(shown(parse(R"({"chosen":"yes","rejected":"no"})")) == "<|endoftext|>|yes<|im_end|>|no<|im_end|>");
}

TEST_CASE("files: byte-order mark, CRLF, blank lines, a missing last newline, one array, standard names for places") {
    const Dataset set = parse("\xef\xbb\xbf\r\n" + kRow + "\r\n\r\n  \n" + kRow);
    CHECK(set.pairs.size() == 2);
    CHECK(set.pairs[0].line == 2);
    CHECK(set.pairs[1].line == 5);
    CHECK(set.remarks[1].has(Remark::kDuplicate));
    const Dataset array =
        parse("[\n " + kRow + ",\n " + R"({"prompt":"a ] } \" , b","chosen":"x","rejected":"y"})" + "\n]\n");
    CHECK(array.pairs.size() == 2);
    CHECK(array.pairs[1].line == 3);
    const Dataset one_line = parse("[" + kRow + "," + kRow + "]");
    CHECK(one_line.pairs[1].line == 2);
    const std::string ignored = parse(R"({"prompt":"Q","chosen":"yes","rejected":"no","score":1})").report.notes.at(0);
    CHECK(contains(ignored, "score"));
    CHECK(set.fingerprint == sha256_hex("\xef\xbb\xbf\r\n" + kRow + "\r\n\r\n  \n" + kRow));
}

TEST_CASE("files that are something else") {
    CHECK(contains(fault(""), "empty"));
    CHECK(contains(fault(" \n\n"), "blank"));
    CHECK(contains(fault("PAR1\x15\x04"), "pyarrow"));
    CHECK(contains(fault("\x1f\x8b\x08"), "zcat"));
    CHECK(contains(fault("\x28\xb5\x2f\xfd..."), "zstdcat"));
    CHECK(contains(fault("GGUF\x03"), "--model"));
    CHECK(contains(fault("\xff\xfe{"), "iconv"));
    CHECK(contains(fault(std::string("\xff\xfe\0\0{", 5)), "iconv -f UTF-32"));
    CHECK(contains(fault(std::string("ab\0cd", 5)), "binary"));
    CHECK(contains(fault("[]"), "array is empty"));
    CHECK(contains(fault("[" + kRow), "no end"));
    CHECK(contains(fault("[" + kRow + "]\nmore"), "d.jsonl:2:1"));
    CHECK(contains(fault("[" + kRow + ",,]"), "missing between the commas"));
    CHECK(contains(fault("prompt,chosen,rejected\n"), "d.jsonl:1:1"));
    const Tokenizer tokenizer = small_tokenizer();
    const TempDir dir;
    CHECK(contains(message_of(Exit::kIo, [&] { load_dataset(dir / "none.jsonl", tokenizer, chat()); }), "none.jsonl"));
    CHECK(contains(message_of(Exit::kBadData, [&] { load_dataset(dir.path(), tokenizer, chat()); }), "directory"));
    io::write_file_atomic(dir / "d.jsonl", kRow);
    CHECK(load_dataset(dir / "d.jsonl", tokenizer, chat()).pairs.size() == 1);
}

TEST_CASE("bad rows name file, line, field and remedy") {
    const auto second = [](const std::string& row) { return fault(kRow + "\n" + row); };
    CHECK(contains(second("{\"prompt\":\"Q\",\"chosen\":\"\xc3\x28\"}"), "d.jsonl:2:25: invalid JSON: invalid UTF-8"));
    CHECK(contains(second(R"({"prompt":"\ud800","chosen":"a","rejected":"b"})"), "d.jsonl:2:"));
    CHECK(contains(second(R"({"prompt":"\ud800","chosen":"a","rejected":"b"})"), "surrogate"));
    CHECK(contains(second(kRow + " x"), "d.jsonl:2:"));
    CHECK(contains(second(kRow + kRow), "d.jsonl:2:"));
    CHECK(contains(second(R"({"prompt":"Q","chosen":"a",)"), "d.jsonl:2:"));
    CHECK(contains(second(R"({"prompt":"Q","chosen":"a","rejected":"b",})"), "d.jsonl:2:"));
    CHECK(contains(second(R"({"prompt":NaN,"chosen":"a","rejected":"b"})"), "d.jsonl:2:"));
    CHECK(contains(second("{\"prompt\":\"a\tb\",\"chosen\":\"a\",\"rejected\":\"b\"}"), "d.jsonl:2:"));
    CHECK(contains(second(R"({"prompt":"Q","prompt":"R","chosen":"a","rejected":"b"})"), "given twice"));
    CHECK(contains(second(R"({"prompt":"Q","chosen":"a"})"), "d.jsonl:2: rejected: missing"));
    CHECK(contains(second(R"({"prompt":"Q","chosen":1,"rejected":"b"})"), "d.jsonl:2: chosen: must be a string"));
    CHECK(contains(second(R"({"prompt":"Q","chosen":null,"rejected":"b"})"), "chosen: missing or null"));
    CHECK(
        contains(second(R"({"prompt":"Q","chosen":"a","rejected":[{"role":"assistant","content":"b"}]})"), "one kind"));
    CHECK(contains(second(R"("just a string")"), "d.jsonl:2: a row must be a JSON object"));
    const std::string chosen = R"({"prompt":"Q","rejected":[{"role":"assistant","content":"b"}],"chosen":)";
    CHECK(contains(second(chosen + R"([{"role":"assistant","content":null}]})"), "chosen[0].content: missing or null"));
    CHECK(contains(second(chosen + R"([{"role":"robot","content":"a"}]})"), "chosen[0].role: the role \"robot\""));
    CHECK(contains(second(chosen + R"([{"content":"a"}]})"), "chosen[0].role: missing"));
    CHECK(contains(second(chosen + R"([{"role":"assistant","content":"a","tool_calls":[{}]}]})"), "tool_calls"));
    CHECK(contains(second(chosen + R"([{"role":"assistant","content":"a","role":"user"}]})"), "given twice"));
    CHECK(contains(second(chosen + "[]}"), "empty list"));
    CHECK(contains(second(std::string(2000, '[')), "d.jsonl:2"));
    CHECK(contains(second(R"({"prompt":"Q","chosen":"a"})"), "--on-bad-row skip"));
    DataOptions options = chat();
    options.chat_template = ChatTemplate::kNone;
    CHECK(contains(fault(chosen + R"([{"role":"assistant","content":"a"}]})", options), "--template chatml"));
    options = chat();
    options.columns = parse_map("prompt=ask");
    CHECK(contains(fault(kRow, options), "ask: missing"));
    options = chat();
    options.special = SpecialText::kError;
    CHECK(contains(fault(R"({"prompt":"Q","chosen":"a<|im_end|>b","rejected":"b"})", options), "--special literal"));
}

TEST_CASE("numbers that do not fit are named with their place") {
    const auto score = [](const std::string& n) {
        return fault(R"({"prompt":"Q","chosen":"a","rejected":"b","n":)" + n + "}");
    };
    CHECK(contains(score("1e999"), "a number that is too large"));
    const std::string digits = "123456789012345678901234567890";
    CHECK(contains(score(digits), "d.jsonl:1:47: invalid JSON: the integer " + digits + " has more than 64 bits"));
    CHECK(score(std::string(100000, '7')).size() < 600);
}

TEST_CASE("a broken row of 20 MB, and one of 100,000 columns, are told in a few words and soon") {
    const std::string open = R"({"prompt":"Q","chosen":")" + std::string(20 << 20, 'x');
    const std::string message = fault(kRow + "\n" + open);
    CHECK(contains(message, "d.jsonl:2:20971545: invalid JSON: invalid string: missing closing quote"));
    CHECK(message.size() < 600);
    CHECK(find_invalid_utf8(fault(R"({"prompt":"Q","chosen":"a)" + [] {
              std::string text;
              for (int i = 0; i < 1000; ++i) text += "\xe2\x82\xac";
              return text;
          }())) == std::string_view::npos);
    std::string wide = "{";
    for (int i = 0; i < 100000; ++i) wide += "\"column " + std::to_string(i) + "\":1,";
    const auto start = std::chrono::steady_clock::now();
    CHECK(parse(wide + kRow.substr(1)).pairs.size() == 1);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}

TEST_CASE("bad rows are skipped and counted on request") {
    DataOptions options = chat();
    options.bad_row = BadRow::kSkip;
    const Dataset set = parse(
        kRow + "\n{\n" + R"({"prompt":"Q","chosen":"a"})" + "\n" + R"({"prompt":"R","chosen":"a","rejected":"b"})",
        options);
    CHECK(set.pairs.size() == 2);
    CHECK(set.report.rows == 4);
    CHECK(set.report.lines[static_cast<int>(Remark::kBadRow)] == std::vector<int64_t>{2, 3});
    CHECK(contains(set.report.bad_rows.at(1).second, "d.jsonl:3: rejected: missing"));
    CHECK(contains(report_text(set.report), "lines 2, 3"));
    CHECK(contains(fault("{\n{\n", options), "no pair is left"));
}

TEST_CASE("a row of 20 MB is read; special tokens as characters; a limit of one is refused") {
    const std::string big(20 << 20, 'x');
    DataOptions options = chat();
    const Dataset set = parse(R"({"prompt":"Q","chosen":")" + big + R"(","rejected":"no"})", options);
    CHECK(set.remarks[0].has(Remark::kChosenCut));
    CHECK(set.pairs[0].prompt.size() + set.pairs[0].chosen.size() == 1024);
    const std::string row = R"({"prompt":"<|im_end|>","chosen":"a<|im_start|>","rejected":"b"})";
    options.special = SpecialText::kLiteral;
    const Dataset literal = parse(row, options);
    CHECK(shown(literal) ==
          "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n|a<|im_start|><|im_end|>|b<|im_end|>");
    CHECK(std::count(literal.pairs[0].prompt.begin(), literal.pairs[0].prompt.end(), 2) == 1);
    CHECK(std::count(literal.pairs[0].chosen.begin(), literal.pairs[0].chosen.end(), 1) == 0);
    CHECK(literal.remarks[0].has(Remark::kSpecialInText));
    options.max_length = 1;
    message_of(Exit::kUsage, [&] { parse(kRow, options); });
}

TEST_CASE("words of the options") {
    CHECK(parse_map("prompt=q,system=s") == std::map<std::string, std::string>{{"prompt", "q"}, {"system", "s"}});
    for (const char* bad : {"prompt", "prompt=", "answer=a", "prompt=a,prompt=b", ","})
        message_of(Exit::kUsage, [&] { parse_map(bad); });
    Semantics semantics;
    CHECK(parse_semantics("trl", &semantics));
    CHECK(semantics == Semantics::kTrl);
    CHECK(!parse_semantics("TRL", &semantics));
    CHECK(choose_template("plain", "", "m") == ChatTemplate::kNone);
    CHECK(choose_template("chatml", "", "m") == ChatTemplate::kChatml);
    message_of(Exit::kUsage, [] { choose_template("llama", "", "m"); });
}
