#include "automaton.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace haversack {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr int32_t deepest_nesting = 64;
constexpr int64_t steps[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256};
constexpr int32_t unknown = -1;

// The finalizer of SplitMix64 (Steele, Lea and Flood 2014), over one number after the other.
uint64_t joined(uint64_t hash, uint64_t more) {
    uint64_t z = hash + 0x9E3779B97F4A7C15u + more;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

}  // namespace

void Index::grow() {
    std::vector<Slot> slots(slots_.empty() ? 64 : 2 * slots_.size());
    const size_t mask = slots.size() - 1;
    for (const Slot &slot : slots_) {
        if (slot.number < 0) continue;
        size_t at = slot.hash & mask;
        while (slots[at].number >= 0) at = (at + 1) & mask;
        slots[at] = slot;
    }
    slots_.swap(slots);
}

Automaton::Automaton(const Table &table, const double *least, const double *depth, int32_t root,
                     std::shared_ptr<const Trie> trie, std::vector<int32_t> ends, int64_t most_configurations,
                     int64_t most_nbytes)
    : trie_(std::move(trie)), ends_(std::move(ends)), root_(root), most_configurations_(most_configurations),
      most_nbytes_(most_nbytes), texts_(table.texts, table.texts + table.text_bytes),
      parts_(table.parts, table.parts + table.part_count) {
    find_classes(table);
    for (int64_t t = 0; t < table.count; ++t) {
        const TermKind kind = static_cast<TermKind>(table.kinds[t]);
        Term given = {kind,     table.starts[t], table.starts[t + 1] - table.starts[t], 0, table.low[t], table.high[t],
                      least[t], depth[t]};
        if (kind == TermKind::bytes) given.set = classes_ + int32_t(given.low);
        if (kind == TermKind::literal) given.set = class_of_[texts_[size_t(given.low)]];
        if (kind == TermKind::empty) empty_ = int32_t(t);
        if (kind == TermKind::leave) leave_ = int32_t(t);
        terms_.push_back(given);
    }
    for (const auto &[kind, place] : {std::pair{TermKind::empty, &empty_}, std::pair{TermKind::leave, &leave_}}) {
        if (*place >= 0) continue;
        *place = int32_t(terms_.size());
        terms_.push_back({kind, 0, 0, 0, 0, 0, 0.0, 0.0});
    }
    given_ = terms_.size();
    path_.resize(size_t(trie_->longest()) + 1);
    begin();
}

// Bytes that no term tells apart are one class.
void Automaton::find_classes(const Table &table) {
    const auto split = [&](const auto &holds) {
        int32_t inside[256], outside[256], count = 0;
        std::fill(inside, inside + 256, -1);
        std::fill(outside, outside + 256, -1);
        for (int32_t byte = 0; byte < 256; ++byte) {
            int32_t &made = (holds(byte) ? inside : outside)[class_of_[byte]];
            if (made < 0) made = count++;
            class_of_[byte] = made;
        }
        classes_ = count;
    };
    bool alone[256] = {};
    for (int64_t t = 0; t < table.count; ++t)
        if (static_cast<TermKind>(table.kinds[t]) == TermKind::literal)
            for (int64_t i = 0; i < table.high[t]; ++i) alone[table.texts[table.low[t] + i]] = true;
    classes_ = 1;
    for (int32_t one = 0; one < 256; ++one)
        if (alone[one]) split([&](int32_t byte) { return byte == one; });
    const auto has = [&](int64_t row, int32_t byte) { return table.sets[32 * row + byte / 8] >> (byte % 8) & 1; };
    for (int64_t row = 0; row < table.set_count; ++row) split([&](int32_t byte) { return has(row, byte); });
    sets_.resize(size_t(classes_ + table.set_count));
    for (int32_t kind = 0; kind < classes_; ++kind) sets_[size_t(kind)].add(kind);
    for (int64_t row = 0; row < table.set_count; ++row)
        for (int32_t byte = 0; byte < 256; ++byte)
            if (has(row, byte)) sets_[size_t(classes_ + row)].add(class_of_[byte]);
}

void Automaton::begin() {
    terms_.resize(given_);
    nodes_ = {};
    edges_ = {};
    stacks_ = {};
    configurations_ = {};
    table_ = {};
    allowed_ = {};
    seen_ = {};
    mark_ = 0;
    masks_nbytes_ = 0;
    for (Index *index : {&term_index_, &node_index_, &configuration_index_}) index->clear();
    for (size_t t = 0; t < given_; ++t) {
        Term &given = terms_[t];
        given.less = given.far = unknown;
        if (given.kind == TermKind::literal) literal_slot(given.low, given.high) = int32_t(t);
        if (given.kind == TermKind::repeat) repeat_slot(given.first, given.low, given.high) = int32_t(t);
    }
    ++generation_;
    nodes_.push_back({-1, -1, 0.0, 0});
    seen_.push_back(0);
    found_.clear();
    numbered(found_);  // dead
    std::fill(table_.begin(), table_.end(), int32_t(dead));
    found_.assign(1, push(root_, 0));
    numbered(found_);  // start
}

// --- terms that are made on the way

int32_t &Automaton::literal_slot(int64_t at, int64_t size) {
    const uint8_t *text = texts_.data() + at;
    uint64_t hash = uint64_t(size);
    for (int64_t i = 0; i < size; ++i) hash = (hash ^ text[i]) * 0x100000001B3u;
    return term_index_.slot(joined(hash, 0), [&](int32_t other) {
        const Term &known = term(other);
        return known.kind == TermKind::literal && known.high == size &&
               !std::memcmp(texts_.data() + known.low, text, size_t(size));
    });
}

int32_t &Automaton::repeat_slot(int32_t first, int64_t low, int64_t high) {
    const int32_t part = parts_[size_t(first)];
    return term_index_.slot(joined(joined(uint64_t(part), uint64_t(low)), uint64_t(high)), [&](int32_t other) {
        const Term &known = term(other);
        return known.kind == TermKind::repeat && parts_[size_t(known.first)] == part && known.low == low && known.high == high;
    });
}

int32_t Automaton::literal(int64_t at, int64_t size) {
    int32_t &slot = literal_slot(at, size);
    if (slot < 0) {
        slot = int32_t(terms_.size());
        const uint8_t *text = texts_.data() + at;
        terms_.push_back(
            {TermKind::literal, 0, 0, class_of_[text[0]], at, size, double(trie_->split(text, size_t(size))), 0.0});
    }
    return slot;
}

int32_t Automaton::repeat(int32_t first, int64_t low, int64_t high) {
    if (high == 0) return empty_;
    int32_t &slot = repeat_slot(first, low, high);
    if (slot < 0) {
        slot = int32_t(terms_.size());
        const Term &part = term(parts_[size_t(first)]);
        const double least = low ? double(low) * part.least : 0.0, depth = low ? part.depth : 0.0;
        terms_.push_back({TermKind::repeat, first, 1, 0, low, high, least, depth});
    }
    return slot;
}

// A literal without its first byte, a repetition after one time.
int32_t Automaton::less(int32_t number) {
    if (term(number).less < 0) {
        const Term from = term(number);
        term(number).less = from.kind == TermKind::literal
                                ? literal(from.low + 1, from.high - 1)
                                : repeat(from.first, std::max<int64_t>(from.low - 1, 0), from.high < 0 ? -1 : from.high - 1);
    }
    return term(number).less;
}

// A repetition with its counts made equal to those of others like it; any other term as it is.
int32_t Automaton::far(int32_t number) {
    if (term(number).kind != TermKind::repeat) return number;
    if (term(number).far < 0) {
        const Term from = term(number);
        const int64_t beyond = trie_->longest() + 1;
        int32_t found = number;
        if (from.high < 0 || from.high > beyond)
            found = repeat(from.first, std::min(from.low, beyond), -1);
        else if (!from.low)
            found = repeat(from.first, 0, *(std::upper_bound(std::begin(steps), std::end(steps), from.high) - 1));
        term(number).far = found;
    }
    return term(number).far;
}

// --- stacks

int32_t Automaton::push(int32_t number, int32_t rest) {
    int32_t &slot = node_index_.slot(joined(uint64_t(uint32_t(number)) << 32 | uint32_t(rest), 0),
                                     [&](int32_t other) { return node(other).term == number && node(other).rest == rest; });
    if (slot < 0) {
        slot = int32_t(nodes_.size());
        const Term &top = term(number);
        nodes_.push_back({number, rest, top.least + node(rest).least, node(rest).depth + (top.kind == TermKind::leave)});
        seen_.push_back(0);
    }
    return slot;
}

void Automaton::visit(int32_t number) {
    if (seen_[size_t(number)] == mark_) return;
    seen_[size_t(number)] = mark_;
    waiting_.push_back(number);
}

// The node with its moves: the stacks after each class of bytes.
const Automaton::Node &Automaton::expanded(int32_t number) {
    if (node(number).edges >= 0) return node(number);
    const size_t first = edges_.size();
    bool accepts = false;
    ++mark_;
    visit(number);
    while (!waiting_.empty()) {
        const int32_t top = waiting_.back();
        waiting_.pop_back();
        if (node(top).term < 0)
            accepts = true;
        else
            unfold(top);
    }
    Node &made = nodes_[size_t(number)];
    made.edges = int32_t(first);
    made.edge_count = int32_t(edges_.size() - first);
    made.accepts = accepts;
    return made;
}

// Visits the stacks that `top` stands for; what reads a byte becomes an edge.
void Automaton::unfold(int32_t top) {
    const int32_t number = node(top).term, rest = node(top).rest;
    const Term here = term(number);
    const int32_t *parts = parts_.data() + here.first;
    switch (here.kind) {
    case TermKind::bytes: edges_.push_back({here.set, rest}); break;
    case TermKind::literal: edges_.push_back({here.set, here.high > 1 ? push(less(number), rest) : rest}); break;
    case TermKind::empty:
    case TermKind::leave: visit(rest); break;
    case TermKind::sequence: {
        int32_t below = rest;
        for (int32_t i = here.parts - 1; i >= 0; --i) below = push(parts[i], below);
        visit(below);
        break;
    }
    case TermKind::choice:
    case TermKind::name:
        for (int32_t i = 0; i < here.parts; ++i)
            if (term(parts[i]).least < infinity) visit(push(parts[i], rest));
        break;
    case TermKind::nest:
        if (node(rest).depth + here.depth <= deepest_nesting) visit(push(parts[0], push(leave_, rest)));
        break;
    case TermKind::repeat:
        if (!here.low) visit(rest);
        if (term(parts[0]).least < infinity) visit(push(parts[0], push(less(number), rest)));
        break;
    case TermKind::never: break;
    }
}

// The stack with counters that no single token can exhaust made equal.
int32_t Automaton::saturated(int32_t number) {
    waiting_.clear();
    while (node(number).saturated < 0 && node(number).rest >= 0) {
        waiting_.push_back(number);
        number = node(number).rest;
    }
    int32_t found = node(number).saturated < 0 ? number : node(number).saturated;
    for (; !waiting_.empty(); waiting_.pop_back()) {
        const int32_t one = waiting_.back();
        found = push(far(node(one).term), found);
        nodes_[size_t(one)].saturated = found;
    }
    return found;
}

// --- configurations

int32_t Automaton::numbered(std::vector<int32_t> &stacks) {
    std::sort(stacks.begin(), stacks.end());
    uint64_t hash = stacks.size();
    for (const int32_t one : stacks) hash = joined(hash, uint64_t(one));
    int32_t &slot = configuration_index_.slot(hash, [&](int32_t other) {
        const Configuration &known = configuration(other);
        return size_t(known.count) == stacks.size() && std::equal(stacks.begin(), stacks.end(), stacks_.data() + known.first);
    });
    if (slot < 0) {
        slot = int32_t(configurations_.size());
        double least = infinity;
        for (const int32_t one : stacks) least = std::min(least, node(one).least);
        configurations_.push_back({int32_t(stacks_.size()), int32_t(stacks.size()), least});
        stacks_.insert(stacks_.end(), stacks.begin(), stacks.end());
        table_.resize(table_.size() + size_t(classes_), unknown);
    }
    return slot;
}

int32_t Automaton::step(int32_t number, int32_t kind) {
    const Configuration from = configuration(number);
    for (int32_t i = 0; i < from.count; ++i) expanded(stacks_[size_t(from.first + i)]);
    ++mark_;
    found_.clear();
    for (int32_t i = 0; i < from.count; ++i) {
        const Node &top = node(stacks_[size_t(from.first + i)]);
        const Edge *edges = edges_.data() + top.edges;
        for (int32_t k = 0; k < top.edge_count; ++k) {
            const int32_t target = edges[k].target;
            if (!sets_[size_t(edges[k].set)].has(kind) || seen_[size_t(target)] == mark_) continue;
            seen_[size_t(target)] = mark_;
            found_.push_back(target);
        }
    }
    const int32_t following = found_.empty() ? int32_t(dead) : numbered(found_);
    table_[size_t(number) * size_t(classes_) + size_t(kind)] = following;
    return following;
}

bool Automaton::accepts(int32_t number) {
    if (configuration(number).accepts < 0) {
        const Configuration from = configuration(number);
        bool found = false, moves = false;
        for (int32_t i = 0; i < from.count; ++i) {
            const Node &top = expanded(stacks_[size_t(from.first + i)]);
            found = found || top.accepts;
            moves = moves || top.edge_count > 0;
        }
        configuration(number).accepts = found;
        configuration(number).ended = found && !moves;
    }
    return configuration(number).accepts;
}

bool Automaton::ended(int32_t number) {
    accepts(number);
    return configuration(number).ended;
}

int32_t Automaton::after(int32_t number, int32_t token) {
    if (token < 0 || token >= trie_->tokens()) return dead;
    int32_t length = 0;
    for (int32_t at = trie_->place(token); at; at = trie_->node(at).parent)
        path_[size_t(length++)] = class_of_[trie_->node(at).byte];
    if (!length) return dead;
    while (length && number != dead) {
        const int32_t kind = path_[size_t(--length)];
        const int32_t following = table_[size_t(number) * size_t(classes_) + size_t(kind)];
        number = following == unknown ? step(number, kind) : following;
    }
    return number;
}

// --- masks

// Calls met(first, last, configuration) for the places in the trie's order() of the tokens that are allowed.
template <typename Met>
void Automaton::walk(int32_t number, const Met &met) {
    const Trie::Node *nodes = trie_->all();
    const int32_t count = trie_->nodes();
    const size_t classes = size_t(classes_);
    const int32_t *table = table_.data();
    path_[0] = number;
    for (int32_t i = 1; i < count;) {
        const Trie::Node &here = nodes[i];
        const int32_t from = path_[here.depth - 1u], kind = class_of_[here.byte];
        int32_t to = table[size_t(from) * classes + size_t(kind)];
        if (to == unknown) {
            to = step(from, kind);
            table = table_.data();
        }
        if (to == dead) {
            i = here.end;
            continue;
        }
        path_[here.depth] = to;
        ++i;
        if (here.tokens < nodes[i].tokens) met(here.tokens, nodes[i].tokens, to);
    }
}

int32_t Automaton::alike(int32_t number) {
    if (configuration(number).alike < 0) {
        const Configuration from = configuration(number);
        found_.clear();
        for (int32_t i = 0; i < from.count; ++i) found_.push_back(saturated(stacks_[size_t(from.first + i)]));
        std::sort(found_.begin(), found_.end());
        found_.erase(std::unique(found_.begin(), found_.end()), found_.end());
        const int32_t found = numbered(found_);
        configuration(number).alike = found;
    }
    return configuration(number).alike;
}

int32_t Automaton::allowed(int32_t number) {
    if (configuration(number).allowed >= 0) return configuration(number).allowed;
    const int32_t far = alike(number);
    if (configuration(far).allowed < 0) {
        auto mask = std::make_shared<std::vector<uint8_t>>(size_t(trie_->tokens()));
        double most = 0;
        walk(far, [&](int32_t first, int32_t last, int32_t to) {
            most = std::max(most, least(to));
            for (; first < last; ++first) (*mask)[size_t(trie_->order()[first])] = 1;
        });
        if (accepts(far))
            for (const int32_t end : ends_) (*mask)[size_t(end)] = 1;
        configuration(far).allowed = int32_t(allowed_.size());
        masks_nbytes_ += int64_t(mask->size());
        allowed_.push_back({std::move(mask), most - least(far), {}});
    }
    return configuration(number).allowed = configuration(far).allowed;
}

bool Automaton::completing(int32_t number, int64_t left, uint8_t *out) {
    Allowed &found = allowed_[size_t(allowed(number))];
    if (found.grown.empty()) {
        const int32_t far = alike(number);
        const double before = least(far);
        found.grown.assign(size_t(trie_->tokens()), float(infinity));
        walk(far, [&](int32_t first, int32_t last, int32_t to) {
            for (; first < last; ++first) found.grown[size_t(trie_->order()[first])] = float(least(to) - before);
        });
        if (accepts(far))
            for (const int32_t end : ends_) found.grown[size_t(end)] = -float(infinity);
        masks_nbytes_ += int64_t(found.grown.size() * sizeof(float));
    }
    const float most = float(double(left) - 1 - least(number));
    const float *grown = found.grown.data();
    uint8_t any = 0;
    for (size_t t = 0; t < found.grown.size(); ++t) any |= out[t] = grown[t] <= most;
    return any || accepts(number);
}

// --- what is kept

void Automaton::let_go(const int32_t *number) {
    const auto found = std::find(held_.begin(), held_.end(), number);
    if (found == held_.end()) return;
    *found = held_.back();
    held_.pop_back();
}

int64_t Automaton::nbytes() const {
    return masks_nbytes_ +
           int64_t(nodes_.size() * (sizeof(Node) + sizeof(uint32_t)) + edges_.size() * sizeof(Edge) +
                   (stacks_.size() + table_.size()) * sizeof(int32_t) + (terms_.size() - given_) * sizeof(Term) +
                   configurations_.size() * sizeof(Configuration)) +
           term_index_.nbytes() + node_index_.nbytes() + configuration_index_.nbytes();
}

void Automaton::relieve() {
    if (configurations() >= most_configurations_ || nbytes() >= most_nbytes_) forget();
}

void Automaton::forget() {
    std::vector<std::vector<int32_t>> configurations;
    for (const int32_t *number : held_) {
        const Configuration &from = configuration(*number);
        configurations.emplace_back(stacks_.begin() + from.first, stacks_.begin() + from.first + from.count);
    }
    const std::vector<Node> nodes = std::move(nodes_);
    const std::vector<Term> terms = terms_;
    begin();
    std::vector<int32_t> copies(nodes.size(), -1);
    copies[0] = 0;
    for (size_t i = 0; i < held_.size(); ++i) {
        for (int32_t &one : configurations[i]) one = again(nodes, terms, copies, one);
        *held_[i] = numbered(configurations[i]);
    }
}

// The node of what was forgotten.
int32_t Automaton::again(const std::vector<Node> &nodes, const std::vector<Term> &terms, std::vector<int32_t> &copies,
                         int32_t number) {
    waiting_.clear();
    for (; copies[size_t(number)] < 0; number = nodes[size_t(number)].rest) waiting_.push_back(number);
    int32_t found = copies[size_t(number)];
    for (; !waiting_.empty(); waiting_.pop_back()) {
        const int32_t one = waiting_.back();
        int32_t top = nodes[size_t(one)].term;
        if (size_t(top) >= given_) {
            const Term &made = terms[size_t(top)];
            top = made.kind == TermKind::literal ? literal(made.low, made.high) : repeat(made.first, made.low, made.high);
        }
        found = copies[size_t(one)] = push(top, found);
    }
    return found;
}

}  // namespace haversack
