"""Streamed pieces add up to the text, no piece is taken back, and stop strings are found wherever tokens split them."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from pagedlab.errors import ModelError
from pagedlab.interfaces.detokenizer import BegunStop, IncrementalDetokenizer, decode_all
from pagedlab.model_authoring.models.provision import resolve_model

MANY = settings(derandomize=True, deadline=None, max_examples=150)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. 1234, again and again!\n",
    "  indented, don't\n\n",
    "héllo 你好 🙂",
]


@lru_cache
def byte_level():
    """A small byte-level BPE, as GPT-2, Llama 3 and SmolLM use: most characters outside ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<tool>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@lru_cache
def sentencepiece():
    """Llama 2's kind: a word's space belongs to its token, the text's first space is dropped, bytes are a fallback."""
    words = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁fox", "▁", "a", "b", "fox", "é"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@lru_cache
def slow():
    """A tokenizer without a Rust backend: one token a byte."""
    return ByT5Tokenizer()


@lru_cache
def default_model():
    try:
        return AutoTokenizer.from_pretrained(resolve_model(None))
    except ModelError as error:
        pytest.skip(f"the default model is not here: {error}")


TOKENIZERS = [byte_level, default_model, slow]

# Text that is hard on a detokenizer: characters of one to four bytes, joined emoji, combining marks, U+FFFD itself.
TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab \n.你好é🙂👩🏽\u200d\u0301\ufffd"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def stream(detokenizer: IncrementalDetokenizer, token_ids, chunks=None) -> list[str]:
    """All deltas, asked for after every token, or only where `chunks` says so; the last one with finished=True."""
    deltas = []
    for i, token_id in enumerate(token_ids):
        detokenizer.append(token_id)
        if detokenizer.stopped_on is not None:
            break
        if chunks is None or chunks[i % len(chunks)]:
            deltas.append(detokenizer.stream_text(finished=False))
    deltas.append(detokenizer.stream_text(finished=True))
    return deltas


@pytest.mark.parametrize("load", TOKENIZERS)
@MANY
@given(prompt=TEXTS, text=TEXTS)
def test_deltas_of_any_text_add_up_to_it(load, prompt, text):
    tokenizer = load()
    prompt_ids, ids = encode(tokenizer, prompt), encode(tokenizer, text)
    # A text whose tokens do not spell it (a tokenizer that normalises) is not ours to repair.
    wanted = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    deltas = stream(IncrementalDetokenizer(tokenizer, prompt_ids), ids)
    assert "".join(deltas) == wanted == decode_all(tokenizer, prompt_ids, ids)
    if "\ufffd" not in wanted:
        assert not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize("load", [byte_level, default_model])
@MANY
@given(data=st.data())
def test_random_tokens_stream_to_what_decoding_them_at_once_gives(load, data):
    tokenizer = load()
    tokens = st.lists(st.integers(0, len(tokenizer) - 1), max_size=40)
    if load is byte_level:  # mostly bytes that are no characters
        tokens = st.one_of(tokens, st.lists(st.sampled_from(encode(tokenizer, "é你🙂a")), max_size=40))
    ids, skip = data.draw(tokens), data.draw(st.booleans())
    deltas = stream(IncrementalDetokenizer(tokenizer, [], skip), ids)
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("load", [byte_level, default_model, sentencepiece, slow])
@MANY
@given(data=st.data())
def test_the_text_only_grows_and_is_the_same_streamed_or_not(load, data):
    tokenizer = load()
    tokens = st.lists(st.integers(0, len(tokenizer) + 20), max_size=25)  # some beyond the tokenizer's vocabulary
    prompt, ids = data.draw(tokens), data.draw(tokens)
    detokenizer, sent = IncrementalDetokenizer(tokenizer, prompt), ""
    for token_id in ids:
        detokenizer.append(token_id)
        sent += detokenizer.stream_text(finished=False)
        assert detokenizer.text == sent  # without stop strings nothing more is held back
    sent += detokenizer.stream_text(finished=True)
    assert sent == detokenizer.text == decode_all(tokenizer, prompt, ids)
    assert detokenizer.stream_text(finished=True) == ""


def test_an_emoji_over_several_tokens_appears_once_and_whole():
    tokenizer = byte_level()
    ids = encode(tokenizer, "👩🏽")
    assert len(ids) > 4
    detokenizer = IncrementalDetokenizer(tokenizer, encode(tokenizer, "hi "))
    seen = []
    for token_id in ids:
        detokenizer.append(token_id)
        seen.append(detokenizer.text)
    assert sorted(set(seen)) == ["", "👩", "👩🏽"]


def test_a_character_begun_in_the_prompt_is_completed_by_the_output():
    tokenizer = byte_level()
    ids = encode(tokenizer, "a🙂b")
    for cut in range(2, len(ids) - 1):
        assert decode_all(tokenizer, ids[:cut], ids[cut:]) == "🙂b"


def test_an_unfinished_character_is_flushed_at_the_end_only():
    tokenizer = byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer)
    for token_id in [*encode(tokenizer, "ok"), encode(tokenizer, "🙂")[0]]:
        detokenizer.append(token_id)
    assert detokenizer.text == "ok" and detokenizer.stream_text(finished=False) == "ok"
    detokenizer.finish()
    assert detokenizer.text == "ok\ufffd" and detokenizer.stream_text(finished=True) == "\ufffd"


@pytest.mark.parametrize("prompt", [["<eos>", "▁the"], ["▁the"], ["▁the", "<eos>"]])
def test_sentencepiece_keeps_the_space_after_the_prompt(prompt):
    tokenizer = sentencepiece()
    token = tokenizer.convert_tokens_to_ids
    output = token(["▁fox", "<eos>", "▁fox", "<0xC3>", "<0xA9>", "▁the"])
    assert decode_all(tokenizer, token(prompt), output) == " fox foxé the"


def test_sentencepiece_drops_the_space_of_a_text_that_begins_with_the_output():
    tokenizer = sentencepiece()
    token = tokenizer.convert_tokens_to_ids
    for prompt in ([], ["<eos>"]):
        assert decode_all(tokenizer, token(prompt), token(["▁fox", "▁the"])) == "fox the"


def test_byte_fallback_does_not_repeat_text_when_a_later_byte_is_wrong():
    tokenizer = sentencepiece()
    output = tokenizer.convert_tokens_to_ids(["a", "<0xC3>", "<0xA9>", "<0xC3>", "b"])
    assert "".join(stream(IncrementalDetokenizer(tokenizer), output)) == "aé\ufffdb"


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_only_on_request(skip):
    tokenizer = byte_level()
    ids = [*encode(tokenizer, "a"), tokenizer.convert_tokens_to_ids("<tool>"), *encode(tokenizer, "b")]
    assert decode_all(tokenizer, [], ids, skip_special_tokens=skip) == ("ab" if skip else "a<tool>b")


def test_a_plain_tokenizers_object_works_too():
    backend = byte_level().backend_tokenizer
    assert decode_all(backend, [], backend.encode("fox 🙂").ids) == "fox 🙂"


def cut_at_stop(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """The definition: read the text character by character until it ends in a stop string; prefer the longest."""
    for end in range(1, len(text) + 1):
        for candidate in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(candidate):
                return text[: end if include else end - len(candidate)], candidate
    return text, None


STOPS = st.lists(st.text(st.sampled_from("abfox 🙂你\n"), min_size=1, max_size=5), max_size=4)
STOP_TEXTS = st.text(st.sampled_from("abfox 🙂你\n"), max_size=40)


@pytest.mark.parametrize("load", TOKENIZERS)
@MANY
@given(
    text=STOP_TEXTS,
    stop=STOPS,
    cut=st.none() | st.tuples(st.integers(0, 30), st.integers(1, 6)),
    include=st.booleans(),
    chunks=st.lists(st.booleans(), min_size=1, max_size=5),
)
def test_stop_strings_cut_the_text_where_the_first_one_is_complete(load, text, stop, cut, include, chunks):
    if cut is not None and text[cut[0] : cut[0] + cut[1]]:
        stop = [*stop, text[cut[0] : cut[0] + cut[1]]]  # one that is sure to be there
    tokenizer = load()
    ids = encode(tokenizer, text)
    wanted, found = cut_at_stop(text, stop, include)
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=stop, include_stop_str_in_output=include)
    deltas = stream(detokenizer, ids, chunks)
    assert (detokenizer.text, detokenizer.stopped_on) == (wanted, found)
    assert "".join(deltas) == wanted == decode_all(tokenizer, [], ids, stop=stop, include_stop_str_in_output=include)


@MANY
@given(text=STOP_TEXTS, stop=STOPS.filter(bool))
def test_only_what_could_become_a_stop_string_is_held_back(text, stop):
    tokenizer = slow()
    detokenizer, sent = IncrementalDetokenizer(tokenizer, [], stop=stop), ""
    for token_id in encode(tokenizer, text):
        detokenizer.append(token_id)
        if detokenizer.stopped_on is not None:
            break
        sent += detokenizer.stream_text(finished=False)
        held = detokenizer.text[len(sent) :]
        assert detokenizer.text.startswith(sent)
        assert not held or any(candidate.startswith(held) for candidate in stop)
        longer = [detokenizer.text[-n:] for n in range(len(held) + 1, len(detokenizer.text) + 1)]
        assert not any(candidate.startswith(end) for candidate in stop for end in longer)


def test_the_stop_string_that_is_complete_first_wins_however_the_tokens_fall():
    tokenizer = slow()
    ids = encode(tokenizer, "xabcdz")
    stop = ["abcd", "bc", "z"]
    assert decode_all(tokenizer, [], ids, stop=stop) == "xa"
    assert decode_all(tokenizer, [], ids, stop=stop, include_stop_str_in_output=True) == "xabc"
    assert decode_all(tokenizer, [], ids, stop=["c", "abc"]) == "x"


def test_tokens_after_a_stop_string_are_ignored():
    tokenizer = slow()
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["b"])
    for token_id in encode(tokenizer, "abab"):
        detokenizer.append(token_id)
    detokenizer.finish()
    assert (detokenizer.text, detokenizer.stopped_on) == ("a", "b")


@pytest.mark.parametrize(("min_tokens", "wanted"), [(0, "a"), (1, "a"), (2, "aba"), (3, "aba"), (4, "abab")])
def test_a_stop_string_within_min_tokens_does_not_count(min_tokens, wanted):
    tokenizer = slow()
    assert decode_all(tokenizer, [], encode(tokenizer, "abab"), stop=["b"], min_tokens=min_tokens) == wanted


def test_text_that_stays_in_any_case_is_streamed_at_once():
    tokenizer = slow()
    included = IncrementalDetokenizer(tokenizer, [], stop=["abc"], include_stop_str_in_output=True)
    passed_over = IncrementalDetokenizer(tokenizer, [], stop=["ab"], min_tokens=9)
    for token_id in encode(tokenizer, "ab"):
        included.append(token_id)
        passed_over.append(token_id)
    assert included.stream_text(finished=False) == passed_over.stream_text(finished=False) == "ab"


def test_prompt_text_is_never_part_of_the_output():
    tokenizer = byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer, encode(tokenizer, "stop"), stop=["stop"])
    assert detokenizer.text == "" and detokenizer.stream_text(finished=True) == ""
    assert detokenizer.stopped_on is None


# ---- what stop strings cost -----------------------------------------------------------------------------------------


@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3), st.lists(st.text("abc", max_size=5)))
def test_held_back_is_the_longest_end_that_may_become_a_stop_string(stops: list[str], pieces: list[str]) -> None:
    begun, text = [BegunStop(stop) for stop in stops], ""
    for piece in pieces:
        text += piece
        for one, stop in zip(begun, stops, strict=True):
            one.extend(piece)
            assert one.length == max(n for n in range(len(stop)) if text.endswith(stop[:n]))


def test_long_stop_strings_cost_a_few_looks_at_each_character() -> None:
    """Lines of code run, not time: 16 strings of 256 characters took 4000 a token, of every client's time."""
    letters = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    letters.decoder = decoders.Fuse()
    stops = ["a" * (240 + n) + "c" for n in range(16)]
    detokenizer, count = IncrementalDetokenizer(letters, [], stop=stops), 0

    def count_lines(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return count_lines

    before = sys.gettrace()
    sys.settrace(count_lines)
    try:
        for _ in range(300):
            detokenizer.append(0)
            detokenizer.stream_text(False)
    finally:
        sys.settrace(before)
    assert detokenizer.text == "a" * 300 and count / 300 < 16 * 20
