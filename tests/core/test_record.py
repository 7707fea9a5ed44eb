import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core import _record
from haversack.core.pack import pack_schema

DOCS = Path(__file__).resolve().parents[2] / "docs"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(provenance=st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_record_of_any_content_reads_back_and_any_changed_byte_is_noticed(provenance):
    record = _record.PackRecord(
        format=(1, 0), kind="language", provenance=provenance, tensors=(), files={}, crc32=""
    )
    data = _record.encode_record(record)
    assert _record.decode_record(data).provenance == provenance
    assert json.loads(data)["provenance"] == provenance
    for at in {0, len(data) // 3, len(data) - 2}:
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            _record.decode_record(changed)
        except ValueError:
            continue
        raise AssertionError(f"byte {at} was changed and not noticed")


def test_a_record_that_itself_speaks_of_checksums_is_sealed_at_its_end():
    tricky = {"crc32": "deadbeef", "x": '"crc32":"00000000"'}
    record = _record.PackRecord(
        format=(1, 0),
        kind="language",
        provenance=tricky,
        measurements=[tricky],
        tensors=(),
        files={},
        crc32="",
    )
    assert _record.decode_record(_record.encode_record(record)).provenance == tricky


def test_the_published_schema_is_the_one_in_use():
    published = json.loads((DOCS / "schemas" / "pack.schema.json").read_text())
    assert published == pack_schema()


def test_the_page_names_every_field_and_kind():
    page = (DOCS / "format.md").read_text()
    fields = pack_schema()["$defs"]
    for record in ("PackRecord", "TensorEntry", "FileEntry"):
        for name in fields[record]["properties"]:
            assert f"`{name}`" in page, name
    for kind in (*_record.PACK_KINDS, *_record.PLAIN_KINDS, *_record.PACKED_KINDS):
        assert f"`{kind}`" in page, kind
