// Which tokens a grammar allows next: a pushdown automaton over bytes, determinized as it runs, walked along the trie of a
// vocabulary. What it computes is said in kernels/automaton.py. Compiled once: an instruction set would change nothing here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace haversack {

// The bytes of a vocabulary's tokens, its nodes in the order in which a walk in depth meets them: what begins alike lies in a
// row, and a subtree is left out by one jump.
class Trie {
  public:
    struct Node {
        int32_t end;     // of the subtree
        int32_t tokens;  // the node's own in order(): from here to those of the next node
        int32_t parent;
        uint16_t depth;
        uint8_t byte;
    };
    static constexpr int32_t deepest = 65535;

    // A parent stands before its children, node 0 is the root; node_of: of each token, 0 for one without bytes. Throws
    // std::invalid_argument for what is no trie.
    Trie(const int32_t *parents, const uint8_t *bytes, int64_t nodes, const int32_t *node_of, int64_t tokens);

    int32_t nodes() const { return static_cast<int32_t>(nodes_.size()) - 1; }
    const Node &node(int32_t at) const { return nodes_[static_cast<size_t>(at)]; }
    const Node *all() const { return nodes_.data(); }
    const int32_t *order() const { return order_.data(); }
    int32_t tokens() const { return static_cast<int32_t>(place_.size()); }
    int32_t place(int32_t token) const { return place_[static_cast<size_t>(token)]; }
    int32_t longest() const { return longest_; }
    bool usable(uint8_t byte) const { return firsts_[byte] && ends_token(firsts_[byte]); }  // some token writes it alone
    // Tokens of the greedy split of a text: the longest that fits, again and again, else one byte.
    int64_t split(const uint8_t *text, size_t size) const;

  private:
    bool ends_token(int32_t at) const { return node(at).tokens < node(at + 1).tokens; }
    int32_t child(int32_t at, uint8_t byte) const;  // 0: there is none

    std::vector<Node> nodes_;  // and one behind the last
    std::vector<int32_t> order_, place_;
    int32_t firsts_[256] = {};
    int32_t longest_ = 0;
};

// The kinds of terms, by the numbers that kernels/automaton.py gives them.
enum class TermKind : uint8_t { empty, never, bytes, literal, sequence, choice, repeat, name, nest, leave };

// Terms as they are handed over, in arrays: of term t the parts are parts[starts[t] .. starts[t + 1]], low and high are bounds
// of a repetition (high -1: without end), the row of a set, or the place and length of a literal in texts.
struct Table {
    int64_t count, part_count, set_count, text_bytes;
    const uint8_t *kinds;
    const int32_t *starts, *parts;
    const int64_t *low, *high;
    const uint8_t *sets;  // [set_count, 32]
    const uint8_t *texts;
    bool sound() const;  // whether every number leads somewhere
};

// The fewest tokens of each term's cheapest text, and how deep that one nests; infinite for a term that no text matches.
void measure(const Table &table, const Trie &trie, double *least, double *depth);

// Numbers found by what they stand for, which is kept elsewhere: open addressing over hashes.
class Index {
  public:
    // The slot of what has this hash and is the `same`; -1 stands in a new one and must be set at once.
    template <typename Same>
    int32_t &slot(uint64_t hash, const Same &same) {
        if (2 * used_ >= slots_.size()) grow();
        const size_t mask = slots_.size() - 1;
        for (size_t at = hash & mask;; at = (at + 1) & mask) {
            Slot &found = slots_[at];
            if (found.number < 0) {
                found.hash = hash;
                ++used_;
                return found.number;
            }
            if (found.hash == hash && same(found.number)) return found.number;
        }
    }
    void clear() { *this = Index(); }
    int64_t nbytes() const { return static_cast<int64_t>(slots_.size() * sizeof(Slot)); }

  private:
    struct Slot {
        uint64_t hash = 0;
        int32_t number = -1;
    };
    void grow();
    std::vector<Slot> slots_;
    size_t used_ = 0;
};

class Automaton {
  public:
    // What may follow: a byte for each token, and the most by which one raises the tokens that complete the text.
    struct Allowed {
        std::shared_ptr<const std::vector<uint8_t>> mask;
        double growth;
        std::vector<float> grown;  // by how much each token does; infinite where it is not allowed; made when first asked for
    };
    static constexpr int32_t dead = 0, start = 1;

    // `ends`: tokens that may stand where the text may end. Copies the table, whose `least` and `depth` are those of measure().
    Automaton(const Table &table, const double *least, const double *depth, int32_t root, std::shared_ptr<const Trie> trie,
              std::vector<int32_t> ends, int64_t most_configurations, int64_t most_nbytes);
    Automaton(const Automaton &) = delete;

    // Of a configuration, by its number.
    double least(int32_t number) const { return configurations_[static_cast<size_t>(number)].least; }
    bool accepts(int32_t number);
    bool ended(int32_t number);  // it accepts, and nothing may follow
    int32_t after(int32_t number, int32_t token);
    int32_t allowed(int32_t number);  // the place of its Allowed
    const Allowed &allowed_at(int32_t place) const { return allowed_[static_cast<size_t>(place)]; }
    // Whether tokens that need more than `left` others after them have to be left out.
    bool closing(int32_t number, int64_t left) { return least(number) + allowed_at(allowed(number)).growth > double(left) - 1; }
    // The tokens after which fewer than `left` complete the text; false, and nothing written, when there are none and the text
    // may not end either.
    bool completing(int32_t number, int64_t left, uint8_t *out);

    // `number` stays right when everything else is forgotten, until it is let go.
    void hold(int32_t *number) { held_.push_back(number); }
    void let_go(const int32_t *number);
    void relieve();  // forgets when it is too much
    int64_t generation() const { return generation_; }
    int64_t configurations() const { return static_cast<int64_t>(configurations_.size()); }
    int64_t nbytes() const;
    const Trie &trie() const { return *trie_; }

  private:
    struct Term {
        TermKind kind;
        int32_t first, parts;  // in parts_
        int32_t set;           // of bytes, or of the first byte of a literal, in sets_
        int64_t low, high;
        double least, depth;
        int32_t less = -1;  // the literal without its first byte, the repetition after one time; -1: not made yet
        int32_t far = -1;   // what looks alike from afar
    };
    // A stack: a term on what lies below.
    struct Node {
        int32_t term, rest;  // of the bottom: -1
        double least;        // tokens that complete it
        int32_t depth;
        int32_t edges = -1, edge_count = 0;  // in edges_; -1: not known yet
        int32_t saturated = -1;
        bool accepts = false;
    };
    struct Edge {
        int32_t set, target;
    };
    struct Configuration {
        int32_t first, count;  // in stacks_
        double least;
        int32_t alike = -1, allowed = -1;
        int8_t accepts = -1, ended = -1;
    };
    struct Classes {
        uint64_t words[4] = {};
        bool has(int32_t kind) const { return words[kind >> 6] >> (kind & 63) & 1; }
        void add(int32_t kind) { words[kind >> 6] |= uint64_t(1) << (kind & 63); }
    };

    Term &term(int32_t number) { return terms_[static_cast<size_t>(number)]; }
    const Node &node(int32_t number) const { return nodes_[static_cast<size_t>(number)]; }
    Configuration &configuration(int32_t number) { return configurations_[static_cast<size_t>(number)]; }
    const int32_t *stacks(int32_t number) const { return &stacks_[size_t(configurations_[size_t(number)].first)]; }

    void find_classes(const Table &table);
    void begin();  // with nothing known
    int32_t &literal_slot(int64_t at, int64_t size);
    int32_t &repeat_slot(int32_t first, int64_t low, int64_t high);
    int32_t literal(int64_t at, int64_t size);
    int32_t repeat(int32_t first, int64_t low, int64_t high);
    int32_t less(int32_t number);
    int32_t far(int32_t number);
    int32_t push(int32_t term, int32_t rest);
    const Node &expanded(int32_t number);
    void unfold(int32_t top);
    void visit(int32_t number);
    int32_t saturated(int32_t number);
    int32_t numbered(std::vector<int32_t> &stacks);  // sorts them
    int32_t step(int32_t number, int32_t kind);
    int32_t alike(int32_t number);
    template <typename Met>
    void walk(int32_t number, const Met &met);
    void forget();
    int32_t again(const std::vector<Node> &nodes, const std::vector<Term> &terms, std::vector<int32_t> &copies, int32_t number);

    const std::shared_ptr<const Trie> trie_;
    const std::vector<int32_t> ends_;
    const int32_t root_;
    const int64_t most_configurations_, most_nbytes_;
    // Handed over.
    std::vector<uint8_t> texts_;
    std::vector<int32_t> parts_;
    std::vector<Classes> sets_;  // first one for each class alone
    int32_t class_of_[256] = {};
    int32_t classes_ = 0;
    size_t given_ = 0;  // terms that were handed over; those behind were made
    int32_t empty_ = -1, leave_ = -1;
    // Made, and forgotten.
    std::vector<Term> terms_;
    std::vector<Node> nodes_;
    std::vector<Edge> edges_;
    std::vector<int32_t> stacks_;
    std::vector<Configuration> configurations_;
    std::vector<int32_t> table_;  // [configurations, classes]: the one after a byte of the class
    std::vector<Allowed> allowed_;
    Index term_index_, node_index_, configuration_index_;
    int64_t masks_nbytes_ = 0, generation_ = 0;
    std::vector<int32_t *> held_;
    // While it works.
    std::vector<uint32_t> seen_;  // of nodes
    uint32_t mark_ = 0;
    std::vector<int32_t> waiting_, found_, path_;
};

}  // namespace haversack
