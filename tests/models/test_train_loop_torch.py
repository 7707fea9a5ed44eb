"""The plain training loop: what matrices are multiplied in."""

from __future__ import annotations

import pytest
import torch

from haversack.models._train_loop_torch import compute_type, computing, orthogonalized

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_without_bfloat16_multiplies_in_float32(
    monkeypatch: pytest.MonkeyPatch, has: bool, kind: torch.dtype
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    layer = torch.nn.Linear(8, 4)
    with computing(CPU):
        assert layer(torch.ones(2, 8)).dtype == kind
    assert compute_type(CPU) == kind
    assert compute_type(torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("has", [True, False])
def test_an_orthogonalized_matrix_is_nearly_orthogonal_in_either(
    monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    matrices = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(3))
    singular = torch.linalg.svdvals(orthogonalized(matrices))
    assert singular.min() > 0.6 and singular.max() < 1.3
