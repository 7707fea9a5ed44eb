// Automata of constraints without Python: masks against what can be drawn, and texts that survive that all else is forgotten.
#include "automaton.h"

#include <map>
#include <string>

#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

// A table that is written down term by term.
struct Grammar {
    std::vector<uint8_t> kinds, sets, texts;
    std::vector<int32_t> starts = {0}, parts;
    std::vector<int64_t> low, high;
    std::vector<double> least, depth;

    int32_t term(TermKind kind, std::vector<int32_t> inner, int64_t one = 0, int64_t two = 0) {
        kinds.push_back(uint8_t(kind));
        parts.insert(parts.end(), inner.begin(), inner.end());
        starts.push_back(int32_t(parts.size()));
        low.push_back(one);
        high.push_back(two);
        return int32_t(kinds.size()) - 1;
    }
    int32_t literal(const std::string &text) {
        texts.insert(texts.end(), text.begin(), text.end());
        return term(TermKind::literal, {}, int64_t(texts.size() - text.size()), int64_t(text.size()));
    }
    int32_t bytes(const std::string &of) {
        sets.resize(sets.size() + 32);
        for (const char byte : of) sets[sets.size() - 32 + uint8_t(byte) / 8] |= uint8_t(1 << (uint8_t(byte) % 8));
        return term(TermKind::bytes, {}, int64_t(sets.size()) / 32 - 1);
    }
    Table table() const {
        return {int64_t(kinds.size()),
                int64_t(parts.size()),
                int64_t(sets.size()) / 32,
                int64_t(texts.size()),
                kinds.data(),
                starts.data(),
                parts.data(),
                low.data(),
                high.data(),
                sets.data(),
                texts.data()};
    }
    void settle(const Trie &trie) {
        least.resize(kinds.size());
        depth.resize(kinds.size());
        measure(table(), trie, least.data(), depth.data());
    }
};

// Lists of "x", "why" and lists, which name themselves, between 0 and `most` in one.
int32_t lists(Grammar &grammar, int64_t most) {
    const int32_t name = grammar.term(TermKind::name, {2});
    grammar.term(TermKind::leave, {});
    grammar.term(TermKind::choice, {3, 4, 5});
    grammar.bytes("xz");
    grammar.literal("why");
    grammar.term(TermKind::nest, {6});
    grammar.term(TermKind::sequence, {7, 8, 9});
    grammar.literal("[");
    grammar.term(TermKind::repeat, {0}, 0, most);
    grammar.literal("]");
    return name;
}

struct Words {
    std::vector<std::string> all;
    std::shared_ptr<const Trie> trie;

    explicit Words(std::vector<std::string> words) : all(std::move(words)) {
        std::vector<int32_t> parents = {0}, node_of;
        std::vector<uint8_t> bytes = {0};
        std::map<std::pair<int32_t, char>, int32_t> children;
        for (const std::string &word : all) {
            int32_t at = 0;
            for (const char byte : word) {
                const auto [found, fresh] = children.try_emplace({at, byte}, int32_t(bytes.size()));
                if (fresh) {
                    parents.push_back(at);
                    bytes.push_back(uint8_t(byte));
                }
                at = found->second;
            }
            node_of.push_back(at);
        }
        trie = std::make_shared<Trie>(parents.data(), bytes.data(), int64_t(bytes.size()), node_of.data(),
                                      int64_t(node_of.size()));
    }
};

Words drawn_words(Random &random) {
    std::vector<std::string> words = {"", "x", "z", "w", "h", "y", "[", "]", "q"};
    for (int i = 0; i < 120; ++i) {
        std::string word;
        for (int n = 1 + random.below(5); n > 0; --n) word += "xzwhy[]["[random.below(8)];
        words.push_back(word);
    }
    return Words(words);
}

std::vector<int> those(const std::vector<uint8_t> &mask) {
    std::vector<int> found;
    for (size_t t = 0; t < mask.size(); ++t)
        if (mask[t]) found.push_back(int(t));
    return found;
}

}  // namespace

HAVERSACK_TEST(a_mask_holds_what_can_be_drawn) {
    Random random(3);
    for (int round = 0; round < 12; ++round) {
        const Words words = drawn_words(random);
        Grammar grammar;
        const int32_t root = lists(grammar, round % 2 ? 3 : -1);
        CHECK(grammar.table().sound());
        grammar.settle(*words.trie);
        Automaton automaton(grammar.table(), grammar.least.data(), grammar.depth.data(), root, words.trie, {0}, 1000, 1 << 20);
        CHECK(automaton.least(Automaton::start) == 1);
        for (int text = 0; text < 6; ++text) {
            int32_t at = Automaton::start;
            for (int drawn = 0; drawn < 25 && !automaton.ended(at); ++drawn) {
                const std::vector<uint8_t> mask = *automaton.allowed_at(automaton.allowed(at)).mask;
                CHECK(mask[0] == uint8_t(automaton.accepts(at)));
                for (int32_t token = 1; token < words.trie->tokens(); ++token)
                    CHECK(mask[size_t(token)] == uint8_t(automaton.after(at, token) != Automaton::dead));
                auto tokens = those(mask);
                CHECK(!tokens.empty());
                at = automaton.after(at, tokens[size_t(random.below(int(tokens.size())))]);
            }
        }
    }
}

HAVERSACK_TEST(what_was_begun_is_completed_in_the_tokens_that_are_left) {
    Random random(4);
    const Words words = drawn_words(random);
    Grammar grammar;
    const int32_t root = lists(grammar, -1);
    grammar.settle(*words.trie);
    Automaton automaton(grammar.table(), grammar.least.data(), grammar.depth.data(), root, words.trie, {}, 1000, 1 << 20);
    std::vector<uint8_t> mask(size_t(words.trie->tokens()));
    for (int text = 0; text < 40; ++text) {
        int32_t at = Automaton::start;
        for (int64_t left = 1 + text; !automaton.ended(at); --left) {
            CHECK(left >= 1 && automaton.least(at) <= double(left));
            mask = *automaton.allowed_at(automaton.allowed(at)).mask;
            if (automaton.closing(at, left)) CHECK(automaton.completing(at, left, mask.data()));
            auto tokens = those(mask);
            CHECK(!tokens.empty());
            at = automaton.after(at, tokens[size_t(random.below(int(tokens.size())))]);
        }
    }
}

HAVERSACK_TEST(a_text_survives_that_all_else_is_forgotten) {
    Random random(5);
    const Words words = drawn_words(random);
    Grammar grammar;
    const int32_t root = lists(grammar, 200);
    grammar.settle(*words.trie);
    const Table table = grammar.table();
    Automaton plenty(table, grammar.least.data(), grammar.depth.data(), root, words.trie, {0}, 1 << 20, 1 << 30);
    Automaton narrow(table, grammar.least.data(), grammar.depth.data(), root, words.trie, {0}, 8, 1 << 30);
    int32_t one = Automaton::start, two = Automaton::start, other = Automaton::start;
    narrow.hold(&two);
    narrow.hold(&other);
    const int64_t before = narrow.generation();
    for (int drawn = 0; drawn < 200; ++drawn) {
        const std::vector<uint8_t> mask = *plenty.allowed_at(plenty.allowed(one)).mask;
        CHECK(mask == *narrow.allowed_at(narrow.allowed(two)).mask);
        CHECK(plenty.least(one) == narrow.least(two) && plenty.accepts(one) == narrow.accepts(two));
        if (plenty.ended(one)) {
            one = Automaton::start;
            narrow.let_go(&two);
            two = Automaton::start;
            narrow.hold(&two);
            continue;
        }
        std::vector<int> tokens;
        for (const int token : those(mask))
            if (token) tokens.push_back(token);
        const int token = tokens[size_t(random.below(int(tokens.size())))];
        one = plenty.after(one, token);
        two = narrow.after(two, token);
        narrow.relieve();
    }
    CHECK(narrow.generation() > before + 3);
    CHECK(other == Automaton::start);
}

HAVERSACK_TEST(terms_are_measured_whatever_their_order) {
    const Words words({"a", "b", "ab", "abab"});
    Grammar grammar;
    const int32_t name = grammar.term(TermKind::name, {1});  // least 2: "abab" "b"
    grammar.term(TermKind::choice, {2, 3, 5});
    grammar.literal("ababb");
    grammar.term(TermKind::sequence, {0, 4});  // without an end
    grammar.literal("a");
    grammar.literal("aqa");  // no token writes q
    const int32_t repeat = grammar.term(TermKind::repeat, {0}, 3, -1);
    const int32_t nest = grammar.term(TermKind::nest, {repeat});
    const int32_t never = grammar.term(TermKind::never, {});
    const int32_t nothing = grammar.term(TermKind::sequence, {4, never});
    grammar.settle(*words.trie);
    CHECK(grammar.least[size_t(name)] == 2 && grammar.depth[size_t(name)] == 0);
    CHECK(grammar.least[5] > 1e300 && grammar.least[size_t(nothing)] > 1e300);
    CHECK(grammar.least[size_t(nest)] == 6 && grammar.depth[size_t(nest)] == 1);
    CHECK(words.trie->split(reinterpret_cast<const uint8_t *>("ababab"), 6) == 2);
}

HAVERSACK_TEST(what_is_no_trie_or_table_is_refused) {
    const int32_t parents[] = {0, 0, 2}, node_of[] = {1, 5};
    const uint8_t bytes[] = {0, 65, 66};
    for (const auto &[nodes, tokens] : {std::pair{3, 1}, std::pair{2, 2}, std::pair{0, 0}}) {
        bool refused = false;
        try {
            Trie(parents, bytes, nodes, node_of, tokens);
        } catch (const std::exception &) { refused = true; }
        CHECK(refused);
    }
    for (int what = 0; what < 5; ++what) {
        Grammar grammar;
        lists(grammar, 4);
        CHECK(grammar.table().sound());
        if (what == 0) grammar.parts[2] = 10;
        if (what == 1) grammar.low[4] = 3;
        if (what == 2) grammar.low[3] = 1;
        if (what == 3) grammar.high[8] = 0;
        if (what == 4) grammar.kinds[1] = 10;
        CHECK(!grammar.table().sound());
    }
}
