"""Every Python block of the README and of docs/ runs; every command line in them is one that the command takes; links lead somewhere."""

import inspect
import re
import shlex
import shutil
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from quadtree_attention.cli import app
from quadtree_attention.cli.app import typer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands
LIGHTNING = {"fit", "validate", "test"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@pages
def test_python_blocks_run(page, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(page), "exec"), namespace)


def options_of(command: str) -> set[str]:
    """Every option of a command; those of Lightning with the arguments of the classes that recipes name."""
    if command not in LIGHTNING:
        params = COMMANDS[command].params
        return {"--help", "--debug", *(name for param in params for name in (*param.opts, *param.secondary_opts))}
    classes = {("trainer", "lightning.pytorch.Trainer")}
    for recipe in (ROOT / "recipes").rglob("*.yaml"):
        for part, settings in yaml.safe_load(recipe.read_text()).items():
            if isinstance(settings, dict) and "class_path" in settings:
                classes.add((part, settings["class_path"]))
    found = {
        "--config",
        "--ckpt_path",
        "--resume",
        "--print_config",
        "--help",
        "--debug",
        "--data",
        "--model",
        "--trainer",
    }
    for part, path in classes:
        module, _, name = path.rpartition(".")
        found |= {
            f"--{part}.{argument}" for argument in inspect.signature(getattr(import_module(module), name)).parameters
        }
    return found


def option_of(word: str) -> str:
    """``--data.root=X`` and ``--model.init_args.options.topk`` as the option they set."""
    parts = word.partition("=")[0].replace(".init_args", "").removesuffix("+").split(".")
    return ".".join(parts[:2])


def problem(line: str, whole: bool) -> str | None:
    """What is wrong with a command line; ``whole``: it has all its arguments, and is not only mentioned."""
    _, *words = shlex.split(line, comments=True)
    if not words or words[0].startswith("-"):
        return None if set(words) <= {"--help", "--version", "--debug"} else "no such option"
    command, *arguments = words
    if command not in COMMANDS:
        return f"no command {command!r}"
    names = [option_of(word.strip("[]")) for word in arguments if word.strip("[").startswith("--")]
    for name in names:
        if name not in options_of(command):
            return f"no option {name!r} of {command!r}"
    for name, value in pairwise(arguments):
        if name == "--config" and value.startswith("recipes/") and "NAME" not in value and not (ROOT / value).is_file():
            return f"no file {value!r}"
    if whole and command not in LIGHTNING and not any("..." in word or word.startswith("[") for word in arguments):
        try:
            COMMANDS[command].make_context(command, arguments)
        except Exception as error:  # of the parser
            return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return None


def lines(text: str) -> list[tuple[str, bool]]:
    """Command lines of a page: whole ones in blocks, and those mentioned in the text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    whole = [
        line
        for block in blocks
        for line in re.findall(r"^(?:\$ )?(quadtree .*)", block.replace("\\\n", " "), re.MULTILINE)
    ]
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [(line, True) for line in whole] + [(line, False) for line in re.findall(r"`(quadtree [^`]+)`", text)]


@pages
def test_command_lines_are_understood(page):
    wrong = [
        f"{line}: {why}" for line, whole in lines(page.read_text(encoding="utf-8")) if (why := problem(line, whole))
    ]
    assert not wrong, "\n".join(wrong)


@pages
def test_options_that_are_mentioned_exist(page):
    """Outside command lines: of any command."""
    known = set().union(*map(options_of, COMMANDS), {"--version"})
    mentioned = re.findall(r"`(--[\w.-]+)[^`]*`", page.read_text(encoding="utf-8"))
    assert not [name for name in mentioned if option_of(name) not in known]


def test_command_lines_of_all_kinds_are_looked_at():
    found = [line for page in PAGES for line in lines(page.read_text(encoding="utf-8"))]
    assert {line.split()[1] for line, whole in found if whole} >= {
        "match",
        "match-folder",
        "stereo",
        "fit",
        "evaluate",
        "convert",
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("quadtree match_folder photos --out a.db", "no command 'match_folder'"),
        ("quadtree match a.png b.png --guess 3", "no option '--guess' of 'match'"),
        ("quadtree match a.png b.png --max-size big", "BadParameter"),
        ("quadtree match a.png", "MissingParameter"),
        ("quadtree fit --config recipes/none.yaml", "no file 'recipes/none.yaml'"),
        ("quadtree fit --config recipes/imagenet.yaml --data.guess 1", "no option '--data.guess' of 'fit'"),
    ],
)
def test_wrong_command_lines_are_found(line, why):
    assert (problem(line, True) or "").startswith(why)


@pages
def test_links_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link
