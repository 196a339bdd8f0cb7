#include "model/json_document.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace orpo {

using simdjson::dom::element;
using simdjson::dom::element_type;

namespace {

// A reader that keeps the first of two equal keys and one that keeps the last would see two different files.
void refuse_repeated_keys(const element& value, const std::string& file) {
    if (value.is_array()) {
        for (const element item : simdjson::dom::array(value)) refuse_repeated_keys(item, file);
    } else if (value.is_object()) {
        std::vector<std::string_view> keys;
        for (const auto field : simdjson::dom::object(value)) {
            keys.push_back(field.key);
            refuse_repeated_keys(field.value, file);
        }
        std::sort(keys.begin(), keys.end());
        const auto twice = std::adjacent_find(keys.begin(), keys.end());
        if (twice != keys.end()) {
            throw Error(Exit::kBadModel,
                        fmt::format("{}: the key '{}' stands twice in one object; keep one of the two", file, *twice));
        }
    }
}

}  // namespace

std::string json_excerpt(const element& value) {
    // Not simdjson's own printing, which walks the whole value.
    switch (value.type()) {
        case element_type::ARRAY:
            return "a list";
        case element_type::OBJECT:
            return "an object";
        case element_type::STRING: {
            const std::string_view text = value.get_string().value_unsafe();
            if (text.size() <= 60) return fmt::format("\"{}\"", text);
            return fmt::format("\"{}...\"", text.substr(0, 60));
        }
        case element_type::NULL_VALUE:
            return "null";
        default:
            return simdjson::minify(value);
    }
}

std::string JsonObject::place(std::string_view key) const { return fmt::format("{}: '{}{}'", file_, path_, key); }

void JsonObject::wrong(std::string_view key, const element& found, const char* wanted) const {
    throw Error(Exit::kBadModel, fmt::format("{} must be {}, but is {}", place(key), wanted, json_excerpt(found)));
}

std::optional<element> JsonObject::find(std::string_view key) const {
    element value;
    if (object_.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
    return value;
}

std::optional<int64_t> JsonObject::integer(std::string_view key) const {
    const auto value = find(key);
    if (!value) return std::nullopt;
    int64_t number = 0;
    if (value->get(number) != simdjson::SUCCESS) wrong(key, *value, "a whole number");
    return number;
}

std::optional<double> JsonObject::number(std::string_view key) const {
    const auto value = find(key);
    if (!value) return std::nullopt;
    double number = 0;
    if (!value->is_number() || value->get(number) != simdjson::SUCCESS) wrong(key, *value, "a number");
    return number;
}

std::optional<bool> JsonObject::boolean(std::string_view key) const {
    const auto value = find(key);
    if (!value) return std::nullopt;
    bool flag = false;
    if (value->get(flag) != simdjson::SUCCESS) wrong(key, *value, "true or false");
    return flag;
}

std::optional<std::string> JsonObject::text(std::string_view key) const {
    const auto value = find(key);
    if (!value) return std::nullopt;
    std::string_view text;
    if (value->get(text) != simdjson::SUCCESS) wrong(key, *value, "a string");
    return std::string(text);
}

std::optional<JsonObject> JsonObject::object(std::string_view key) const {
    const auto value = find(key);
    if (!value) return std::nullopt;
    simdjson::dom::object object;
    if (value->get(object) != simdjson::SUCCESS) wrong(key, *value, "an object");
    return JsonObject(object, file_, fmt::format("{}{}.", path_, key));
}

std::optional<std::vector<std::string>> JsonObject::texts(std::string_view key) const {
    const auto value = find(key);
    if (!value) return std::nullopt;
    simdjson::dom::array array;
    if (value->get(array) != simdjson::SUCCESS) wrong(key, *value, "a list of strings");
    std::vector<std::string> texts;
    for (const element item : array) {
        std::string_view text;
        if (item.get(text) != simdjson::SUCCESS) wrong(key, item, "a list of strings");
        texts.emplace_back(text);
    }
    return texts;
}

JsonDocument::JsonDocument(std::string_view json, std::string file) {
    element value;
    const auto error = parser_.parse(json.data(), json.size(), true).get(value);
    if (error != simdjson::SUCCESS) {
        throw Error(Exit::kBadModel, fmt::format("{}: not valid JSON ({}); get the file again", file,
                                                 json.empty() ? "the file is empty" : simdjson::error_message(error)));
    }
    if (!value.is_object()) {
        throw Error(Exit::kBadModel,
                    fmt::format("{}: must hold one JSON object, but holds {}", file, json_excerpt(value)));
    }
    refuse_repeated_keys(value, file);
    root_.emplace(simdjson::dom::object(value), std::move(file), "");
}

}  // namespace orpo
