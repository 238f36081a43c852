import pytest

from quadtree_attention.data.lists import image_pairs
from quadtree_attention.errors import InputError
from quadtree_attention.evaluation.lists import homography_list

NAMES = (
    "x#1.jpg",
    "it's.jpg",
    'a"b.jpg',
    "two words.jpg",
    "rock'n'roll.jpg",
    "back\\slash.jpg",
    "narrow\u202fspace.jpg",
    "next\x85line.jpg",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_names_that_lists_of_others_do_not_quote(tmp_path, name, mark):
    for one in (name, "b.jpg"):
        (tmp_path / one).write_bytes(b"x")
    word = f"'{name}'" if " " in name else name
    lines = f"b.jpg {word}  # {word}\r\n# {word}\n\n\t{word} b.jpg"
    (tmp_path / "pairs.txt").write_bytes(mark + lines.encode())
    assert image_pairs(tmp_path / "pairs.txt", tmp_path) == [("b.jpg", name)]
    H = "1 0 0 0 1 0 0 0 1"
    (tmp_path / "list.txt").write_bytes(mark + f"{word} b.jpg {H}\n".encode())
    (pair,) = homography_list(tmp_path / "list.txt")
    assert pair.image0 == tmp_path / name


def test_a_list_of_another_encoding(tmp_path):
    (tmp_path / "pairs.txt").write_bytes("a.jpg b.jpg".encode("utf-16"))
    with pytest.raises(InputError, match=r"pairs.txt is not a text file in UTF-8, expected a list; save it as UTF-8"):
        image_pairs(tmp_path / "pairs.txt", tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 100_000, "a\0b"])
def test_what_is_no_name(tmp_path, name):
    (tmp_path / "pairs.txt").write_text(f"{name} b.jpg\n", encoding="utf-8")
    with pytest.raises((InputError, OSError)) as error:
        image_pairs(tmp_path / "pairs.txt", tmp_path)
    assert len(str(error.value)) < 800
