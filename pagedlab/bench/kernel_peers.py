"""Other libraries' attention, on dense tensors, as callables that `pagedlab bench kernels` can time.

Each builder takes the inputs, prepares what the library wants (not timed) and returns a call. A builder raises when its
library is missing or refuses the shape; the benchmark then goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Dense:
    """The case without pages: query [batch, query_len, num_heads, d], keys and values [batch, context, kv_heads, d]."""

    query: Tensor
    keys: Tensor
    values: Tensor
    scale: float

    @property
    def group(self) -> int:
        return self.query.shape[2] // self.keys.shape[2]

    @property
    def causal(self) -> bool:
        return self.query.shape[1] > 1

    def heads_first(self, *, repeat: bool) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, heads, length, d], contiguous; with `repeat` one KV head for each query head."""
        query, keys, values = (t.transpose(1, 2) for t in (self.query, self.keys, self.values))
        if repeat:
            keys, values = (t.repeat_interleave(self.group, 1) for t in (keys, values))
        return query.contiguous(), keys.contiguous(), values.contiguous()


Call = Callable[[], Tensor]


def sdpa(dense: Dense) -> Call:
    """PyTorch's choice; flash on a GPU prefill, so that the comparison has a name."""
    query, keys, values = dense.heads_first(repeat=dense.causal)
    flash = query.is_cuda and dense.causal

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if flash else [*ANY_BACKEND]):
            return scaled_dot_product_attention(
                query, keys, values, is_causal=dense.causal, scale=dense.scale, enable_gqa=not dense.causal
            )

    return call


ANY_BACKEND = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def sdpa_cudnn(dense: Dense) -> Call:
    query, keys, values = dense.heads_first(repeat=True)

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(query, keys, values, is_causal=dense.causal, scale=dense.scale)

    return call


def flash_attention(dense: Dense) -> Call:
    from flash_attn import flash_attn_func, flash_attn_with_kvcache

    query, keys, values = dense.query.contiguous(), dense.keys, dense.values
    if dense.causal:
        return lambda: flash_attn_func(query, keys, values, softmax_scale=dense.scale, causal=True)
    return lambda: flash_attn_with_kvcache(query, keys, values, softmax_scale=dense.scale, causal=True)


def flex_attention(dense: Dense) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    if not dense.query.is_cuda:
        raise RuntimeError("compiled FlexAttention is measured on a GPU only")
    torch._dynamo.reset()  # one shape at a time: more than eight would fall back to the uncompiled operator
    query, keys, values = dense.heads_first(repeat=False)
    length = keys.shape[2]
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=query.device)
    compiled = torch.compile(flex, dynamic=False)
    return lambda: compiled(query, keys, values, block_mask=mask, scale=dense.scale, enable_gqa=True)


def flashinfer(dense: Dense) -> Call:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper, single_prefill_with_kv_cache

    batch, length, kv_heads, head_dim = dense.keys.shape
    if dense.causal:
        query, keys, values = dense.query[0].contiguous(), dense.keys[0], dense.values[0]
        return lambda: single_prefill_with_kv_cache(query, keys, values, causal=True, sm_scale=dense.scale)
    page = 16
    pages = length // page
    device = dense.keys.device
    group = dense.query.shape[2] // kv_heads
    workspace = torch.zeros(2**27, dtype=torch.uint8, device=device)
    # As its documentation advises for grouped queries.
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=group >= 4)
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32, device=device) * pages,
        torch.randperm(batch * pages, device=device).to(torch.int32),
        torch.full((batch,), page, dtype=torch.int32, device=device),
        dense.query.shape[2],
        kv_heads,
        head_dim,
        page,
        q_data_type=dense.query.dtype,
        kv_data_type=dense.keys.dtype,
        sm_scale=dense.scale,
    )
    paged = tuple(t.reshape(batch * pages, page, kv_heads, head_dim) for t in (dense.keys, dense.values))
    query = dense.query[:, 0].contiguous()
    return lambda: wrapper.run(query, paged)


PEERS: dict[str, dict[str, Callable[[Dense], Call]]] = {
    "decode": {"sdpa": sdpa, "flash_attn": flash_attention, "flashinfer": flashinfer},
    "prefill": {
        "sdpa": sdpa,
        "sdpa_cudnn": sdpa_cudnn,
        "flex": flex_attention,
        "flash_attn": flash_attention,
        "flashinfer": flashinfer,
    },
}
"""The libraries measured for each kind of case, by the name they have in the table."""
