// What every test of bad input checks: the exit code, and that the message names the place and the reason.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/error.h"

template <class Action>
void expect_error(orpo::Exit exit, const std::vector<std::string>& words, Action action) {
    try {
        action();
    } catch (const orpo::Error& error) {
        const std::string message = error.what();
        CAPTURE(message);
        CHECK(static_cast<int>(error.exit()) == static_cast<int>(exit));
        for (const std::string& word : words) {
            CAPTURE(word);
            CHECK(message.find(word) != std::string::npos);
        }
        return;
    } catch (const std::exception& error) {
        FAIL_CHECK("another kind of error: ", error.what());
        return;
    }
    FAIL_CHECK("no error, but one with \"", words.empty() ? "" : words.front(), "\" was due");
}
