"""The course as data: each chapter's question and files, and the files in the order a token meets them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """One notebook.

    Attributes:
        name: of its file, without the ending: "03_kv_cache"
        title: as people say it
        question: what the reader can answer afterwards
        modules: files or folders of the package that it explains, relative to it
    """

    name: str
    title: str
    question: str
    modules: tuple[str, ...] = ()

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def topic(self) -> str:
        """The name without its number."""
        return self.name[3:]


CHAPTERS = (
    Chapter(
        "00_start_here",
        "Start here",
        "What does a finished engine do that a loop around a model does not?",
        ("interfaces/llm.py",),
    ),
    Chapter(
        "01_training_vs_inference",
        "Training and inference",
        "Why can one token cost as much time as sixty-four?",
        ("simulate/roofline.py", "runtime/worker.py"),
    ),
    Chapter(
        "02_attention_and_masks",
        "Attention and masks",
        "Where do tokens meet, and what keeps the future out?",
        ("basics/attention.py", "basics/masks.py", "model_authoring/models/transformer.py"),
    ),
    Chapter(
        "03_kv_cache",
        "The KV cache",
        "Which work does a naive loop repeat, and what does remembering it cost?",
        ("basics/generation.py", "basics/kv_size.py", "runtime/cache_engine.py"),
    ),
    Chapter(
        "04_fragmentation",
        "Fragmentation",
        "Why does memory run out while most of it holds nothing?",
        ("simulate/allocators",),
    ),
    Chapter(
        "05_virtual_memory",
        "Virtual memory",
        "How did operating systems solve this, sixty years ago?",
        ("simulate/virtual_memory.py", "model_authoring/block_pool.py"),
    ),
    Chapter(
        "06_chunked_prefill",
        "Chunked prefill",
        "How does one long prompt freeze everybody else, and what does it cost not to?",
        ("model_authoring/scheduler.py",),
    ),
    Chapter(
        "07_paged_attention",
        "PagedAttention",
        "How can attention read memory that lies in scattered blocks, and stay exact?",
        (
            "model_authoring/block_manager.py",
            "model_authoring/block_pool.py",
            "runtime/cache_engine.py",
            "runtime/attention",
        ),
    ),
    Chapter(
        "08_paged_attention_in_triton",
        "PagedAttention in Triton",
        "What does a GPU kernel do that PyTorch operations cannot?",
        ("runtime/kernels",),
    ),
    Chapter(
        "09_static_and_dynamic_batching",
        "Static and dynamic batching",
        "How much of a padded batch is thrown away?",
    ),
    Chapter(
        "10_continuous_batching",
        "Continuous batching",
        "How do requests come and go while the batch runs on?",
        ("model_authoring/scheduler.py", "model_authoring/model_executor.py", "runtime/batch.py"),
    ),
    Chapter(
        "11_three_layers",
        "The three layers",
        "What happens to one request, from its text to the answer?",
        (
            "interfaces/engine.py",
            "model_authoring/request.py",
            "model_authoring/scheduler.py",
            "model_authoring/model_executor.py",
            "runtime/worker.py",
            "runtime/sampler.py",
            "interfaces/detokenizer.py",
        ),
    ),
    Chapter(
        "12_serving",
        "Serving",
        "How does an engine answer many people over HTTP, and how much can it promise?",
        ("interfaces/openai_server", "interfaces/async_engine.py"),
    ),
    Chapter(
        "13_on_a_gpu",
        "On a GPU",
        "How near is the engine to what the hardware allows?",
        ("runtime/kernels", "runtime/decode_graphs.py"),
    ),
)

TOKEN_WAY = (
    "interfaces/openai_server",
    "interfaces/async_engine.py",
    "interfaces/llm.py",
    "interfaces/engine.py",
    "model_authoring/request.py",
    "model_authoring/scheduler.py",
    "model_authoring/block_manager.py",
    "model_authoring/block_pool.py",
    "model_authoring/model_executor.py",
    "runtime/batch.py",
    "runtime/worker.py",
    "model_authoring/models/transformer.py",
    "runtime/cache_engine.py",
    "runtime/attention",
    "runtime/kernels",
    "runtime/decode_graphs.py",
    "runtime/sampler.py",
    "interfaces/detokenizer.py",
)
"""The engine's files in the order in which a request, and then its next token, meets them."""


def files_beside_the_way() -> list[str]:
    """Files that chapters explain and no token meets: first principles and simulators, in chapter order."""
    explained = [module for chapter in CHAPTERS for module in chapter.modules]
    return [module for module in dict.fromkeys(explained) if module not in TOKEN_WAY]
