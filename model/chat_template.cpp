#include "model/chat_template.h"

#include "base/error.h"

namespace orpo {
namespace {

constexpr std::string_view kDefaultSystem =
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";

}  // namespace

ChatTemplate recognise_template(std::string_view jinja, const std::string& model_path) {
    if (jinja.empty()) return ChatTemplate::kNone;
    if (jinja.find("named SmolLM, trained by Hugging Face<|im_end|>") != std::string_view::npos)
        return ChatTemplate::kSmolLM2;
    throw Error(Exit::kBadModel, model_path +
                                     ": the chat template is not known; supported: SmolLM2's and ChatML. "
                                     "Pass --template chatml or --template plain");
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
