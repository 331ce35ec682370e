"""Files that claim to be an adapter: whatever they are, they are taken only if they keep every rule."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import lora
from domain.errors import InvalidError
from domain.lora import CONFIG, WEIGHTS
from domain.models import NOISE, Decoder, Model
from tests import adapter as made
from workers import adapter_files
from workers.adapter_files import Checked, check, listing_digest

FIRST = f"{made.PREFIX}.0.self_attn.q_proj.lora_A.weight"
LAST = f"{made.PREFIX}.1.fc2.lora_B.weight"
PACKED = made.packed(made.weights())
LENGTH = int.from_bytes(PACKED[:8], "little")
HEADER = json.loads(PACKED[8 : 8 + LENGTH])


def refused(folder: Path, content: bytes | None = None, model: Model | None = NOISE, **changes: Any) -> str:
    made.write(folder, content, **changes)
    with pytest.raises(InvalidError) as caught:
        check(folder, model)
    return str(caught.value)


def accepted(folder: Path, content: bytes | None = None, model: Model | None = NOISE, **changes: Any) -> Checked:
    return check(made.write(folder, content, **changes), model)


def with_entry(name: str, **facts: Any) -> bytes:
    """The header lies about a tensor."""
    return made.packed(made.weights(), **{name: {**HEADER[name], **facts}})


@pytest.mark.parametrize("model", [NOISE, None])
def test_what_peft_saves_is_taken(tmp_path: Path, model: Model | None) -> None:
    checked = accepted(tmp_path, model=model)
    assert checked.rank == 2
    assert [file.name for file in checked.files] == [CONFIG, WEIGHTS]
    assert checked.size == sum((tmp_path / name).stat().st_size for name in (CONFIG, WEIGHTS))
    assert checked.sha256 == listing_digest(checked.files)
    again = check(tmp_path, model)
    assert again.sha256 == checked.sha256, "what is kept is what was checked"


def test_the_decoder_may_have_been_wrapped_by_itself(tmp_path: Path) -> None:
    shorter = {name.replace("model.decoder.model", "model.model"): tensor for name, tensor in made.weights().items()}
    accepted(tmp_path, made.packed(shorter))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_taken_and_its_numbers_are_looked_at(tmp_path: Path, kind: str) -> None:
    def halved(tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return tensor.astype(np.float16) if kind == "float16" else (tensor.view(np.uint32) >> 16).astype(np.uint16)

    weights = {name: halved(tensor) for name, tensor in made.weights().items()}
    accepted(tmp_path, made.packed(weights))
    broken = {**made.weights()}
    broken[LAST] = broken[LAST].copy()
    broken[LAST][3, 1] = np.inf
    spoilt = made.packed({name: halved(tensor) for name, tensor in broken.items()})
    assert f"numbers in {LAST} that are not finite" in refused(tmp_path, spoilt)


def test_ranks_and_scales_may_differ_by_module(tmp_path: Path) -> None:
    weights = made.weights()
    for layer in range(2):
        for half, axis in (("A", 0), ("B", 1)):
            name = f"{made.PREFIX}.{layer}.fc1.lora_{half}.weight"
            weights[name] = np.concatenate([weights[name]] * 2, axis)
    content = made.packed(weights)
    assert accepted(tmp_path, content, rank_pattern={"fc1": 4}, alpha_pattern={"fc1": 1.5}).rank == 4
    assert "has the shape [4, 64]" in refused(tmp_path, content)
    assert "it must be [4, 64]" in refused(tmp_path, rank_pattern={"fc1": 4})
    accepted(tmp_path, content, rank_pattern={"fc1": 4, "layers.0.fc1": 2}, use_rslora=True)
    assert "names 'layers.7.fc1' in rank_pattern" in refused(tmp_path, content, rank_pattern={"layers.7.fc1": 4})
    assert "plain module names" in refused(tmp_path, content, rank_pattern={".*fc1": 4})


CONFIGS: dict[str, tuple[Any, str]] = {
    "peft_type": ("LOHA", "must be LORA"),
    "r": (129, "must be a whole number from 1 to 128"),
    "lora_alpha": (0, "must be a number over 0"),
    "target_modules": ("all-linear", "must be a list of names that end in q_proj"),
    "bias": ("all", "must be none"),
    "modules_to_save": (["lm_heads"], "which the studio cannot run; train without it"),
    "use_dora": (True, "which the studio cannot run"),
    "fan_in_fan_out": (True, "which the studio cannot run"),
    "layer_replication": ([[0, 1]], "which the studio cannot run"),
    "init_lora_weights": ("pissa", "which leave the base model as it is"),
    "lora_dropout": (1.5, "a number from 0 to 1"),
    "use_rslora": ("yes", "true or false"),
    "invented": (0, "which the studio cannot run"),
    "alpha_pattern": ({"fc1": "2"}, "an object of plain module names"),
    "revision": (5, "a text or null"),
    "layers_to_transform": (["all"], "a list of numbers"),
    "auto_mapping": ([], "an object of texts"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_asks_for_more_is_refused(tmp_path: Path, name: str) -> None:
    value, words = CONFIGS[name]
    said = refused(tmp_path, **{name: value})
    assert f"has '{name}' of {value!r}" in said
    assert words in said


def test_a_configuration_that_lacks_what_matters_is_refused(tmp_path: Path) -> None:
    made.write(tmp_path)
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        left = {key: value for key, value in made.config().items() if key != name}
        (tmp_path / CONFIG).write_text(json.dumps(left))
        with pytest.raises(InvalidError, match=f"lacks {name}"):
            check(tmp_path, None)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(InvalidError, match=f"There is no {CONFIG}"):
        check(tmp_path, None)


def named(name: str) -> bytes:
    return made.packed({**made.weights(), name: np.zeros((2, 64), np.float32)})


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    weights = made.weights()
    change(weights)
    return made.packed(weights)


BAD: dict[str, tuple[bytes, str]] = {
    "zip": (b"PK\3\4" + PACKED, "is a ZIP archive, as torch.save writes"),
    "pickle": (b"\x80\5" + PACKED, "is a pickle, which can run programs"),
    "gzip": (b"\x1f\x8b" + PACKED, "is compressed by gzip"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "empty": (b"", "has 0 bytes"),
    "cut in the header": (PACKED[:200], "it is cut. Send it again."),
    "cut in the numbers": (PACKED[:-1], "it is cut. Send it again."),
    "with a tail": (PACKED + b"\0", "something else follows"),
    "huge header": (
        b"\xff" * 8 + PACKED,
        "header of 18,446,744,073,709,551,615 bytes; the limit is 4,000,000",
    ),
    "long header": ((4_000_001).to_bytes(8, "little") + b"{" * 100, "the limit is 4,000,000"),
    "no object": (made.framed(b"[]", b""), "does not begin with {"),
    "no JSON": (made.framed(b"{NaN}", b""), "is no JSON object"),
    "NaN in JSON": (made.framed(b'{"x": NaN}', b""), "NaN is no JSON"),
    "deep": (made.framed(b'{"x":' * 50_000, b""), "is no JSON object"),
    "long number": (made.framed(b'{"x":' + b"9" * 10_000 + b"}", b""), "is no JSON object"),
    "no UTF-8": (made.framed(b'{"\xff": 1}', b""), "is no JSON object"),
    "twice": (made.framed(b'{"a":1,"a":2}', b""), "a name stands in it twice"),
    "metadata": (made.packed(made.weights(), __metadata__={"a": 1}), "__metadata__"),
    "no weights": (made.packed({}), "has no weights"),
    "no tensor": (made.packed(made.weights(), x=5), "tells of 'x' what no tensor has"),
    "negative": (with_entry(FIRST, shape=[-2, -64]), "what no tensor has"),
    "enormous": (with_entry(FIRST, shape=[2**60, 2**60]), "what no tensor has"),
    "larger shape": (with_entry(FIRST, shape=[4, 64]), "takes 512 bytes"),
    "overlapping": (with_entry(LAST, data_offsets=HEADER[FIRST]["data_offsets"]), "begins at byte 0 of the numbers"),
    "hole": (with_entry(FIRST, shape=[0, 0], data_offsets=[0, 0]), "begins at byte 512 of the numbers, not at 0"),
    "kind": (with_entry(FIRST, dtype="I32"), "is 'I32'; it must be one of F32, F16, BF16"),
    "mixed": (with_entry(LAST, dtype="F16", shape=[64, 4]), "it must be F32, as the first"),
    "one size": (with_entry(FIRST, shape=[128]), "LoRA weights have two sizes"),
    "foreign": (named("base_model.model.text_encoder.block.0.lora_A.weight"), "only q_proj, k_proj, v_proj, out_proj"),
    "head": (named("base_model.model.decoder.lm_heads.0.lora_A.weight"), "only q_proj, k_proj"),
    "embedding": (named(FIRST.replace("lora_A.weight", "lora_embedding_A")), "only q_proj, k_proj"),
    "magnitude": (named(FIRST.replace("lora_A", "lora_magnitude_vector")), "only q_proj, k_proj"),
    "layer": (named(FIRST.replace("layers.0", "layers.7")), "has lora_A alone"),
    "half": (changed(lambda weights: weights.pop(FIRST)), "has lora_B alone; both lora_A and lora_B are needed"),
    "other model": (made.packed(made.weights(decoder=Decoder(layers=2, hidden=32, inner=128))), "it must be [2, 64]"),
    "more layers": (made.packed(made.weights(decoder=Decoder(layers=3, hidden=64, inner=128))), "has 2 layers"),
    "fewer modules": (made.packed(made.weights(targets=["fc1"])), "names 'q_proj' in target_modules, but"),
    "NaN": (changed(lambda weights: weights.update({FIRST: np.full((2, 64), np.nan, np.float32)})), "not finite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_not_what_it_claims_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    content, words = BAD[kind]
    assert words in refused(tmp_path, content)


def test_more_than_the_limit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_files, "MAX_WEIGHTS", len(PACKED) - 1)
    assert f"has {len(PACKED):,} bytes; the limit is {len(PACKED) - 1:,}" in refused(tmp_path)


def test_weights_of_an_unknown_model_have_to_fit_each_other(tmp_path: Path) -> None:
    assert "by the rank in adapter_config.json and that of the other weights width" in refused(
        tmp_path,
        changed(lambda weights: weights.update({LAST: np.zeros((32, 2), np.float32)})),
        model=None,
    )


def test_weights_that_the_configuration_does_not_name_are_refused(tmp_path: Path) -> None:
    assert "which target_modules of adapter_config.json does not name" in refused(tmp_path, target_modules=["fc1"])


def obeys(tensors: dict[str, Any], size: int) -> bool:
    """The rules, written another way."""
    expected = {
        f"{path}.lora_{half}.weight": [2, inputs] if half == "A" else [outputs, 2]
        for path, (inputs, outputs) in made.modules().items()
        for half in "AB"
    }
    if {name: facts["shape"] for name, facts in tensors.items()} != expected:
        return False
    spans = sorted(facts["data_offsets"] for facts in tensors.values())
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    return starts == [0, *ends[:-1]] and ends[-1] == size


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, len(PACKED) - 1) | st.integers(0, LENGTH + 7), st.integers(0, 255)),
        min_size=1,
        max_size=3,
    )
)
def test_a_changed_byte_never_crashes_the_check_and_never_passes_against_the_rules(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(PACKED)
    for place, value in changes:
        content[place] = value
    made.write(tmp_path, bytes(content))
    try:
        check(tmp_path, NOISE)
    except InvalidError:
        return
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    assert obeys(header, len(content) - 8 - length)
    assert np.isfinite(np.frombuffer(bytes(content[8 + length :]), "<f4")).all()


@given(st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_no_bytes_crash_the_check(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path, content)
    framed = made.framed(b"{" + content, content)
    assert refused(tmp_path, framed)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*made.config(), "novel", "a/b~c"]), values)
def test_whatever_a_configuration_says_its_check_ends_in_sentences(name: str, value: Any) -> None:
    config = {**made.config(), name: value}
    faults = [*lora.config_faults(config, NOISE)]
    if faults:
        assert all(fault.detail.endswith(".") and fault.pointer.startswith("/config/") for fault in faults)
        return
    tensors = [
        lora.Tensor(name=path, dtype="F32", shape=tensor.shape, start=0, end=0)
        for path, tensor in made.weights().items()
    ]
    list(lora.weight_faults(config, tensors, NOISE))
    assert 1 <= lora.rank(config) <= lora.MAX_RANK
