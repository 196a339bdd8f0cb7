#include "model/chat_template.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/io.h"
#include "model/jinja_shape.h"

using namespace orpo;

namespace {

// Written by tools/make_chat_goldens.py, which rendered all of it with jinja2.
nlohmann::json golden() {
    const char* folder = std::getenv("ORPO_TEST_DATA");
    const std::string path = std::string(folder != nullptr ? folder : "tests") + "/golden/chat_template.json";
    return nlohmann::json::parse(io::read_file(path, 1 << 20));
}

std::vector<Message> messages_of(const nlohmann::json& list) {
    std::vector<Message> messages;
    for (const auto& message : list) messages.push_back({message["role"], message["content"]});
    return messages;
}

}  // namespace

TEST_CASE("every spelling of the known templates is recognised, and nothing else") {
    const auto data = golden();
    for (const auto& [name, templates] : data["same"].items()) {
        CHECK(templates.size() >= 7);
        for (const std::string jinja : templates) {
            CAPTURE(jinja);
            CHECK(template_name(recognise_template(jinja, "model")) == name);
        }
    }
    CHECK(data["other"].size() > 20);
    for (const std::string jinja : data["other"]) {
        CAPTURE(jinja);
        try {
            recognise_template(jinja, "some/model");
            FAIL("recognised");
        } catch (const Error& error) {
            CHECK(error.exit() == Exit::kBadModel);
            CHECK(std::string(error.what()).find("some/model") == 0);
            CHECK(std::string(error.what()).find("--template") != std::string::npos);
        }
    }
    CHECK(recognise_template("", "model") == ChatTemplate::kNone);
    CHECK(recognise_template(" \n", "model") == ChatTemplate::kNone);
}

TEST_CASE("thirty conversations render as jinja2 renders them") {
    const auto data = golden();
    CHECK(data["conversations"].size() == 30);
    for (const auto& entry : data["conversations"]) {
        CAPTURE(entry["messages"].dump());
        const auto messages = messages_of(entry["messages"]);
        for (const auto& [name, kind] :
             {std::pair{"chatml", ChatTemplate::kChatml}, std::pair{"smollm2", ChatTemplate::kSmolLM2}}) {
            CHECK(render_chat(kind, messages, Ending::kClosed) == entry[name][0].get<std::string>());
            CHECK(render_chat(kind, messages, Ending::kGenerationPrompt) == entry[name][1].get<std::string>());
            if (messages.empty()) continue;
            // The closed text without the last turn's end.
            CHECK(render_chat(kind, messages, Ending::kContinueFinal) + "<|im_end|>\n" ==
                  entry[name][0].get<std::string>());
        }
    }
}

TEST_CASE("a shape is the plainest spelling") {
    CHECK(jinja_shape("{{- '<s>' + message[\"role\"] -}}") == "<s>{{ message.role }}");
    CHECK(jinja_shape("{% if x %}\n  a\n  {% endif %}\n") == "{% if x %}  a\n{% endif %}");
    CHECK(jinja_shape("a {#- note -#} b") == "ab");
    CHECK(jinja_shape("a\r\nb") == "a\nb");
    // What could be taken for a tag, and what is not read.
    for (const char* jinja : {"{{ '{% if x %}' }}", "{{ '{' }}% if x %}", "{{ a | trim }}", "{{ a + }}", "{{ }}",
                              "{% x +%}", "{{ 'a", "{%", "{{ '\\x41' }}", "{{ '\\"}) {
        CAPTURE(jinja);
        CHECK_FALSE(jinja_shape(jinja).has_value());
    }
}

TEST_CASE("misuse is a bug, not a text") {
    CHECK_THROWS_AS(render_chat(ChatTemplate::kNone, {}, Ending::kClosed), InternalError);
    CHECK_THROWS_AS(render_chat(ChatTemplate::kChatml, {}, Ending::kContinueFinal), InternalError);
}
