// The directory of a run: its name, who may write into it, and where its files are.
#pragma once

#include <string>

namespace orpo {

class RunDirectory {
  public:
    // A new directory at `path`; one that exists and holds anything is refused with Error(kUsage).
    static RunDirectory create(const std::string& path);
    // runs/<date>-<data>-<model>, with -2, -3, ... where that is taken. data: path of the file; model: display name.
    static RunDirectory create_default(const std::string& parent, const std::string& date, const std::string& data,
                                       const std::string& model);
    // A directory that exists, to resume in.
    static RunDirectory open(const std::string& path);

    RunDirectory(RunDirectory&& other) noexcept : path_(std::move(other.path_)), lock_(other.lock_) {
        other.lock_ = -1;
    }
    RunDirectory& operator=(RunDirectory&&) = delete;
    ~RunDirectory();

    const std::string& path() const { return path_; }
    std::string config() const { return path_ + "/config.json"; }
    std::string metrics() const { return path_ + "/metrics.jsonl"; }
    std::string tuning() const { return path_ + "/tuning.json"; }  // of --tune, on a GPU
    std::string adapter() const { return path_ + "/adapter"; }

  private:
    RunDirectory(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

    std::string path_;
    int lock_ = -1;  // flock on the directory itself: two processes never train in one run
};

// 2026-11-24, local time.
std::string today();

}  // namespace orpo
