// Names what a backend does from here to the end of the scope, for profilers (NVTX on a GPU). Backends without
// push_range and pop_range, as those on the CPU, get no code at all.
#pragma once

namespace orpo {

template <class K>
class Range {
  public:
    // number: shown behind the name, as in "layer 7"; negative: none.
    Range(K& k, const char* name, int number = -1) : k_(k) {
        if constexpr (requires { k.push_range(name, number); }) k_.push_range(name, number);
    }
    ~Range() {
        if constexpr (requires { k_.pop_range(); }) k_.pop_range();
    }
    Range(const Range&) = delete;

  private:
    K& k_;
};

}  // namespace orpo
