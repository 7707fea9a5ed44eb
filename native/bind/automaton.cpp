// Automata of constraints, for Python: see kernels/automaton.py.
#include "automaton.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

using Row = std::shared_ptr<const std::vector<uint8_t>>;

// A mask as a read-only array, which keeps it.
nb::object array_of(Row row) {
    const void *data = row->data();
    const size_t size = row->size();
    nb::capsule owner(new Row(std::move(row)), [](void *kept) noexcept { delete static_cast<Row *>(kept); });
    return nb::cast(nb::ndarray<nb::numpy, const bool, nb::ndim<1>>(data, {size}, owner));
}

std::shared_ptr<Trie> trie_of(nb::handle parents_, nb::handle bytes_, nb::handle node_of_) {
    const Array parents(parents_, Access::read), bytes(bytes_, Access::read), node_of(node_of_, Access::read);
    if (!parents.of<int32_t>(1) || !bytes.of<uint8_t>(1) || !node_of.of<int32_t>(1) || !bytes.same_shape(parents))
        throw nb::value_error("trie: parents, bytes and nodes of tokens do not fit each other");
    return std::make_shared<Trie>(parents.data<int32_t>(), bytes.data<uint8_t>(), parents.size(0), node_of.data<int32_t>(),
                                  node_of.size(0));
}

// The arrays of kernels/automaton.py's Table.
struct Given {
    const Array kinds, starts, parts, low, high, sets, texts, least, depth;
    Table table = {};

    Given(nb::handle from, Access measures)
        : kinds(from.attr("kinds"), Access::read), starts(from.attr("starts"), Access::read),
          parts(from.attr("parts"), Access::read), low(from.attr("low"), Access::read), high(from.attr("high"), Access::read),
          sets(from.attr("sets"), Access::read), texts(from.attr("texts"), Access::read), least(from.attr("least"), measures),
          depth(from.attr("depth"), measures) {
        const bool fits = kinds.of<uint8_t>(1) && starts.of<int32_t>(1) && parts.of<int32_t>(1) && low.of<int64_t>(1) &&
                          high.of<int64_t>(1) && sets.of<uint8_t>(2) && sets.size(1) == 32 && texts.of<uint8_t>(1) &&
                          least.of<double>(1) && depth.of<double>(1) && starts.size(0) == kinds.size(0) + 1 &&
                          low.same_shape(kinds) && high.same_shape(kinds) && least.same_shape(kinds) && depth.same_shape(kinds);
        if (fits)
            table = {kinds.size(0),         parts.size(0),          sets.size(0),          texts.size(0),
                     kinds.data<uint8_t>(), starts.data<int32_t>(), parts.data<int32_t>(), low.data<int64_t>(),
                     high.data<int64_t>(),  sets.data<uint8_t>(),   texts.data<uint8_t>()};
        if (!fits || !table.sound()) throw nb::value_error("automaton: the arrays of the terms do not fit each other");
    }
};

std::vector<int32_t> tokens_of(nb::handle ends_, const Trie &trie) {
    const Array ends(ends_, Access::read);
    bool fits = ends.of<int32_t>(1);
    for (int64_t i = 0; fits && i < ends.size(0); ++i)
        fits = ends.data<int32_t>()[i] >= 0 && ends.data<int32_t>()[i] < trie.tokens();
    if (!fits) throw nb::value_error("automaton: the tokens that end a text are not all in the vocabulary");
    return {ends.data<int32_t>(), ends.data<int32_t>() + ends.size(0)};
}

int32_t root_of(int64_t root, const Table &table) {
    if (root < 0 || root >= table.count) throw nb::value_error("automaton: there is no such term");
    return static_cast<int32_t>(root);
}

// An automaton, and its masks as arrays.
class Handle {
  public:
    Handle(const Given &given, int64_t root, const std::shared_ptr<Trie> &trie, nb::handle ends, int64_t configurations,
           int64_t nbytes)
        : automaton(given.table, given.least.data<double>(), given.depth.data<double>(), root_of(root, given.table), trie,
                    tokens_of(ends, *trie), configurations, nbytes) {}

    nb::object allowed(int32_t number) {
        const size_t place = static_cast<size_t>(automaton.allowed(number));
        if (generation_ != automaton.generation()) {
            generation_ = automaton.generation();
            arrays_.clear();
        }
        if (arrays_.size() <= place) arrays_.resize(place + 1);
        if (!arrays_[place].is_valid()) arrays_[place] = array_of(automaton.allowed_at(static_cast<int32_t>(place)).mask);
        return arrays_[place];
    }

    Automaton automaton;

  private:
    std::vector<nb::object> arrays_;
    int64_t generation_ = 0;
};

// Where a text stands. The interpreter's lock is held throughout: it is what keeps two threads from one automaton.
class Text {
  public:
    explicit Text(std::shared_ptr<Handle> of) : of_(std::move(of)) { of_->automaton.hold(&number_); }
    ~Text() { of_->automaton.let_go(&number_); }
    Text(const Text &) = delete;

    double least() const { return of_->automaton.least(number_); }
    bool accepts() const { return of_->automaton.accepts(number_); }
    bool ended() const { return of_->automaton.ended(number_); }
    nb::object allowed(int64_t left) const {
        Automaton &automaton = of_->automaton;
        if (automaton.closing(number_, left)) {
            auto row = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(automaton.trie().tokens()));
            if (automaton.completing(number_, left, row->data())) return array_of(std::move(row));
        }
        return of_->allowed(number_);
    }
    bool advance(int64_t token) {
        if (token < 0 || token >= of_->automaton.trie().tokens()) return false;
        const int32_t following = of_->automaton.after(number_, static_cast<int32_t>(token));
        if (following == Automaton::dead) return false;
        number_ = following;
        of_->automaton.relieve();
        return true;
    }

  private:
    const std::shared_ptr<Handle> of_;
    int32_t number_ = Automaton::start;
};

}  // namespace

HAVERSACK_BIND(automaton) {
    nb::class_<Trie>(module, "Trie").def("split", [](const Trie &trie, nb::bytes text) {
        return trie.split(static_cast<const uint8_t *>(text.data()), text.size());
    });
    module.def("trie", trie_of, nb::arg("parents"), nb::arg("bytes"), nb::arg("node_of"));
    module.def("measure_terms", [](nb::handle table, const Trie &trie) {
        const Given given(table, Access::write);
        measure(given.table, trie, given.least.data<double>(), given.depth.data<double>());
    });
    nb::class_<Text>(module, "Text")
        .def_prop_ro("least", &Text::least)
        .def_prop_ro("accepts", &Text::accepts)
        .def_prop_ro("ended", &Text::ended)
        .def("allowed", &Text::allowed, nb::arg("left"))
        .def("advance", &Text::advance, nb::arg("token"));
    nb::class_<Handle>(module, "Automaton")
        .def(
            "__init__",
            [](Handle *made, nb::handle table, int64_t root, std::shared_ptr<Trie> trie, nb::handle ends,
               int64_t configurations, int64_t nbytes) {
                const Given given(table, Access::read);
                new (made) Handle(given, root, trie, ends, configurations, nbytes);
            },
            nb::arg("table"), nb::arg("root"), nb::arg("trie"), nb::arg("ends"), nb::arg("configurations"), nb::arg("nbytes"))
        .def_prop_ro("nbytes", [](const Handle &handle) { return handle.automaton.nbytes(); })
        .def_prop_ro("generation", [](const Handle &handle) { return handle.automaton.generation(); });
    module.def("text_of", [](std::shared_ptr<Handle> handle) { return new Text(std::move(handle)); });
}
