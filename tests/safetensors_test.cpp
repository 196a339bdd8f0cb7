#include "model/safetensors.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/io.h"
#include "model/dequant.h"
#include "tests/expect_error.h"
#include "tests/temp_dir.h"

using namespace orpo;

namespace {

std::string file_bytes(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return bytes + header + data;
}

SafetensorsFile parse(const std::string& bytes) { return SafetensorsFile(io::memory_reader(bytes, "m.safetensors")); }

void refused(const std::vector<std::string>& words, const std::string& bytes) {
    std::vector<std::string> all = words;
    all.push_back("m.safetensors");
    expect_error(Exit::kBadModel, all, [&] { parse(bytes); });
}

std::string entry(const std::string& shape, const std::string& offsets, const std::string& dtype = "F32") {
    return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

}  // namespace

TEST_CASE("a sound file") {
    const std::string bytes =
        file_bytes(R"({"b":)" + entry("[2,3]", "[4,28]") + R"(,"a":)" + entry("[2]", "[0,4]", "BF16") + R"(,"none":)" +
                       entry("[0,7]", "[28,28]") + R"(,"one":)" + entry("[]", "[28,32]") +
                       R"(,"__metadata__":{"format":"pt"}}   )",
                   std::string("\x80\x3f\x00\xc0", 4) + std::string(28, '\0'));
    const SafetensorsFile file = parse(bytes);
    REQUIRE(file.entries().size() == 4);
    CHECK(file.entries()[0].name == "a");  // by offset
    CHECK(file.metadata().at("format") == "pt");
    CHECK(file.find("b")->shape == std::vector<int64_t>{2, 3});
    CHECK(file.find("none")->elements() == 0);
    CHECK(file.find("one")->elements() == 1);
    CHECK(file.find("c") == nullptr);
    float values[3] = {7, 7, 7};
    file.read(*file.find("a"), values);
    CHECK(values[0] == 1);
    CHECK(values[1] == -2);
    CHECK(values[2] == 7);
    float second = 7;
    file.read(*file.find("a"), 1, 1, &second);
    CHECK(second == -2);
}

TEST_CASE("damaged files are refused") {
    const std::string good = R"({"a":)" + entry("[2]", "[0,8]") + "}", data(8, '\0');
    CHECK_NOTHROW(parse(file_bytes(good, data)));

    refused({"0 bytes"}, "");
    refused({"7 bytes"}, "1234567");
    refused({"header"}, file_bytes("", ""));
    refused({"header of 1000000000"}, [&] {
        std::string bytes = file_bytes(good, data);
        const uint64_t length = 1'000'000'000;
        std::memcpy(bytes.data(), &length, 8);
        return bytes;
    }());
    refused({"header of 18446744073709551615"}, std::string(8, '\xff') + good + data);
    refused({"no JSON object"}, file_bytes("[1]", ""));
    refused({"no JSON object"}, file_bytes(" " + good, data));
    refused({"JSON"}, file_bytes(good.substr(0, good.size() - 1), data));
    refused({"JSON"}, file_bytes("{\"\xff\":1}", ""));
    refused({"JSON"}, file_bytes(good + "x", data));
    refused({"'a' must be an object"}, file_bytes(R"({"a":5})", ""));
    refused({"'a' is null"}, file_bytes(R"({"a":null})", ""));
    refused({"__metadata__"}, file_bytes(R"({"__metadata__":{"n":5}})", ""));
    refused({"__metadata__"}, file_bytes(R"({"__metadata__":7})", ""));

    const auto one = [&](const std::string& e, size_t n = 8) {
        return file_bytes(R"({"a":)" + e + "}", std::string(n, '\0'));
    };
    refused({"'a'", "F64", "BF16"}, one(entry("[1]", "[0,8]", "F64")));
    refused({"'a'", "I64"}, one(entry("[1]", "[0,8]", "I64")));
    refused({"'a'", "unknown field 'more'"}, one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1})"));
    refused({"'a'", "unnamed type"}, one(R"({"shape":[2],"data_offsets":[0,8]})"));
    refused({"'a'", "'shape'"}, one(R"({"dtype":"F32","data_offsets":[0,8]})"));
    refused({"'a'", "'data_offsets'"}, one(R"({"dtype":"F32","shape":[2]})"));
    refused({"'shape'", "-2"}, one(entry("[-2]", "[0,8]")));
    refused({"'shape'", "2.0"}, one(entry("[2.0]", "[0,8]")));
    refused({"two 'data_offsets'"}, one(entry("[2]", "[0,8,8]")));
    refused({"shape takes 12"}, one(entry("[3]", "[0,8]")));
    refused({"8 to 0"}, one(entry("[2]", "[8,0]")));
    refused({"cannot be"}, one(entry("[4611686018427387904,4]", "[0,0]")));  // overflows to 0
    refused({"cannot be"}, one(entry("[9223372036854775808]", "[0,8]")));
    refused({"9 dimensions"}, one(entry("[1,1,1,1,1,1,1,1,2]", "[0,8]")));

    const auto two = [&](const std::string& a, const std::string& b, size_t n) {
        return file_bytes(R"({"a":)" + entry("[1]", a) + R"(,"b":)" + entry("[1]", b) + "}", std::string(n, '\0'));
    };
    CHECK_NOTHROW(parse(two("[4,8]", "[0,4]", 8)));
    refused({"'b' begins at byte 0"}, two("[0,4]", "[0,4]", 8));    // overlap
    refused({"'b' begins at byte 2"}, two("[0,4]", "[2,6]", 8));    // overlap in part
    refused({"'b' begins at byte 8"}, two("[0,4]", "[8,12]", 12));  // hole
    refused({"'a' begins at byte 4"}, two("[4,8]", "[8,12]", 12));  // hole at the start
    refused({"truncated"}, two("[0,4]", "[4,8]", 7));
    refused({"1 bytes follow"}, two("[0,4]", "[4,8]", 9));
    refused({"'a' stands twice"},
            file_bytes(R"({"a":)" + entry("[1]", "[0,4]") + R"(,"a":)" + entry("[1]", "[4,8]") + "}", data));
    refused({"'dtype' stands twice"}, one(R"({"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]})"));

    const std::string whole = file_bytes(good, data);
    for (size_t n = 0; n < whole.size(); ++n) refused({}, whole.substr(0, n));
}

TEST_CASE("what is written comes back, rounded to the stored type, and the same bytes every time") {
    TempDir dir;
    const std::vector<float> a = {1, -2.5f, 3e-8f, 65504}, b = {0.1f, 1e30f};
    const std::vector<SafetensorsTensor> tensors = {{"x.half", DType::kF16, {2, 2}, a.data()},
                                                    {"y", DType::kF32, {2}, b.data()},
                                                    {"a.bf16", DType::kBF16, {2}, b.data()},
                                                    {"empty", DType::kF32, {0, 3}, b.data()}};
    write_safetensors(dir / "m.safetensors", tensors, {{"who", "\"orpo\" \xc3\xa9"}});
    const std::string bytes = io::read_file(dir / "m.safetensors", 1 << 20);
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    CHECK(header % 8 == 0);

    const SafetensorsFile file = SafetensorsFile::open(dir / "m.safetensors");
    CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"who", "\"orpo\" \xc3\xa9"}});
    std::vector<std::string> names;
    for (const auto& e : file.entries()) names.push_back(e.name);
    CHECK(names == std::vector<std::string>{"empty", "y", "a.bf16", "x.half"});  // wide types first, then by name
    float values[4];
    file.read(*file.find("y"), values);
    CHECK(values[0] == 0.1f);
    CHECK(values[1] == 1e30f);
    file.read(*file.find("a.bf16"), values);
    CHECK(values[0] == bf16_to_float(float_to_bf16(0.1f)));
    file.read(*file.find("x.half"), values);
    CHECK(values[0] == 1);
    CHECK(values[1] == -2.5f);
    CHECK(values[2] == half_to_float(float_to_half(3e-8f)));
    CHECK(values[3] == 65504);

    write_safetensors(dir / "again.safetensors", {tensors[2], tensors[3], tensors[0], tensors[1]},
                      {{"who", "\"orpo\" \xc3\xa9"}});
    CHECK(io::read_file(dir / "again.safetensors", 1 << 20) == bytes);
}

TEST_CASE("a file that is not written to its end does not appear") {
    TempDir dir;
    const std::vector<float> values(4, 1.0f);
    {
        SafetensorsWriter writer(dir / "m.safetensors", {{"a", DType::kF32, {8}, nullptr}}, {});
        writer.write(values.data(), 4);
        CHECK_THROWS_AS(writer.commit(), InternalError);
    }
    CHECK(io::list_dir(dir.path()).empty());
    SafetensorsWriter writer(dir / "m.safetensors",
                             {{"a", DType::kF32, {2}, nullptr}, {"b", DType::kBF16, {2}, nullptr}}, {});
    writer.write(values.data(), 3);  // across the border of two tensors
    writer.write(values.data(), 1);
    CHECK_THROWS_AS(writer.write(values.data(), 1), InternalError);
    writer.commit();
    CHECK(SafetensorsFile::open(dir / "m.safetensors").entries().size() == 2);
}

TEST_CASE("the index of shards") {
    const auto map = parse_safetensors_index(
        R"({"metadata":{"total_size":8},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})", "i.json");
    CHECK(map.at("a") == "1.safetensors");
    CHECK(map.at("b") == "2.safetensors");
    const auto bad = [](const std::vector<std::string>& words, const std::string& json) {
        expect_error(Exit::kBadModel, words, [&] { parse_safetensors_index(json, "i.json"); });
    };
    bad({"i.json", "weight_map", "missing"}, "{}");
    bad({"i.json", "empty"}, "");
    bad({"i.json", "weight_map"}, R"({"weight_map":[]})");
    bad({"weight_map.a", "a string"}, R"({"weight_map":{"a":7}})");
    for (const char* name : {"", ".", "..", "/etc/passwd", "../m.safetensors", "a/b", "a\\\\b"})
        bad({"weight_map.a", "beside the index"}, R"({"weight_map":{"a":")" + std::string(name) + "\"}}");
}
