"""MANO's file, written here instruction by instruction as Python 2 writes it; nothing of it is run."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.mano import FINGERS, PARENTS, TIPS, read_mano


def text(value):
    return b"U" + bytes([len(value)]) + value.encode("latin1")


def number(value):
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def array(values, *, columns=False):
    """numpy's, of Python 2: short data are 8-bit texts with one byte of length."""
    kind = {"f": "f", "i": "i", "u": "u"}[values.dtype.kind] + str(values.dtype.itemsize)
    data = values.tobytes(order="F" if columns else "C")
    raw = b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<I", len(data)) + data
    shape = b"(" + b"".join(number(side) for side in values.shape) + b"t"
    head = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + number(0)
        + b"\x85"
        + text("b")
        + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + text(kind) + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text("<") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    flag = b"\x88" if columns else b"\x89"
    return head + b"(" + number(1) + shape + dtype + flag + raw + b"tb"


def record(name, **state):
    items = b"".join(text(key) + value for key, value in state.items())
    return b"c" + name.replace(" ", "\n").encode() + b"\n)\x81}(" + items + b"ub"


def sparse(matrix, name="scipy.sparse.csc csc_matrix"):
    rows, starts, data = [], [0], []
    for column in matrix.T:
        at = np.flatnonzero(column)
        rows += at.tolist()
        data += column[at].tolist()
        starts.append(len(rows))
    shape = number(matrix.shape[0]) + number(matrix.shape[1]) + b"\x86"
    return record(
        name,
        format=text("csc"),
        maxprint=number(50),
        data=array(np.asarray(data, "<f8")),
        indices=array(np.asarray(rows, "<i4")),
        indptr=array(np.asarray(starts, "<i4")),
        _shape=shape,
    )


def model(seed=0):
    """Vertices, shapes and a regressor that make a plausible right hand."""
    rng = np.random.default_rng(seed)
    vertices = rng.normal(0, 0.01, (778, 3))
    regressor = np.zeros((16, 778))
    joints = np.zeros((16, 3))
    joints[0] = [0.0957, 0.0064, 0.0062]
    across = {1: 0.027, 4: 0.004, 7: -0.033, 10: -0.016}
    for first, side in across.items():
        for bone in range(3):
            joints[first + bone] = joints[0] + [-0.088 - 0.028 * bone - 0.004 * (first == 4), 0.001, side]
    for bone in range(3):
        joints[13 + bone] = joints[0] + [-0.024 - 0.022 * bone, -0.012, 0.026 + 0.026 * bone]
    for at in range(16):
        vertices[at] = joints[at]
        regressor[at, at] = 0.75
        regressor[at, 100 + at] = 0.25
        vertices[100 + at] = joints[at]
    for first, tip in zip(FINGERS, TIPS, strict=True):
        vertices[tip] = 2 * joints[first + 2] - joints[first + 1]
    shapes = rng.normal(0, 1e-4, (778, 3, 10))
    shapes[:, :, 0] += 0.02 * (vertices - joints[0])  # the first parameter makes it larger
    return vertices, shapes, regressor, joints


def tree():
    parents = np.asarray(PARENTS, "<i8")
    return np.stack([np.where(parents < 0, 2**32 - 1, parents), np.arange(16)]).astype("<i8")


def pickled(vertices, shapes, regressor, *, shaped=None, **more):
    fields = {
        "hands_mean": array(np.zeros(45)),
        "f": array(np.zeros((1538, 3), "<u4")),
        "bs_style": text("lbs"),
        "v_template": array(vertices),
        "shapedirs": array(shapes) if shaped is None else shaped,
        "J_regressor": sparse(regressor),
        "kintree_table": array(tree().astype("<u4")),
        "weights": array(np.zeros((778, 16)), columns=True),
        **more,
    }
    return b"\x80\x02}q\x01(" + b"".join(text(key) + value for key, value in fields.items()) + b"u."


@pytest.mark.parametrize("how", ["array", "chumpy", "select", "columns"])
def test_the_file_is_read_however_its_shapes_are_wrapped(tmp_path, how):
    vertices, shapes, regressor, joints = model()
    shaped = None
    if how == "chumpy":
        dirty = b"c__builtin__\nset\n]\x85R"
        shaped = record("chumpy.ch Ch", x=array(shapes), _dirty_vars=dirty, _itr=b"N")
    elif how == "select":
        inner = record("chumpy.ch Ch", x=array(np.concatenate([shapes, shapes], 2)))
        at = np.arange(778 * 3 * 20).reshape(778, 3, 20)[..., :10].ravel()
        preferred = number(778) + number(3) + number(10) + b"\x87"
        shaped = record("chumpy.reordering Select", a=inner, idxs=array(at), preferred_shape=preferred)
    elif how == "columns":
        shaped = array(shapes, columns=True)
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickled(vertices, shapes, regressor, shaped=shaped))
    found = read_mano(path)
    assert found.right and found.rest.shape == (21, 3) and not found.rest[0].any()
    for finger, first in enumerate(FINGERS):
        own = found.rest[1 + 4 * finger : 4 + 4 * finger]
        assert own == pytest.approx(joints[first : first + 3] - joints[0], abs=1e-12)
        assert found.rest[4 + 4 * finger] == pytest.approx(vertices[TIPS[finger]] - joints[0], abs=1e-12)
    wanted = np.einsum("jv,vck->jck", regressor, shapes)
    assert found.moves[5] == pytest.approx(wanted[1] - wanted[0], abs=1e-12)


def test_an_npz_says_the_same(tmp_path):
    vertices, shapes, regressor, _ = model()
    (tmp_path / "MANO_LEFT.pkl").write_bytes(pickled(vertices, shapes, regressor))
    with (tmp_path / "left.npz").open("wb") as file:
        np.savez(file, v_template=vertices, shapedirs=shapes, J_regressor=regressor, kintree_table=tree())
    one, two = read_mano(tmp_path / "MANO_LEFT.pkl"), read_mano(tmp_path / "left.npz")
    assert one.rest == pytest.approx(two.rest) and not one.right and not two.right


def test_files_that_are_no_hand_are_refused(tmp_path):
    vertices, shapes, regressor, _ = model()
    whole = pickled(vertices, shapes, regressor)
    cases = {
        "code": (whole.replace(b"cnumpy\nndarray", b"cposix\nsystem\n", 1), "posix.system"),
        "cut": (whole[: len(whole) // 2], "middle"),
        "no list": (b"\x80\x02]q\x01.", "dictionary"),
        "absent": (pickled(vertices, shapes, regressor).replace(b"v_template", b"v_templatX"), "v_template"),
        "shape": (pickled(vertices[:700], shapes, regressor), "v_template"),
        "tree": (pickled(vertices, shapes, regressor, kintree_table=array(np.zeros((2, 16), "<u4"))), "hang"),
        "not finite": (pickled(vertices * np.nan, shapes, regressor), "v_template"),
        "columns": (
            pickled(vertices, shapes, regressor, J_regressor=record("scipy.sparse.csc csc_matrix")),
            "lacks",
        ),
    }
    for name, (data, why) in cases.items():
        path = tmp_path / f"{name}-RIGHT.pkl"
        path.write_bytes(data)
        with pytest.raises(DamagedFileError, match=why):
            read_mano(path)
    for name, why in (("MANO.pkl", "LEFT or RIGHT"), ("gone-RIGHT.pkl", "cannot be read")):
        if "gone" not in name:
            (tmp_path / name).write_bytes(whole)
        with pytest.raises(UserError, match=why):
            read_mano(tmp_path / name)
