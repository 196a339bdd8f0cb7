// Chat templates, rendered natively: the model's Jinja text is recognised, never run.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace orpo {

struct Message {
    std::string role, content;
    bool operator==(const Message&) const = default;
};

enum class ChatTemplate {
    kNone,     // a base model: plain text
    kChatml,   // <|im_start|>role\ncontent<|im_end|>\n
    kSmolLM2,  // ChatML, and a default system turn when the first message is none
};

// By normalised text. "" is kNone; an unknown template is Error(kBadModel) that names the flag --template.
ChatTemplate recognise_template(std::string_view jinja, const std::string& model_path);
std::string_view template_name(ChatTemplate kind);

// How the text ends: as a closed conversation, open for the assistant's next turn, or inside the last message
// (its <|im_end|>\n left off), which is how a prompt that ends in an assistant turn is continued.
enum class Ending { kClosed, kGenerationPrompt, kContinueFinal };

// kNone refuses (ORPO_CHECK): callers decide before.
std::string render_chat(ChatTemplate kind, std::span<const Message> messages, Ending ending);

}  // namespace orpo
