#include "kernels/cuda/tuner.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/io.h"

namespace orpo::cuda {

namespace {

constexpr uint64_t kLargestFile = 16 << 20;
constexpr int kRuns = 4;  // the best counts; the first one warms up

}  // namespace

std::string shape_key(const Product& p) {
    std::string key;
    for (const Number number : {p.in, p.out}) key += number == Number::kBf16 ? "bf16 " : "fp32 ";
    key += std::string(p.transpose_a ? "t" : "n") + (p.transpose_b ? "t" : "n");
    for (const int size : {p.M, p.N, p.K}) key += " " + std::to_string(size);
    key += " ld";
    for (const int ld : {p.lda, p.ldb, p.ldc}) key += " " + std::to_string(ld);
    return key + (p.accumulate ? " added" : "");
}

Tuner::Tuner(std::shared_ptr<Device> device, std::string file) : device_(std::move(device)), file_(std::move(file)) {
    if (!io::exists(file_)) return;
    const auto json = nlohmann::json::parse(io::read_file(file_, kLargestFile), nullptr, false);
    const bool sound = json.is_object() && json.contains("products") && json["products"].is_object();
    if (!sound || json.value("by", "") != device_->products_by()) return;
    for (const auto& [key, choice] : json["products"].items())
        if (choice.is_string()) offered_[key] = choice.get<std::string>();
}

void Tuner::multiply(const Product& product, const void* A, const void* B, void* C) {
    const std::string key = shape_key(product);
    const auto run = [&] { device_->multiply(product, A, B, C); };
    if (choices_.count(key)) return run();
    if (const auto kept = offered_.find(key); kept != offered_.end() && device_->choose(product, kept->second)) {
        choices_[key] = kept->second;
        return run();
    }
    std::string best;
    double best_seconds = 0;
    for (const std::string& candidate : device_->candidates(product)) {
        if (!device_->choose(product, candidate)) continue;
        double seconds = device_->seconds(run);
        for (int i = 1; i < kRuns; ++i) seconds = std::min(seconds, device_->seconds(run));
        if (best.empty() || seconds < best_seconds) best = candidate, best_seconds = seconds;
    }
    ORPO_CHECK(!best.empty() && device_->choose(product, best));
    choices_[key] = best;
    added_ = true;
}

void Tuner::save() {
    if (!added_) return;
    nlohmann::ordered_json json = {{"by", device_->products_by()}, {"products", nlohmann::ordered_json::object()}};
    // Those of shapes that this process has not met yet stay.
    std::map<std::string, std::string> all = offered_;
    for (const auto& [key, choice] : choices_) all[key] = choice;
    for (const auto& [key, choice] : all) json["products"][key] = choice;
    io::write_file_atomic(file_, json.dump(1) + "\n");
    added_ = false;
}

}  // namespace orpo::cuda
