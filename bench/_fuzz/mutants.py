"""Changed files: JSON trees, headers of safetensors files, and bytes; each made by a seeded generator."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

DEEP, DEEPER = 60, 100_000  # levels of nesting, within a tree and in place of one
WORDS = ("", "x", "..", "../../etc/passwd", "/", "\x00", "é", "<script>alert(1)</script>", "{{ 7 * 7 }}", "a" * 20_000)
NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**63, 2**64, -(2**64), 10**40, 0.5, -0.0, 1e308, 1e-320)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": ""}, [None], {"a": {"b": []}}, *WORDS, *NUMBERS)


def mutate(name: str, data: bytes, random: random.Random) -> bytes:
    """Another file in the place of ``data``; it may happen to be the same."""
    if random.random() < 0.01:
        return b"[" * DEEPER + b"]" * DEEPER
    if name.endswith(".json") and random.random() < 0.85:
        return changed_json(data, random)
    if name.endswith(".safetensors") and random.random() < 0.7:
        return changed_header(data, random)
    return changed_bytes(data, random)


def changed_json(data: bytes, random: random.Random) -> bytes:
    """A JSON file with one to three changes in its tree."""
    try:
        tree = json.loads(data)
    except ValueError:
        return changed_bytes(data, random)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        tree = changed_tree(tree, random)
    return json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def changed_tree(tree: Any, random: random.Random) -> Any:
    """A tree with one value replaced, removed, repeated, renamed, moved or buried."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places or random.random() < 0.01:
        return copy.deepcopy(random.choice(VALUES))
    owner, key = random.choice(places)
    value = owner[key]
    way = random.randrange(8)
    if way == 0:
        del owner[key]
    elif way == 1 and isinstance(owner, dict):
        owner[random.choice(("x", "__class__", "auto_map", f"{key}_"))] = owner.pop(key)
    elif way == 2 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(value))
    elif way == 3:
        other, place = random.choice(places)
        owner[key] = copy.deepcopy(other[place]) if _has(other, place) else None
    elif way == 4:
        owner[key] = _near(value, random)
    elif way == 5 and random.random() < 0.2:
        for _ in range(DEEP):
            value = [value]
        owner[key] = value
    else:
        owner[key] = copy.deepcopy(random.choice(VALUES))
    return tree


def changed_header(data: bytes, random: random.Random) -> bytes:
    """A safetensors file whose header says something else, its length said rightly or not."""
    length = int.from_bytes(data[:8], "little")
    header = changed_json(data[8 : 8 + length], random).strip()
    said = len(header) if random.random() < 0.9 else random.choice((0, 1, 7, 2**31, 2**63 - 1, len(header) + 9))
    return said.to_bytes(8, "little") + header + data[8 + length :]


def changed_bytes(data: bytes, random: random.Random) -> bytes:
    """A file with bytes changed, taken out, put in or repeated, or one that ends early."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        at = random.randrange(len(changed) + 1) if changed else 0
        way = random.randrange(6)
        if way == 0:
            del changed[at:]
        elif way == 1:
            del changed[at : at + random.randrange(1, 64)]
        elif way == 2:
            changed[at:at] = random.randbytes(random.randrange(1, 64))
        elif way == 3:
            changed[at:at] = changed[at : at + random.randrange(1, 4096)]
        elif changed:
            changed[min(at, len(changed) - 1)] = random.randrange(256)
    return bytes(changed)


def _near(value: Any, random: random.Random) -> Any:
    """A value of the same kind that may still be wrong."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return random.choice((value + 1, value - 1, -value, value * 1000, float(value), str(value)))
    if isinstance(value, str):
        return random.choice((value[:-1], value + "x", value.upper(), value * 2, [value], value[::-1]))
    return [value, value]


def _has(owner: Any, key: Any) -> bool:
    return key in owner if isinstance(owner, dict) else key < len(owner)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value with what holds it; a tree of thousands gives a part of them."""
    waiting = [tree]
    while waiting:
        owner = waiting.pop()
        keys = list(owner) if isinstance(owner, dict) else range(len(owner)) if isinstance(owner, list) else ()
        for key in keys:
            yield owner, key
            if isinstance(owner[key], (dict, list)):
                waiting.append(owner[key])
