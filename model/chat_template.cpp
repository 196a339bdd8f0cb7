#include "model/chat_template.h"

#include "base/error.h"
#include "model/jinja_shape.h"

namespace orpo {
namespace {

constexpr std::string_view kDefaultSystem =
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";

// Shapes (model/jinja_shape.h).
constexpr std::string_view kChatmlShape =
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
// SmolLM2-Instruct, all sizes.
constexpr std::string_view kSmolLM2Shape =
    "{% for message in messages %}{% if loop.first and messages[0].role != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

}  // namespace

ChatTemplate recognise_template(std::string_view jinja, const std::string& model_path) {
    if (jinja.find_first_not_of(" \t\r\n") == std::string_view::npos) return ChatTemplate::kNone;
    const auto shape = jinja_shape(jinja);
    if (shape == kChatmlShape) return ChatTemplate::kChatml;
    if (shape == kSmolLM2Shape) return ChatTemplate::kSmolLM2;
    throw Error(Exit::kBadModel,
                model_path +
                    ": its chat template is none of the known ones (SmolLM2's, ChatML) and templates are not "
                    "run; pass --template chatml to train it with ChatML turns, or --template plain to take "
                    "the strings as they are");
}

std::string_view template_name(ChatTemplate kind) {
    switch (kind) {
        case ChatTemplate::kNone:
            return "none";
        case ChatTemplate::kChatml:
            return "chatml";
        case ChatTemplate::kSmolLM2:
            return "smollm2";
    }
    ORPO_CHECK(!"a kind of template");
}

std::string render_chat(ChatTemplate kind, std::span<const Message> messages, Ending ending) {
    ORPO_CHECK(kind != ChatTemplate::kNone);
    ORPO_CHECK(ending != Ending::kContinueFinal || !messages.empty());
    std::string text;
    if (kind == ChatTemplate::kSmolLM2 && !messages.empty() && messages[0].role != "system") text += kDefaultSystem;
    for (size_t i = 0; i < messages.size(); ++i) {
        text += "<|im_start|>" + messages[i].role + "\n" + messages[i].content;
        if (ending != Ending::kContinueFinal || i + 1 < messages.size()) text += "<|im_end|>\n";
    }
    if (ending == Ending::kGenerationPrompt) text += "<|im_start|>assistant\n";
    return text;
}

}  // namespace orpo
