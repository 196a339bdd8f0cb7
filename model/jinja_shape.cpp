#include "model/jinja_shape.h"

#include <cctype>
#include <vector>

namespace orpo {
namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

struct Token {
    enum Kind { kString, kName, kSign } kind;
    std::string text;
};

// What stands between {{ }} or {% %}. message['role'] becomes the name message.role.
std::optional<std::vector<Token>> lex(std::string_view code) {
    std::vector<Token> tokens;
    for (size_t at = 0; at < code.size();) {
        const char c = code[at];
        if (is_space(c)) {
            ++at;
        } else if (c == '\'' || c == '"') {
            std::string text;
            for (++at; at < code.size() && code[at] != c; ++at) {
                if (code[at] != '\\') {
                    text += code[at];
                    continue;
                }
                if (++at == code.size()) return std::nullopt;
                switch (code[at]) {
                    case 'n':
                        text += '\n';
                        break;
                    case 't':
                        text += '\t';
                        break;
                    case '\\':
                    case '\'':
                    case '"':
                        text += code[at];
                        break;
                    default:
                        return std::nullopt;
                }
            }
            if (at == code.size()) return std::nullopt;
            ++at;
            tokens.push_back({Token::kString, text});
        } else if (is_name(c)) {
            const size_t begin = at;
            while (at < code.size() && is_name(code[at])) ++at;
            tokens.push_back({Token::kName, std::string(code.substr(begin, at - begin))});
        } else {
            const bool two = at + 1 < code.size() && code[at + 1] == '=' && (c == '=' || c == '!');
            tokens.push_back({Token::kSign, std::string(code.substr(at, two ? 2 : 1))});
            at += two ? 2 : 1;
        }
    }

    std::vector<Token> joined;
    const auto sign = [&](size_t i, char c) {
        return i < tokens.size() && tokens[i].kind == Token::kSign && tokens[i].text[0] == c;
    };
    for (size_t i = 0; i < tokens.size(); ++i) {
        const bool after_name = !joined.empty() && joined.back().kind == Token::kName;
        if (after_name && sign(i, '[') && sign(i + 2, ']') && tokens[i + 1].kind == Token::kString) {
            joined.back().text += "." + tokens[i + 1].text;
            i += 2;
        } else if (after_name && sign(i, '[') && sign(i + 2, ']') && tokens[i + 1].kind == Token::kName) {
            joined.back().text += "[" + tokens[i + 1].text + "]";
            i += 2;
        } else if (after_name && sign(i, '.') && i + 1 < tokens.size() && tokens[i + 1].kind == Token::kName) {
            joined.back().text += "." + tokens[i + 1].text;
            i += 1;
        } else {
            joined.push_back(tokens[i]);
        }
    }
    return joined;
}

// {{ 'a' + b ~ 'c' }}: constants as they are, values by their names. Nothing for other expressions, and for constants
// with a brace, which could look like a tag.
std::optional<std::string> output_shape(const std::vector<Token>& tokens) {
    std::string shape;
    if (tokens.size() % 2 == 0) return std::nullopt;
    for (size_t i = 0; i < tokens.size(); ++i) {
        const Token& token = tokens[i];
        if (i % 2 == 1) {
            if (token.kind != Token::kSign || (token.text != "+" && token.text != "~")) return std::nullopt;
        } else if (token.kind == Token::kString && token.text.find('{') == std::string::npos) {
            shape += token.text;
        } else if (token.kind == Token::kName) {
            shape += "{{ " + token.text + " }}";
        } else {
            return std::nullopt;
        }
    }
    return shape;
}

std::string statement_shape(const std::vector<Token>& tokens) {
    std::string words;
    for (const Token& token : tokens)
        words += ' ' + (token.kind == Token::kString ? "'" + token.text + "'" : token.text);
    // Marks for a trainer's masks; they print nothing.
    if (words == " generation" || words == " endgeneration") return "";
    return "{%" + words + " %}";
}

// The end of the tag whose code begins at `at`: the place of "%}" (or "}}", "#}"), strings skipped.
size_t find_close(std::string_view text, size_t at, std::string_view close, bool strings) {
    char quote = 0;
    for (; at + 1 < text.size(); ++at) {
        if (quote != 0) {
            if (text[at] == '\\') {
                ++at;
            } else if (text[at] == quote) {
                quote = 0;
            }
        } else if (text.substr(at, 2) == close) {
            return at;
        } else if (strings && (text[at] == '\'' || text[at] == '"')) {
            quote = text[at];
        }
    }
    return std::string_view::npos;
}

void remove_all(std::string& text, const std::string& part) {
    for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

}  // namespace

std::optional<std::string> jinja_shape(std::string_view jinja) {
    std::string text;
    for (size_t i = 0; i < jinja.size(); ++i) {
        if (jinja[i] != '\r') text += jinja[i];
        if (jinja[i] == '\r' && (i + 1 == jinja.size() || jinja[i + 1] != '\n')) text += '\n';
    }
    if (!text.empty() && text.back() == '\n') text.pop_back();

    std::string shape;
    const std::string_view all = text;
    bool strip_next = false;    // the tag before ended in '-'
    bool line_starting = true;  // the tag before took its line's end with it
    for (size_t at = 0; at < all.size();) {
        // Constant text up to the next tag.
        size_t open = at;
        while (open < all.size() && !(all[open] == '{' && open + 1 < all.size() &&
                                      (all[open + 1] == '{' || all[open + 1] == '%' || all[open + 1] == '#'))) {
            ++open;
        }
        std::string_view constant = all.substr(at, open - at);
        const char kind = open < all.size() ? all[open + 1] : 0;
        const char control = open + 2 < all.size() ? all[open + 2] : 0;
        const bool strip = kind != 0 && control == '-';
        if (strip) {
            while (!constant.empty() && is_space(constant.back())) constant.remove_suffix(1);
        } else if (kind == '%' || kind == '#') {
            // lstrip_blocks: a block that begins its line takes the line's indentation along.
            const size_t line = constant.rfind('\n') + 1;
            const bool blank = constant.find_first_not_of(" \t", line) == std::string_view::npos;
            if (control != '+' && blank && (line > 0 || line_starting)) constant = constant.substr(0, line);
        }
        if (strip_next) {
            while (!constant.empty() && is_space(constant.front())) constant.remove_prefix(1);
        }
        if (constant.find('{') != std::string_view::npos) return std::nullopt;
        shape += constant;
        if (kind == 0) break;

        const char close[] = {kind == '{' ? '}' : kind, '}'};
        const size_t begin = open + 2 + (control == '-' || control == '+');
        size_t end = find_close(all, begin, std::string_view(close, 2), kind != '#');
        if (end == std::string_view::npos) return std::nullopt;
        at = end + 2;
        strip_next = end > begin && all[end - 1] == '-';
        if (end > begin && all[end - 1] == '+') return std::nullopt;
        if (strip_next) --end;
        // trim_blocks: the line's end after a block goes with it.
        line_starting = !strip_next && kind != '{' && at < all.size() && all[at] == '\n';
        if (line_starting) ++at;
        if (kind == '#') continue;
        const auto tokens = lex(all.substr(begin, end - begin));
        if (!tokens) return std::nullopt;
        const auto part = kind == '{' ? output_shape(*tokens) : statement_shape(*tokens);
        if (!part) return std::nullopt;
        shape += *part;
    }
    // A default for an argument that is always passed.
    remove_all(shape,
               "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}");
    return shape;
}

}  // namespace orpo
