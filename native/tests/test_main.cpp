// Runs every test of this program under every instruction set of this processor: test_native [instruction set]
#include <cstring>

#include "base/isa.h"
#include "tests/check.h"

int main(int count, char **words) {
    using namespace haversack;
    int ran = 0;
    for (const char *const *name = isa_names(); *name; ++name) {
        if (count > 1 && std::strcmp(words[1], *name) != 0) continue;
        if (!select_isa(*name)) {
            std::printf("%s: not supported by this processor, skipped\n", *name);
            continue;
        }
        for (const tests::Test &test : tests::all()) {
            const int before = tests::failures();
            test.run();
            if (tests::failures() != before) std::printf("%s: %s failed\n", *name, test.name);
            ++ran;
        }
        std::printf("%s: %zu tests\n", *name, tests::all().size());
    }
    std::printf("%d runs, %d failures\n", ran, tests::failures());
    return ran == 0 || tests::failures() ? 1 : 0;
}
