// The shape of a chat template: its Jinja text in the one plainest spelling, so that templates that render the same
// compare equal whatever their white space control, quotes, message['role'] for message.role, ~ for +, one {{ }} or
// several. "{{- '<s>' + message["role"] -}}" becomes "<s>{{ message.role }}". Nothing is evaluated. White space as
// transformers sets it: trim_blocks and lstrip_blocks.
// Source of the lexical rules: https://jinja.palletsprojects.com/en/stable/templates/ (whitespace control, comments).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace orpo {

// Nothing when the text is no Jinja that this reads; such a template is unknown.
std::optional<std::string> jinja_shape(std::string_view jinja);

}  // namespace orpo
