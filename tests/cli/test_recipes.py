"""Recipes that are damaged or hostile end in one line, before anything is made of them."""

import pytest

from quadtree_attention.__main__ import main
from quadtree_attention.cli.recipes import check_recipes, one_line

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "has anchors that make .* values of it, expected at most 100000"),
        ("model: &a\n  init_args: *a\n", "line 1: the anchor holds itself"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "line 2: 'c' is there twice"),
        ("- a\n", "is no recipe, expected a mapping"),
        ("", "is no recipe, expected a mapping"),
        ("model: [\n", "line 2: not YAML: "),
        ("trainer:\n\tmax_epochs: 3\n", "line 2: not YAML: "),
        ("[" * 3000, "not YAML|nested too deeply"),
        (b"model: \xff", "is no text in UTF-8"),
    ],
)
def test_what_is_no_recipe(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for arguments in ([f"--config={path}"], ["--config", str(path)], ["-c", str(path)], [f"--model={path}"]):
        with pytest.raises(ValueError, match=message) as error:
            check_recipes(arguments)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


def test_the_command_looks_at_recipes_first(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(BOMB)
    assert main(["fit", f"--config={path}"]) == 2
    assert "has anchors that make" in capsys.readouterr().err


def test_anchors_are_no_mistake(tmp_path):
    (tmp_path / "recipe.yaml").write_text("base: &base {a: 1}\nmodel: {<<: *base, b: 2}\nother: *base\n")
    check_recipes([f"--config={tmp_path / 'recipe.yaml'}", "--trainer.max_epochs=3", "--seed_everything", "1"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "Parser key \"trainer.max_epochs\":\n  Expected a <class 'int'>\n  Given value: x",
            "--trainer.max_epochs is x, expected a whole number",
        ),
        (
            'Parser key "model":\n  Parser key "rate":\n  Expected a <class \'float\'>. Got value: x',
            "--model.rate is x, expected a number",
        ),
        ("Parser key \"model\":\n  - Option 'rate' is not accepted", "--model.rate is unknown"),
        (
            "Parser key \"data\":\n  No module named 'x'\n  No module named 'x'",
            "--data: no module named 'x'; expected the path of a class, such as package.module.Class",
        ),
        ("unrecognized arguments: --x", "unrecognized arguments: --x"),
    ],
)
def test_one_line(text, line):
    assert one_line(text) == line


def test_a_line_is_short():
    assert len(one_line("Parser key \"model\":\n  Expected a <class 'int'>\n  Given value: " + "x" * 9000)) < 200
    assert len(one_line("nonsense " * 900)) <= 300
