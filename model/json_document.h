// A JSON object from a file that nobody vouches for: strict parsing (UTF-8, numbers, depth), repeated keys refused, and
// typed lookups whose errors name the file, the field and what was found. Every error is an Error(kBadModel).
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace orpo {

// An object inside a JsonDocument, valid as long as the document lives. A field that is null counts as absent.
class JsonObject {
  public:
    JsonObject(simdjson::dom::object object, std::string file, std::string path)
        : object_(object), file_(std::move(file)), path_(std::move(path)) {}

    bool has(std::string_view key) const { return find(key).has_value(); }
    std::optional<simdjson::dom::element> find(std::string_view key) const;
    std::optional<int64_t> integer(std::string_view key) const;
    std::optional<double> number(std::string_view key) const;
    std::optional<bool> boolean(std::string_view key) const;
    std::optional<std::string> text(std::string_view key) const;
    std::optional<JsonObject> object(std::string_view key) const;
    std::optional<std::vector<std::string>> texts(std::string_view key) const;  // an array of strings

    const simdjson::dom::object& fields() const { return object_; }
    const std::string& file() const { return file_; }
    std::string place(std::string_view key) const;  // "config.json: 'rope_parameters.rope_theta'"
    [[noreturn]] void wrong(std::string_view key, const simdjson::dom::element& found, const char* wanted) const;

  private:
    simdjson::dom::object object_;
    std::string file_, path_;
};

class JsonDocument {
  public:
    JsonDocument(std::string_view json, std::string file);
    JsonDocument(const JsonDocument&) = delete;
    JsonDocument& operator=(const JsonDocument&) = delete;
    const JsonObject& root() const { return *root_; }

  private:
    simdjson::dom::parser parser_;
    std::optional<JsonObject> root_;
};

// The value as short JSON text for a message.
std::string json_excerpt(const simdjson::dom::element& element);

}  // namespace orpo
