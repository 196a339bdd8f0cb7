#include "data/row.h"

#include <simdjson.h>

#include <map>

#include "data/json_fault.h"

namespace orpo {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

const char* type_name(element value) {
    switch (value.type()) {
        case element_type::ARRAY:
            return "a list";
        case element_type::OBJECT:
            return "an object";
        case element_type::STRING:
            return "a string";
        case element_type::BOOL:
            return "a boolean";
        case element_type::NULL_VALUE:
            return "null";
        default:
            return "a number";
    }
}

std::string text_of(element value) { return std::string(std::string_view(value.get_string().value_unsafe())); }

// An object's members by name. A key given twice is refused: readers disagree about which one counts.
class Members {
  public:
    Members(simdjson::dom::object object, const std::string& where) {
        for (const auto member : object) {
            if (!values_.emplace(member.key, member.value).second)
                throw RowFault(where,
                               "the key \"" + std::string(member.key.substr(0, 100)) + "\" is given twice; keep one");
        }
    }
    // Null when it is missing or JSON null.
    const element* find(std::string_view name) const {
        const auto found = values_.find(name);
        return found == values_.end() || found->second.is_null() ? nullptr : &found->second;
    }
    const std::map<std::string_view, element>& all() const { return values_; }

  private:
    std::map<std::string_view, element> values_;
};

std::string role_of(const std::string& role, const std::string& where) {
    if (role == "human") return "user";
    if (role == "gpt") return "assistant";
    if (role == "system" || role == "user" || role == "assistant" || role == "tool") return role;
    throw RowFault(where, "the role \"" + role.substr(0, 40) + "\" is none of system, user, assistant, tool");
}

Message parse_message(element value, const std::string& where) {
    simdjson::dom::object object;
    if (value.get_object().get(object))
        throw RowFault(
            where, std::string("a message must be an object with role and content, but this is ") + type_name(value));
    const Members members(object, where);
    const element* role = members.find("role");
    const bool sharegpt = role == nullptr && members.find("from") != nullptr;
    if (sharegpt) role = members.find("from");
    const std::string role_name = sharegpt ? "from" : "role", content_name = sharegpt ? "value" : "content";
    if (role == nullptr) throw RowFault(where + ".role", "missing; a message has a role and a content");
    if (!role->is_string())
        throw RowFault(where + "." + role_name, std::string("must be a string, but is ") + type_name(*role));
    if (const element* calls = members.find("tool_calls"); calls != nullptr) {
        simdjson::dom::array list;
        if (calls->get_array().get(list) || list.size() > 0)
            throw RowFault(where + ".tool_calls",
                           "tool calls are not supported; write them into content or leave the row out");
    }
    const element* content = members.find(content_name);
    if (content == nullptr) throw RowFault(where + "." + content_name, "missing or null; it must be a string");
    if (!content->is_string())
        throw RowFault(where + "." + content_name, std::string("must be a string, but is ") + type_name(*content));
    return {role_of(text_of(*role), where + "." + role_name), text_of(*content)};
}

std::vector<Message> parse_messages(element value, const std::string& where) {
    simdjson::dom::array list;
    if (value.get_array().get(list))
        throw RowFault(where, std::string("must be a list of messages, but is ") + type_name(value));
    std::vector<Message> messages;
    for (const element item : list)
        messages.push_back(parse_message(item, where + "[" + std::to_string(messages.size()) + "]"));
    if (messages.empty()) throw RowFault(where, "an empty list of messages");
    return messages;
}

// A string, a list of messages, or one message.
Field parse_field(element value, const std::string& where) {
    Field field;
    if (value.is_string()) {
        field.kind = Field::Kind::kText;
        field.text = text_of(value);
    } else if (value.is_array()) {
        field.kind = Field::Kind::kMessages;
        field.messages = parse_messages(value, where);
    } else if (value.is_object()) {
        field.kind = Field::Kind::kMessages;
        field.messages.push_back(parse_message(value, where));
    } else {
        throw RowFault(where, std::string("must be a string or a list of messages, but is ") + type_name(value));
    }
    return field;
}

// Hands out columns and remembers which ones were asked for.
class Columns {
  public:
    Columns(const Members& members, const RowShape& shape) : members_(members), shape_(shape) {}
    std::string name(const std::string& field) const {
        const auto mapped = shape_.columns.find(field);
        return mapped == shape_.columns.end() ? field : mapped->second;
    }
    bool mapped(const std::string& field) const { return shape_.columns.count(field) > 0; }
    const element* find(const std::string& column) {
        used_.insert(column);
        return members_.find(column);
    }
    std::string text(const std::string& column) {
        const element* value = find(column);
        if (value == nullptr) return "";
        if (!value->is_string()) throw RowFault(column, std::string("must be a string, but is ") + type_name(*value));
        return text_of(*value);
    }
    Field field(const std::string& field_name) {
        const std::string column = name(field_name);
        const element* value = find(column);
        return value == nullptr ? Field{} : parse_field(*value, column);
    }
    bool has(std::string_view column) const { return members_.find(column) != nullptr; }
    void collect_ignored(std::set<std::string>& ignored) const {
        for (const auto& [key, value] : members_.all())
            if (used_.count(std::string(key)) == 0 && ignored.size() < 100) ignored.insert(std::string(key));
    }

  private:
    const Members& members_;
    const RowShape& shape_;
    std::set<std::string> used_;
};

// {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
Row parse_openai(Columns& columns) {
    Row row;
    simdjson::dom::object input;
    if (columns.find("input")->get_object().get(input))
        throw RowFault("input", "must be an object that holds messages");
    const Members inside(input, "input");
    const element* messages = inside.find("messages");
    if (messages == nullptr) throw RowFault("input.messages", "missing");
    row.prompt.kind = Field::Kind::kMessages;
    row.prompt.messages = parse_messages(*messages, "input.messages");
    row.chosen = parse_field(*columns.find("preferred_output"), "preferred_output");
    row.rejected = parse_field(*columns.find("non_preferred_output"), "non_preferred_output");
    return row;
}

// {"instruction", "input", "system", "history": [[question, answer], ...]}: the prompt of LLaMA-Factory's alpaca form.
void alpaca_prompt(Columns& columns, Row& row) {
    std::string text = columns.text("instruction");
    const std::string input = columns.text("input");
    if (!input.empty()) text += (text.empty() ? "" : "\n") + input;
    const element* history = columns.find("history");
    simdjson::dom::array turns;
    if (history == nullptr || (!history->get_array().get(turns) && turns.size() == 0)) {
        row.prompt.kind = Field::Kind::kText;
        row.prompt.text = text;
        return;
    }
    row.prompt.kind = Field::Kind::kMessages;
    if (!row.system.empty()) row.prompt.messages.push_back({"system", row.system});
    row.system.clear();
    if (history->get_array().get(turns)) throw RowFault("history", "must be a list of [question, answer] pairs");
    for (const element turn : turns) {
        simdjson::dom::array pair;
        std::string_view question, answer;
        if (turn.get_array().get(pair) || pair.size() != 2 || pair.at(0).get_string().get(question) ||
            pair.at(1).get_string().get(answer))
            throw RowFault("history", "must be a list of [question, answer] pairs of strings");
        row.prompt.messages.push_back({"user", std::string(question)});
        row.prompt.messages.push_back({"assistant", std::string(answer)});
    }
    row.prompt.messages.push_back({"user", text});
}

void require_answer(const Field& field, const std::string& column) {
    if (field.kind == Field::Kind::kNone)
        throw RowFault(column, "missing or null; a row needs chosen and rejected (other column names: --map " +
                                   std::string("chosen=good,rejected=bad)"));
}

Row parse_object(const Members& members, const RowShape& shape, std::set<std::string>& ignored) {
    Columns columns(members, shape);
    Row row;
    const bool other_shapes = shape.columns.empty() && !shape.only_trl && !shape.only_paper;
    if (other_shapes && columns.has("preferred_output") && columns.has("non_preferred_output") &&
        columns.has("input")) {
        row = parse_openai(columns);
        columns.collect_ignored(ignored);
        return row;
    }
    row.chosen = columns.field("chosen");
    row.rejected = columns.field("rejected");
    require_answer(row.chosen, columns.name("chosen"));
    require_answer(row.rejected, columns.name("rejected"));
    row.prompt = columns.field("prompt");
    if (columns.mapped("prompt") && row.prompt.kind == Field::Kind::kNone)
        throw RowFault(columns.name("prompt"), "missing or null, though --map names it as the prompt");
    const bool text_answers = row.chosen.kind == Field::Kind::kText;
    if ((!shape.only_trl && !shape.only_paper) || columns.mapped("system"))
        row.system = columns.text(columns.name("system"));
    for (const char* column : {"question", "instruction"})
        if (shape.only_paper && shape.columns.empty() && text_answers && columns.has(column)) {
            row.prompt.kind = Field::Kind::kText;
            row.prompt.text = columns.text(column);
        }
    if (other_shapes && row.prompt.kind == Field::Kind::kNone) {
        if (columns.has("conversations")) {
            row.prompt.kind = Field::Kind::kMessages;
            row.prompt.messages = parse_messages(*columns.find("conversations"), "conversations");
        } else if (text_answers && columns.has("instruction")) {
            alpaca_prompt(columns, row);
        } else if (text_answers && columns.has("question")) {
            row.prompt.kind = Field::Kind::kText;
            row.prompt.text = columns.text("question");
        }
    }
    if (row.chosen.kind != row.rejected.kind)
        throw RowFault(columns.name("rejected"),
                       "chosen and rejected must be of one kind: two strings or two lists of messages");
    columns.collect_ignored(ignored);
    return row;
}

}  // namespace

Row parse_row(std::string_view text, const RowShape& shape, simdjson::dom::parser& parser,
              std::set<std::string>& ignored) {
    if (text.empty()) throw RowFault("", "an element is missing between the commas", 0);
    element root;
    const simdjson::error_code error = parser.parse(text.data(), text.size(), false).get(root);
    if (error == simdjson::MEMALLOC || error == simdjson::CAPACITY)
        throw RowFault("", "the row is too long to be read (" + std::to_string(text.size()) + " bytes)", 0);
    if (error) {
        const JsonFault fault = find_json_fault(text, simdjson::error_message(error));
        throw RowFault("", "invalid JSON: " + fault.why, fault.offset);
    }
    simdjson::dom::object object;
    if (root.get_object().get(object))
        throw RowFault(
            "", std::string("a row must be a JSON object with chosen and rejected, but this is ") + type_name(root));
    return parse_object(Members(object, ""), shape, ignored);
}

}  // namespace orpo
