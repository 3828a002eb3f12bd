"""Packed weights give what F.linear gives, and the layer falls back to it where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import dense_attention, make_tiny_model, oracle_logits
from torch import Tensor, nn

from pagedlab.model_authoring.models import packing
from pagedlab.model_authoring.models.layers import Linear
from pagedlab.model_authoring.models.loader import load_model
from pagedlab.model_authoring.models.packing import pack_weight, packed_linear, packing_works

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(576, 64), (96, 17), (1, 33), (130, 129)]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled_linear(in_features: int, parts: dict[str, int], *, bias: bool, dtype: torch.dtype = torch.float32) -> Linear:
    layer = Linear(in_features, parts, bias=bias)
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(random(*parameter.shape, dtype=dtype, seed=3), requires_grad=False))
    return layer


@pytest.fixture
def fresh_feature_test() -> Iterator[None]:
    packing_works.cache_clear()
    yield
    packing_works.cache_clear()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 512])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_packed_product_is_a_plain_product(dtype: torch.dtype, rows: int, shape: tuple[int, int], bias: bool) -> None:
    if not packing_works(dtype):
        pytest.skip(f"no packed {dtype} products on this processor")
    out_features, in_features = shape
    weight, x = random(out_features, in_features, dtype=dtype), random(rows, in_features, dtype=dtype, seed=1)
    offset = random(out_features, dtype=dtype, seed=2) if bias else None
    result = packed_linear(x, pack_weight(weight), offset)
    exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    # A sum of k products of size 1 takes k roundings of partial sums in float32, then one to dtype.
    rounding, summing = torch.finfo(dtype).eps, 4 * in_features * torch.finfo(torch.float32).eps
    torch.testing.assert_close(result.double(), exact, rtol=rounding, atol=summing)
    torch.testing.assert_close(result, F.linear(x, weight, offset), rtol=2 * rounding, atol=2 * summing)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packing_keeps_the_result_and_frees_the_original(dtype: torch.dtype) -> None:
    layer, x = filled_linear(24, {"only": 40}, bias=True, dtype=dtype), random(5, 24, dtype=dtype)
    before = layer(x)
    layer.pack()
    assert layer.weight is None or not packing_works(dtype)
    torch.testing.assert_close(layer(x), before, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_fused_projections_stand_side_by_side_in_the_output() -> None:
    layer, x = filled_linear(24, {"q_proj": 8, "k_proj": 4, "v_proj": 4}, bias=True), random(3, 24)
    assert layer.weight is not None and layer.bias is not None
    weights, biases = layer.weight.split([8, 4, 4]), layer.bias.split([8, 4, 4])
    separate = [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    torch.testing.assert_close(layer(x), torch.cat(separate, dim=1))


def raising(*_: object) -> Tensor:
    raise RuntimeError("no such operator")


def wrong(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.zeros(len(x), 48, dtype=x.dtype)


@pytest.mark.parametrize(("name", "replacement"), [("pack_weight", raising), ("packed_linear", wrong)])
@pytest.mark.usefixtures("fresh_feature_test")
def test_without_working_packed_products_the_model_runs_on_plain_ones(
    name: str, replacement: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packing, name, replacement)
    assert not packing_works(torch.float32)
    path = make_tiny_model(tmp_path, "qwen2")
    model = load_model(path, dtype=torch.float32, device="cpu")
    assert all(module.packed is None for module in model.modules() if isinstance(module, Linear))

    tokens = torch.randint(0, 128, (30,), generator=torch.Generator().manual_seed(0))
    logits = model.compute_logits(model(tokens, torch.arange(30), dense_attention))
    torch.testing.assert_close(logits, oracle_logits(path, tokens), rtol=0, atol=1e-4)


def test_a_tied_embedding_stays_readable_after_its_head_is_packed(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, tie_word_embeddings=True)
    model = load_model(path, dtype=torch.float32, device="cpu")
    rows = model.model.embed_tokens(torch.tensor([3, 5]))
    torch.testing.assert_close(
        model.compute_logits(rows), F.linear(rows, model.model.embed_tokens.weight), rtol=0, atol=1e-5
    )
