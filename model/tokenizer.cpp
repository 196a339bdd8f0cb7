#include "model/tokenizer.h"

#include <array>
#include <unordered_map>

#include "base/error.h"
#include "base/hash.h"
#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/pre_tokenizer.h"
#include "model/tokenizer_definition.h"
#include "model/utf8.h"

namespace orpo {
namespace {

[[noreturn]] void refuse(const TokenizerDefinition& definition, const std::string& what) {
    throw Error(Exit::kBadModel, definition.file + ": " + what);
}

// Bytes that occur in no valid UTF-8; whether they have tokens does not matter.
bool can_occur(int byte) { return byte != 0xC0 && byte != 0xC1 && byte < 0xF5; }

// What each token of the BPE stands for. Characters outside the alphabet stand for themselves, as in the reference.
std::string decoded(const std::string& token) {
    std::string bytes;
    return alphabet_to_bytes(token, &bytes) ? bytes : token;
}

}  // namespace

struct Tokenizer::Impl {
    explicit Impl(TokenizerDefinition from);

    // Appends the added tokens of `text` to ids and calls stretch(std::string_view) for what lies between them.
    template <class Stretch>
    void cut(std::string_view text, SpecialText policy, std::vector<int32_t>& ids, Stretch&& stretch) const;
    void check_id(int32_t id) const;

    TokenizerDefinition definition;
    PreTokenizer pre_tokenizer;
    std::vector<std::string> bytes;  // by id
    std::vector<bool> special;       // by id
    std::unordered_map<std::string, int32_t> special_ids;
    AddedTokens first, second;  // the second are looked for between the first
    std::array<int32_t, 256> byte_tokens{};
    std::unique_ptr<const Bpe> bpe;
};

Tokenizer::Impl::Impl(TokenizerDefinition from)
    : definition(std::move(from)), pre_tokenizer(definition.isolate_digits) {
    const TokenizerDefinition& d = definition;
    std::unordered_map<std::string_view, int32_t> ids;
    for (size_t id = 0; id < d.tokens.size(); ++id) {
        if (d.tokens[id].empty()) refuse(d, "token " + std::to_string(id) + " is empty");
        if (!ids.emplace(d.tokens[id], static_cast<int32_t>(id)).second) {
            refuse(d, "token " + std::to_string(id) + " is the same as token " + std::to_string(ids[d.tokens[id]]));
        }
        bytes.push_back(decoded(d.tokens[id]));
    }

    for (const auto& added : d.added) {
        const std::string name = "added token " + std::to_string(added.id);
        if (added.content.empty()) refuse(d, name + " is empty");
        const auto in_vocabulary = ids.find(added.content);
        const bool next = static_cast<size_t>(added.id) == bytes.size();
        if (in_vocabulary != ids.end() ? in_vocabulary->second != added.id : !next) {
            refuse(d, name + " has another id than the vocabulary gives it");
        }
        if (next) bytes.push_back(decoded(added.content));
        (added.normalized ? second : first).add(added.content, added.id);
    }
    special.resize(bytes.size());
    for (const auto& added : d.added) {
        if (!added.special) continue;
        special[added.id] = true;
        special_ids[added.content] = added.id;
    }
    for (const int32_t id : {d.bos, d.eos, d.pad, d.unk}) {
        if (id < -1 || id >= static_cast<int64_t>(bytes.size())) {
            refuse(d, "a special token has id " + std::to_string(id) + ", the vocabulary ends at " +
                          std::to_string(bytes.size() - 1));
        }
    }

    for (int byte = 0; byte < 256; ++byte) {
        std::string text;
        append_utf8(byte_to_char(static_cast<uint8_t>(byte)), text);
        const auto found = ids.find(text);
        byte_tokens[byte] = found == ids.end() ? -1 : found->second;
    }
    std::vector<Bpe::Merge> merges;
    merges.reserve(d.merges.size());
    for (const auto& [left, right] : d.merges) {
        const auto l = ids.find(left), r = ids.find(right), joined = ids.find(left + right);
        if (l == ids.end() || r == ids.end() || joined == ids.end()) {
            refuse(d, "merge " + std::to_string(merges.size()) + " (\"" + left + " " + right +
                          "\") needs tokens that the vocabulary lacks");
        }
        merges.push_back({l->second, r->second, joined->second});
    }
    // Text becomes a token only by way of the alphabet.
    std::vector<std::string> reachable(d.tokens.size());
    for (size_t id = 0; id < d.tokens.size(); ++id) {
        std::string text;
        if (alphabet_to_bytes(d.tokens[id], &text)) reachable[id] = text;
    }
    bpe = std::make_unique<Bpe>(byte_tokens, merges, reachable, d.ignore_merges);
}

void Tokenizer::Impl::check_id(int32_t id) const {
    if (id < 0 || id >= static_cast<int64_t>(bytes.size())) {
        throw Error(Exit::kBadData, "token id " + std::to_string(id) + " is outside the vocabulary (0 to " +
                                        std::to_string(bytes.size() - 1) + ")");
    }
}

template <class Stretch>
void Tokenizer::Impl::cut(std::string_view text, SpecialText policy, std::vector<int32_t>& ids,
                          Stretch&& stretch) const {
    const auto cut_at = [&](const AddedTokens& tokens, std::string_view part, auto&& between) {
        size_t done = 0, from = 0;
        AddedTokens::Match match;
        while (tokens.find(part, from, &match)) {
            from = match.at + match.length;
            if (special[match.id] && policy == SpecialText::kLiteral) continue;
            if (special[match.id] && policy == SpecialText::kError) {
                const size_t offset = static_cast<size_t>(part.data() - text.data()) + match.at;
                throw Error(Exit::kBadData, "the text holds the special token " + bytes[match.id] + " at byte " +
                                                std::to_string(offset) +
                                                "; take it out, or pass --special parse or --special literal");
            }
            between(part.substr(done, match.at - done));
            ids.push_back(match.id);
            done = from;
        }
        between(part.substr(done));
    };
    cut_at(first, text, [&](std::string_view part) {
        if (second.empty()) return stretch(part);
        cut_at(second, part, stretch);
    });
}

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer Tokenizer::build(TokenizerDefinition definition) {
    return Tokenizer(std::make_shared<const Impl>(std::move(definition)));
}

Tokenizer Tokenizer::load(const TokenizerSource& source) {
    if (source.gguf == nullptr) return build(definition_from_directory(source.directory));
    const std::string& file = source.gguf->file;
    return build(definition_from_gguf(*source.gguf, file.empty() ? "the tokenizer in the GGUF file" : file));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialText special, int64_t* dropped) const {
    if (const size_t at = find_invalid_utf8(text); at != std::string_view::npos) {
        throw Error(Exit::kBadData, "the text is no valid UTF-8 at byte " + std::to_string(at) +
                                        "; convert it to UTF-8 first (iconv -t UTF-8)");
    }
    if (text.size() >= (1ull << 31)) throw Error(Exit::kBadData, "the text is 2 GiB or longer; cut it into parts");
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 4 + 8);
    int64_t lost = 0;
    impl_->cut(text, special, ids, [&](std::string_view stretch) {
        impl_->pre_tokenizer.split(stretch, [&](std::string_view piece) { impl_->bpe->encode(piece, ids, lost); });
    });
    if (dropped != nullptr) *dropped = lost;
    return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
    std::string bytes;
    for (const int32_t id : ids) {
        impl_->check_id(id);
        if (!skip_special || !impl_->special[id]) bytes += impl_->bytes[id];
    }
    return repair_utf8(bytes);
}

std::string Tokenizer::token_bytes(int32_t id) const {
    impl_->check_id(id);
    return impl_->bytes[id];
}

bool Tokenizer::is_special(int32_t id) const { return id >= 0 && id < vocabulary() && impl_->special[id]; }

int32_t Tokenizer::find(std::string_view special_token) const {
    const auto found = impl_->special_ids.find(std::string(special_token));
    return found == impl_->special_ids.end() ? -1 : found->second;
}

int64_t Tokenizer::count_special(std::string_view text) const {
    std::vector<int32_t> ids;
    impl_->cut(text, SpecialText::kParse, ids, [](std::string_view) {});
    int64_t count = 0;
    for (const int32_t id : ids) count += impl_->special[id];
    return count;
}

int Tokenizer::vocabulary() const { return static_cast<int>(impl_->bytes.size()); }
int Tokenizer::bos() const { return impl_->definition.bos; }
int Tokenizer::eos() const { return impl_->definition.eos; }
int Tokenizer::pad() const { return impl_->definition.pad; }

std::string Tokenizer::fingerprint() const {
    const TokenizerDefinition& d = impl_->definition;
    Sha256 hash;
    // Lengths first, so that no two lists give the same stream.
    const auto add = [&](std::string_view text) {
        hash.update(std::to_string(text.size()) + ":");
        hash.update(text);
    };
    add(d.isolate_digits ? "digits" : "gpt2");
    add(d.ignore_merges ? "whole" : "merges");
    add(std::to_string(d.tokens.size()));
    for (const auto& token : d.tokens) add(token);
    for (const auto& [left, right] : d.merges) add(left), add(right);
    for (const auto& added : d.added) add(std::to_string(added.id)), add(added.content), add(added.special ? "s" : "a");
    return hash.hex();
}

std::string Tokenizer::unicode_version() { return "letters 16.0, numbers 17.0"; }

std::string Tokenizer::tokenizer_json() const { return orpo::tokenizer_json(impl_->definition); }

std::string Tokenizer::tokenizer_config_json(std::string_view chat_template, int max_positions) const {
    return orpo::tokenizer_config_json(impl_->definition, chat_template, max_positions);
}

std::string Tokenizer::bytes_without_token() const {
    constexpr char kDigits[] = "0123456789ABCDEF";
    std::string list;
    for (int byte = 0; byte < 256; ++byte) {
        if (!can_occur(byte) || impl_->byte_tokens[byte] >= 0) continue;
        list += (list.empty() ? "0x" : " 0x") + std::string{kDigits[byte / 16], kDigits[byte % 16]};
    }
    return list;
}

}  // namespace orpo
