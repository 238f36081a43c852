"""A part of the fuzzing that is the same each time; `make fuzz` tries more. And the tool itself."""

from __future__ import annotations

import io
import json
import pickle
import random

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from .damage import FORMS, damaged
from .judge import Judge
from .kinds import all_kinds
from .misbehaving import MISBEHAVING


@pytest.fixture(scope="module")
def judge():
    with Judge() as one:
        yield one


@pytest.mark.parametrize("name", [name for name, kind in all_kinds().items() if kind.cases])
def test_damaged_files_keep_the_rule(judge, name):
    kind = all_kinds()[name]
    if kind.needs:
        pytest.importorskip(kind.needs)
    assert not judge.check_sound(kind)
    cases = [judge.by_hand(kind, hostile) for hostile in kind.hostile]
    cases += [judge.by_chance(kind, 0, number) for number in range(kind.cases)]
    assert [str(case) for case in cases if case.verdict] == []


WORDS = {
    "dies": "died with status",
    "hangs": "hangs",
    "grows": "MemoryError",
    "leaves": "files left: left",
    "writes": "inputs changed: a.txt",
    "noise": "libpng error",
    "bug": "KeyError",
    "lines": "2 lines",
    "nameless": "without the name",
    "refused": "",
    "sound": "",
}


@pytest.mark.parametrize("word", WORDS)
def test_judge_sees_what_breaks_the_rule(judge, word):
    case = judge.by_hand(MISBEHAVING, word)
    assert WORDS[word] in case.verdict
    assert bool(case.verdict) == bool(WORDS[word])
    if not case.verdict:
        assert case.status == {"refused": 2, "sound": 0}[word]


def _sound(form: str) -> bytes:
    """Some file of a form."""
    tree = {"a": [1, 2.5, {"b": "x"}], "c": None, "d": "e"}
    out = io.BytesIO()
    if form == "zip":
        np.savez(out, a=np.arange(9), b=np.eye(3))
    elif form == "npy":
        np.save(out, np.eye(3))
    elif form == "png":
        Image.new("RGB", (9, 7)).save(out, "png")
    elif form == "safetensors":
        return save({"x": np.eye(3)}, {"config": json.dumps(tree)})
    else:
        return pickle.dumps(tree) if form == "pickle" else json.dumps(tree).encode()
    return out.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_damage_depends_on_the_seed_alone(form):
    results = [damaged(random.Random(seed), _sound(form), form) for seed in range(40)]
    assert results == [damaged(random.Random(seed), _sound(form), form) for seed in range(40)]
    assert len(set(results)) > 20
