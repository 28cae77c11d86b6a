"""Takes a footer to pieces and puts it together again, for tests that damage one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# A struct is {number of a field: (kind, value)}, a list (kind of its items, items).
Struct = dict[int, tuple[int, Any]]


def split(content: bytes) -> tuple[bytes, Struct]:
    """Return a file's bytes before its footer, and the footer."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return content[:start], Reader(content[start:-8]).struct()


def join(body: bytes, footer: Struct) -> bytes:
    """Return the file's bytes."""
    packed = pack(12, footer)
    return body + packed + len(packed).to_bytes(4, "little") + b"PAR1"


def edit(path: Path, change: Any) -> None:
    """Write a file anew with its footer changed."""
    body, footer = split(path.read_bytes())
    change(footer)
    path.write_bytes(join(body, footer))


def meta_data(footer: Struct, group: int, leaf: int) -> Struct:
    """Return a column chunk's metadata."""
    found: Struct = footer[4][1][1][group][1][1][1][leaf][3][1]
    return found


class Reader:
    """Reads the compact protocol."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        found = shift = 0
        while True:
            [byte] = self.take(1)
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found

    def value(self, kind: int) -> Any:
        match kind:
            case 1 | 2:
                return None
            case 4 | 5 | 6:
                return self.number()
            case 3 | 7:
                return self.take(1 if kind == 3 else 8)
            case 8:
                return self.take(self.number())
            case 9:
                [head] = self.take(1)
                size = head >> 4 if head < 0xF0 else self.number()
                return head & 15, [self.value(head & 15) for _ in range(size)]
            case 12:
                return self.struct()
        raise AssertionError(kind)

    def struct(self) -> Struct:
        found: Struct = {}
        last = 0
        while head := self.take(1)[0]:
            step = head >> 4
            last = last + step if step else self.number() >> 1
            found[last] = head & 15, self.value(head & 15)
        return found


def pack_number(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def pack(kind: int, value: Any) -> bytes:
    match kind:
        case 1 | 2:
            return b""
        case 4 | 5 | 6:
            return pack_number(value)
        case 3 | 7:
            return bytes(value)
        case 8:
            return pack_number(len(value)) + value
        case 9:
            item, items = value
            size = len(items)
            head = (
                bytes([size << 4 | item])
                if size < 15
                else bytes([0xF0 | item]) + pack_number(size)
            )
            return head + b"".join(pack(item, each) for each in items)
    found, last = b"", 0
    for name, (each, inner) in sorted(value.items()):
        step = name - last
        found += (
            bytes([step << 4 | each])
            if step < 16
            else bytes([each]) + pack_number(name << 1)
        )
        found += pack(each, inner)
        last = name
    return found + b"\0"
