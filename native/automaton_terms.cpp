// What an automaton is given: the trie of a vocabulary, and terms with the tokens that their texts take.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "automaton.h"

namespace haversack {
namespace {
constexpr double infinity = std::numeric_limits<double>::infinity();
}

Trie::Trie(const int32_t *parents, const uint8_t *bytes, int64_t nodes, const int32_t *node_of, int64_t tokens) {
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    if (nodes < 1 || nodes >= most || tokens >= most) throw std::invalid_argument("a trie has 1 to 2^31 - 2 nodes");
    const size_t count = static_cast<size_t>(nodes);
    std::vector<int32_t> sizes(count, 1), places(count), next(count);
    for (int64_t i = nodes - 1; i > 0; --i) {
        if (parents[i] < 0 || parents[i] >= i) throw std::invalid_argument("a parent does not stand before its child");
        sizes[size_t(parents[i])] += sizes[size_t(i)];
    }
    nodes_.resize(count + 1);
    next[0] = 1;
    nodes_[0] = {int32_t(nodes), 0, 0, 0, 0};
    for (int64_t i = 1; i < nodes; ++i) {
        const size_t parent = size_t(parents[i]);
        const int32_t place = places[size_t(i)] = next[parent];
        next[parent] += sizes[size_t(i)];
        next[size_t(i)] = place + 1;
        const int32_t depth = nodes_[size_t(places[parent])].depth + 1;
        if (depth > deepest) throw std::invalid_argument("a token is too long");
        longest_ = std::max(longest_, depth);
        nodes_[size_t(place)] = {place + sizes[size_t(i)], 0, places[parent], uint16_t(depth), bytes[i]};
        if (!parent) firsts_[bytes[i]] = place;
    }
    place_.resize(size_t(tokens));
    std::vector<int32_t> counts(count + 1);
    for (int64_t t = 0; t < tokens; ++t) {
        if (node_of[t] < 0 || node_of[t] >= nodes) throw std::invalid_argument("a token has no node");
        place_[size_t(t)] = places[size_t(node_of[t])];
        if (node_of[t]) ++counts[size_t(place_[size_t(t)])];
    }
    int32_t sum = 0;
    for (size_t i = 0; i <= count; ++i) {
        nodes_[i].tokens = sum;
        sum += counts[i];
        counts[i] = nodes_[i].tokens;
    }
    order_.resize(size_t(sum));
    for (int64_t t = 0; t < tokens; ++t)
        if (node_of[t]) order_[size_t(counts[size_t(place_[size_t(t)])]++)] = int32_t(t);
}

int32_t Trie::child(int32_t at, uint8_t byte) const {
    for (int32_t one = at + 1, end = node(at).end; one < end; one = node(one).end)
        if (node(one).byte == byte) return one;
    return 0;
}

int64_t Trie::split(const uint8_t *text, size_t size) const {
    int64_t count = 0;
    for (size_t at = 0; at < size; ++count) {
        size_t longest = 1, length = 1;
        for (int32_t here = firsts_[text[at]]; here; here = child(here, text[at + length++])) {
            if (ends_token(here)) longest = length;
            if (at + length == size) break;
        }
        at += longest;
    }
    return count;
}

bool Table::sound() const {
    if (count < 1 || starts[0] != 0 || starts[count] != part_count) return false;
    for (int64_t i = 0; i < part_count; ++i)
        if (parts[i] < 0 || parts[i] >= count) return false;
    for (int64_t t = 0; t < count; ++t) {
        const int64_t inner = starts[t + 1] - starts[t];
        if (inner < 0 || starts[t + 1] > part_count || kinds[t] > uint8_t(TermKind::leave)) return false;
        switch (static_cast<TermKind>(kinds[t])) {
        case TermKind::bytes:
            if (low[t] < 0 || low[t] >= set_count) return false;
            break;
        case TermKind::literal:
            if (low[t] < 0 || high[t] < 1 || low[t] > text_bytes - high[t]) return false;
            break;
        case TermKind::sequence:
            if (inner < 1) return false;
            break;
        case TermKind::repeat:
            if (inner != 1 || low[t] < 0 || high[t] < -1 || high[t] == 0) return false;
            break;
        case TermKind::nest:
            if (inner != 1) return false;
            break;
        default: break;
        }
    }
    return true;
}

void measure(const Table &table, const Trie &trie, double *least, double *depth) {
    const size_t count = size_t(table.count);
    std::vector<int32_t> starts(count + 1), users(static_cast<size_t>(table.part_count));
    for (int64_t i = 0; i < table.part_count; ++i) ++starts[size_t(table.parts[i]) + 1];
    for (size_t t = 0; t < count; ++t) starts[t + 1] += starts[t];
    std::vector<int32_t> at(starts.begin(), starts.end() - 1);
    for (int64_t t = 0; t < table.count; ++t)
        for (int32_t i = table.starts[t]; i < table.starts[t + 1]; ++i)
            users[size_t(at[size_t(table.parts[i])]++)] = int32_t(t);
    std::fill(least, least + count, infinity);
    std::fill(depth, depth + count, infinity);
    const auto of_set = [&](int64_t row) {
        for (int64_t i = 0; i < 32; ++i)
            if (table.sets[32 * row + i]) return true;
        return false;
    };
    const auto measured = [&](size_t t) {
        std::pair<double, double> found = {infinity, infinity};
        const int32_t *part = table.parts + table.starts[t], *end = table.parts + table.starts[t + 1];
        switch (static_cast<TermKind>(table.kinds[t])) {
        case TermKind::empty:
        case TermKind::leave: found = {0.0, 0.0}; break;
        case TermKind::bytes:
            if (of_set(table.low[t])) found = {1.0, 0.0};
            break;
        case TermKind::literal: {
            const uint8_t *text = table.texts + table.low[t];
            const bool usable = std::all_of(text, text + table.high[t], [&](uint8_t byte) { return trie.usable(byte); });
            if (usable) found = {double(trie.split(text, size_t(table.high[t]))), 0.0};
            break;
        }
        case TermKind::sequence:
            found = {0.0, 0.0};
            for (; part < end; ++part) found = {found.first + least[*part], std::max(found.second, depth[*part])};
            break;
        case TermKind::choice:
        case TermKind::name:
            for (; part < end; ++part) found = std::min(found, {least[*part], depth[*part]});
            break;
        case TermKind::repeat:
            found = {0.0, 0.0};
            if (table.low[t]) found = {double(table.low[t]) * least[*part], depth[*part]};
            break;
        case TermKind::nest: found = {least[*part], depth[*part] + 1}; break;
        case TermKind::never: break;
        }
        if (!(found < std::pair{least[t], depth[t]})) return false;
        least[t] = found.first;
        depth[t] = found.second;
        return true;
    };
    // A term is looked at again when one of its parts has changed.
    std::vector<int32_t> waiting(count);
    std::vector<bool> waits(count, true);
    for (size_t t = 0; t < count; ++t) waiting[t] = int32_t(t);
    std::vector<int32_t> following;
    while (!waiting.empty()) {
        for (const int32_t one : waiting) {
            waits[size_t(one)] = false;
            if (!measured(size_t(one))) continue;
            for (int32_t i = starts[size_t(one)]; i < starts[size_t(one) + 1]; ++i) {
                const int32_t user = users[size_t(i)];
                if (waits[size_t(user)]) continue;
                waits[size_t(user)] = true;
                following.push_back(user);
            }
        }
        waiting.swap(following);
        following.clear();
    }
}

}  // namespace haversack
