"""Damage to files, drawn from a seed: to bytes, lines of text, trees of JSON, and to what is inside containers, whose checksums stay right."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

Rng = random.Random
OPCODES = (b"N", b"K\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"]", b"}", b")", b"\x88", b"X\1\0\0\0x")
EXTREMES = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
NUMBERS = (0, -1, 1, 0.5, 1e-300, 1e8, 1e12, 1e308, 2**31, 2**63, 2**64, 10**30, -(10**12))
NUMBERS += (float("nan"), float("inf"), float("-inf"))
WORDS = ("", " ", "x", "../../x", "/", "\0", "\u202e", "\ud800", "a" * 5000, "nan", "1e999", "null", "64", "é\n\r\t")


def damaged(rng: Rng, data: bytes, form: str) -> bytes:
    """``data`` with one to three kinds of damage; ``form`` is a name of `FORMS`. One case in six gets damage to its bytes whatever its form."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        damage = of_bytes if rng.random() < 1 / 6 else FORMS[form]
        try:
            data = damage(rng, data)
        except Exception:
            data = of_bytes(rng, data)  # an earlier damage has taken its form
    return data


# ---- bytes ---------------------------------------------------------------------------------------


def of_bytes(rng: Rng, data: bytes) -> bytes:
    """Cut, flip, zero, repeat, insert, swap, or put extreme whole numbers; half of it in the first 256 bytes, where headers are."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
    size = len(data)
    begin = rng.randrange(min(size, 256) if rng.random() < 0.5 else size)
    end = min(size, begin + rng.choice((1, 2, 4, 8, 64, 1024)))
    part = data[begin:end]
    way = rng.randrange(8)
    if way == 0:
        return data[: rng.choice((0, begin, size - 1, size // 2))]
    if way == 1:
        many = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 32))):
            place = rng.randrange(begin, size)
            many[place] ^= 1 << rng.randrange(8)
        return bytes(many)
    if way == 2:
        return data[:begin] + bytes([rng.choice((0, 0, 255))]) * len(part) + data[end:]
    if way == 3:
        return data[:end] + part * rng.choice((1, 1, 10)) + data[end:]
    if way == 4:
        return data[:begin] + bytes(rng.randrange(256) for _ in range(rng.choice((1, 3, 16)))) + data[begin:]
    if way == 5:
        other = rng.randrange(size)
        many = bytearray(data)
        many[begin], many[other] = many[other], many[begin]
        return bytes(many)
    if way == 6:
        return data[:begin] + data[end:]
    width, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    number = (rng.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, order)
    return data[:begin] + number + data[begin + width :]


# ---- text ----------------------------------------------------------------------------------------


def of_text(rng: Rng, data: bytes) -> bytes:
    """Lines left out, repeated, swapped, joined; words replaced, left out, repeated; marks, encodings and ends of lines of other systems."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    way = rng.randrange(9)
    if way == 0:
        del lines[place]
    elif way == 1:
        lines[place:place] = [lines[place]] * rng.choice((1, 1, 100))
    elif way == 2:
        other = rng.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    elif way == 3:
        lines[place] = lines[place].replace(b" ", rng.choice((b"", b"\t", b",", b"  ")))
    elif way == 4:
        return rng.choice((b"\r\n", b"\r", b"\n\n", b"\0", b"")).join(lines)
    elif way == 5:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"#", b'"', b"\0", b"\xfc", b"<", b"&")) + data
    elif way == 6:
        return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
    else:
        words = lines[place].split(b" ")
        spot = rng.randrange(len(words))
        word = str(rng.choice(NUMBERS)) if rng.random() < 0.6 else rng.choice(WORDS)
        words[spot : spot + rng.choice((0, 1, 1, 1))] = rng.choice(
            ([], [word.encode("utf-8", "surrogatepass")], [words[spot]] * 2)
        )
        lines[place] = b" ".join(words)
    return b"\n".join(lines)


# ---- trees ---------------------------------------------------------------------------------------


def of_tree(rng: Rng, tree: Any) -> Any:
    """A tree with one place changed: another kind of value, a number out of range, a key gone or renamed, an entry repeated, nesting."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in pairs:
            places.append((node, key))
            walk(value)

    walk(tree)
    if not places or rng.random() < 0.03:
        return anything(rng)
    # Places near the root are as likely as the many leaves of a long list.
    by_key = sorted({str(key) if isinstance(node, dict) else "" for node, key in places})
    wanted = rng.choice(by_key)
    node, key = rng.choice([p for p in places if (str(p[1]) if isinstance(p[0], dict) else "") == wanted])
    way = rng.randrange(8)
    if way == 0:
        del node[key]
    elif way == 1 and isinstance(node, dict):
        node[rng.choice(("x", "", str(key).upper(), f"{key} "))] = node.pop(key)
    elif way == 1:
        node[key:key] = [node[key]] * rng.choice((1, 50))
    elif way == 2:
        node[key] = [node[key]]
    elif way == 3:
        node[key] = {str(key): node[key]}
    elif way == 4 and isinstance(node[key], int | float):
        node[key] = rng.choice((str(node[key]), -node[key], node[key] * 10**9, bool(node[key]), node[key] + 0.5))
    elif way == 4 and len(places) > 1:
        other, name = rng.choice(places)
        node[key] = copy.deepcopy(other[name])
    else:
        node[key] = anything(rng)
    return tree


def anything(rng: Rng) -> Any:
    way = rng.randrange(6)
    if way == 0:
        return rng.choice((None, True, False))
    if way <= 2:
        return rng.choice(NUMBERS)
    if way == 3:
        return rng.choice(WORDS)
    if way == 4:
        return rng.choice(([], {}, [None], [[]], [[[]]], {"": None}, [0] * 1000, ["x"], [float("nan")] * 8))
    deep: Any = 0
    for _ in range(rng.choice((5, 200))):
        deep = [deep] if rng.random() < 0.5 else {"x": deep}
    return deep


def of_json(rng: Rng, data: bytes) -> bytes:
    """The tree of a JSON file; or its text, such as a key given twice, and nesting beyond what a parser can follow."""
    way = rng.random()
    if way < 0.08:
        return of_text(rng, data)
    if way < 0.1:
        return rng.choice((b"[", b'{"x":')) * 100_000
    text = json.dumps(of_tree(rng, json.loads(data)))
    if way < 0.15 and '"' in text[1:]:
        text = text.replace('{"', '{"x": 1, "', 1).replace(", ", rng.choice((",,", ", ", " ")), 1)
    return text.encode("utf-8", "surrogatepass")


def of_yaml(rng: Rng, data: bytes) -> bytes:
    """The tree of a YAML file; or its text; or anchors: an alias of itself, and one that grows tenfold a level."""
    import yaml

    way = rng.random()
    if way < 0.25:
        return of_text(rng, data)
    if way < 0.28:
        bomb = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        for n in range(1, 12):
            bomb += b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9))
        return bomb + data
    if way < 0.31:
        return b"loop: &loop [*loop]\n" + data
    return yaml.safe_dump(of_tree(rng, yaml.safe_load(data)), allow_unicode=True).encode("utf-8", "surrogatepass")


# ---- containers ----------------------------------------------------------------------------------


def of_zip(rng: Rng, data: bytes) -> bytes:
    """A member of a zip (.npz, .pth, .ckpt), or the list of them; checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = rng.randrange(len(members))
    name, content = members[place]
    way = rng.randrange(10)
    if way == 0:
        del members[place]
    elif way == 1:
        members[place] = (rng.choice(("x", "../x.npy", name + ".npy", "")), content)
    elif way == 2:
        members[place] = (name, members[rng.randrange(len(members))][1])
    else:
        members[place] = (
            name,
            (of_pickle if name.endswith(".pkl") else of_npy if content[:6] == b"\x93NUMPY" else of_bytes)(rng, content),
        )
    out = io.BytesIO()
    way = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", way) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice, as they are meant to be
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name or "_"), content)
    return out.getvalue()


def of_npy(rng: Rng, data: bytes) -> bytes:
    """The header of an array, kept as long as it says, or its bytes."""
    if rng.random() < 0.4:
        return of_bytes(rng, data)
    (length,) = struct.unpack("<H", data[8:10])
    header, rest = data[10 : 10 + length], data[10 + length :]
    shape, kind = rng.choice(
        (
            (b"'shape': (", b"'shape': (%d, " % rng.choice(EXTREMES)),
            (b"'shape': (", b"'shape': (0, "),
            (b"'<f", b"'%s" % rng.choice((b"|O", b"<M", b"<U", b"<c", b">f", b"|V9", b"<i", b"|S"))),
            (b"'<i", b"'%s" % rng.choice((b"|O", b"<M", b"<U", b"<f", b">i", b"|V9", b"<u", b"|S"))),
            (b"False", b"True"),
            (b"False", rng.choice((b"None", b"0", b"__import__('os')"))),
            (b"{", b"[" * 300),
        )
    )
    header = header.rstrip().replace(shape, kind, 1)
    return data[:8] + struct.pack("<H", len(header) + 1) + header + b"\n" + rest


def of_pickle(rng: Rng, data: bytes) -> bytes:
    """The opcodes of a pickle: left out, repeated, swapped, other names and numbers."""
    import pickletools

    starts = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    parts = [data[a:b] for a, b in pairwise(starts)]
    place, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    way = rng.randrange(6)
    if way == 0:
        del parts[place]
    elif way == 1:
        parts.insert(place, parts[other])
    elif way == 2:
        parts[place], parts[other] = parts[other], parts[place]
    elif way == 3:
        parts[place] = rng.choice(OPCODES)
    elif way == 4:
        parts[place] = rng.choice(
            (b"cos\nsystem\n", b"cnumpy\nndarray\n", b"cbuiltins\neval\n", b"0", b"2", b"b", b"R")
        )
    else:
        return of_bytes(rng, data)
    return b"".join(parts)


def of_safetensors(rng: Rng, data: bytes) -> bytes:
    """The header of a safetensors file, its length right, and the json text that its metadata may hold."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    texts = [key for key, value in header.get("__metadata__", {}).items() if value[:1] in "{["]
    if texts and rng.random() < 0.6:
        key = rng.choice(texts)
        header["__metadata__"][key] = of_json(rng, header["__metadata__"][key].encode()).decode("utf-8", "replace")
    else:
        header = of_tree(rng, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def of_png(rng: Rng, data: bytes) -> bytes:
    """A chunk of a PNG: its content, kind, place or absence; checksums are right."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    spot = rng.randrange(len(chunks))
    kind, content = chunks[spot]
    way = rng.randrange(8)
    if way == 0:
        del chunks[spot]
    elif way == 1:
        chunks.insert(spot, chunks[rng.randrange(len(chunks))])
    elif way == 2:
        chunks[spot] = (
            rng.choice((b"IDAT", b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"gAMA", b"xxxx")),
            content,
        )
    elif way == 3:
        chunks.insert(
            1,
            rng.choice(
                (
                    (b"zTXt", b"x\0\0" + zlib.compress(bytes(10**7))),
                    (b"iCCP", b"x\0\0" + bytes(9)),
                    (b"eXIf", b"II*\0" + bytes(5)),
                )
            ),
        )
    else:
        chunks[spot] = (kind, of_bytes(rng, content))
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


FORMS: dict[str, Callable[[Rng, bytes], bytes]] = {
    "bytes": of_bytes,
    "text": of_text,
    "json": of_json,
    "yaml": of_yaml,
    "zip": of_zip,
    "npy": of_npy,
    "pickle": of_pickle,
    "safetensors": of_safetensors,
    "png": of_png,
}
