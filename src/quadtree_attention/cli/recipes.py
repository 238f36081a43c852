"""Recipes as data, before Lightning's command line makes objects of them; and what that says of a mistake, in one line."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..extras import require

MOST_VALUES, MOST_BYTES = 100_000, 4 << 20
_SUFFIXES = (".yaml", ".yml", ".json")


def check_recipes(arguments: list[str]) -> None:
    """Make sure that the files that are named as recipes are small, plain mappings.

    Raises:
        ValueError: not text, not YAML, no mapping, a key twice; an anchor that holds itself, or that many times that it has no end.
    """
    for path in _named(arguments):
        try:
            content = path.read_bytes()
            if len(content) > MOST_BYTES:
                raise InputError(f"{path} has {len(content)} bytes, expected a recipe of at most {MOST_BYTES}")
            _check(content.decode(), path)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}), expected a recipe in YAML"
            ) from None
        except RecursionError:
            raise InputError(f"{path} is nested too deeply, expected a recipe") from None


def _named(arguments: list[str]) -> Iterable[Path]:
    before = ""
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("-") else argument
        path = Path(value)
        if value and (
            before in ("--config", "-c") or argument.startswith("--config=") or value.lower().endswith(_SUFFIXES)
        ):
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder, expected a recipe, a file in YAML")
            if argument.startswith("--config=") or before in ("--config", "-c") or path.is_file():
                if not path.is_file():
                    raise FileNotFoundError(f"{path} does not exist, expected a recipe, a file in YAML")
                yield path
        before = argument


def _check(text: str, path: Path) -> None:
    yaml = require("yaml", "train")
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(
            f"{path}{place}: not YAML: {getattr(error, 'problem', None) or str(error).splitlines()[0]}"
        ) from None
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path} is no recipe, expected a mapping with keys such as model, data and trainer")
    sizes: dict[int, int] = {}  # of nodes that were seen, 0 while they are looked at

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 0
            sizes[id(node)] = 1 + sum(map(size, _parts(node, yaml, path)))
        elif sizes[id(node)] == 0:
            raise InputError(
                f"{path}, line {node.start_mark.line + 1}: the anchor holds itself, expected values that end"
            )
        return sizes[id(node)]

    if size(root) > MOST_VALUES:
        raise InputError(f"{path} has anchors that make {size(root):.0e} values of it, expected at most {MOST_VALUES}")


def _parts(node: Any, yaml: Any, path: Path) -> list[Any]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    names = [
        key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
    ]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(
            f"{path}, line {node.start_mark.line + 1}: {twice[0][:80]!r} is there twice, expected each key once"
        )
    return [part for pair in node.value for part in pair]


def check_nulls(section: str, config: Any) -> None:
    """Make sure that no argument of a class is null that may not be, which the parser lets through.

    section: "model" or "data"; config: its class_path and init_args.

    Raises:
        ValueError: the first such argument.
    """
    if config is None or not config.get("init_args"):
        return
    module, _, name = config.class_path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    for key, value in config.init_args.items():
        kind = str(parameters[key].annotation) if key in parameters else "None"
        if value is None and not any(word in kind for word in ("None", "Optional", "Any")):
            raise InputError(f"--{section}.{key} is null, expected {kind}")


def one_line(text: str) -> str:
    """What the parser says of a mistake: key, value and what was expected."""
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    text = " ".join(lines)
    keys = re.findall(r'Parser key "([\w.]+)"', text)
    key = ".".join(dict.fromkeys(keys))
    given = re.search(rf"(?:Given value|Got value): (.*?)(?=$| Expected |{_ENDS})", text)
    nested = re.search(r"unrecognized arguments: --([\w.]+)", text) if key else None
    if unknown := re.search(r"Option '([\w.]+)' is not accepted", text) or nested:
        return f"--{key}.{unknown[1]} is unknown" if key else f"--{unknown[1]} is unknown"
    if missing := re.search(r"No module named '([\w.]+)'|module '[\w.]+' has no attribute '\w+'", text):
        return f"--{key}: {missing[0][0].lower()}{missing[0][1:]}; expected the path of a class, such as package.module.Class"
    types = re.findall(rf"Expected (?:an? )?(.*?)(?=$|\. Got| Given| Expected |{_ENDS})", text)
    expected = list(dict.fromkeys(filter(None, map(_expected, types))))
    if not key or given is None or not expected:
        return _short(
            re.sub(r'Parser key "([\w.]+)"', r"--\1", " ".join(line for line in lines if not line.startswith(_LISTED)))
        )
    return _short(f"--{key} is {_short(given[1].strip(), 80)}, expected {' or '.join(expected)}")


_ENDS = " Subtypes| Subclass types| Does not | Error"
_LISTED = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type:",
    "Given value: Namespace(",
    "Given value: NestedArg(",
)
_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
    **dict.fromkeys(("Iterable", "Sequence", "list", "tuple"), "a list"),
}


def _expected(words: str) -> str:
    """A type as a person would say it; nothing of what is no type."""
    if words.startswith(("<class 'NoneType'>", "path but")):
        return ""
    if words.startswith("dot import path"):
        return "the path of a class, such as package.module.Class"
    if match := re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>\.?", words):
        return _TYPES.get(match[1], match[1])
    if match := re.fullmatch(r"typing\.Literal\[(.*)\]\.?", words):
        return match[1].replace("'", "")
    return f"a {words}".rstrip(".")


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."
