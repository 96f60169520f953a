"""Mutations that keep a file's frame whole, so that what is inside is reached: protobuf, zip archives, PNG chunks."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

Mutate = Callable[[bytes, int], bytes]
"""libFuzzer's own mutation of bytes, to at most so many."""

_INTEGERS = (0, 1, -1, 2, 3, 7, 10, 16, 127, 255, 4096, 2**31 - 1, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -1.0, 1e-45, 3.4e38, float("inf"), float("nan"))
_TEXTS = ("", "x", "../../x", "/etc/passwd", "\n", "\0", "If", "Loop", "Constant", "Identity", "Conv", "ai.onnx")
_FREE = 0.15  # share of mutations that know nothing of the format
_LARGEST_MEMBER = 1 << 16


def mutated_model(content: bytes, most: int, dice: random.Random, mutate: Mutate) -> bytes:
    """A model with one to three fields changed, copied, moved or removed."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return mutate(content, most)
    if dice.random() < _FREE:
        return mutate(content, most)
    for _ in range(dice.randint(1, 3)):
        messages = list(_messages(model, 0))
        with suppress(UnicodeError, TypeError):  # a name that is no UTF-8 comes out as bytes, and does not go in again
            _change(dice.choice(messages), messages, dice)
    return _within(model.SerializeToString(), content, most)


def mutated_archive(content: bytes, most: int, dice: random.Random, mutate: Mutate) -> bytes:
    """An archive with one member mutated, renamed, doubled or removed; or a PNG with one chunk; or any other bytes."""
    if content.startswith(b"\x89PNG\r\n\x1a\n") and dice.random() > _FREE:
        return _within(_png(content, dice, mutate), content, most)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(m.filename, archive.open(m).read(_LARGEST_MEMBER)) for m in archive.infolist()]
    except Exception:
        return mutate(content, most)
    if not members or dice.random() < _FREE:
        return mutate(content, most)
    at = dice.randrange(len(members))
    name, data = members[at]
    what = dice.random()
    if what < 0.8:
        members[at] = name, mutate(data, len(data) + 64)
    elif what < 0.87:
        members[at] = mutate(name.encode("utf-8", "replace"), len(name) + 8).decode("utf-8", "replace"), data
    elif what < 0.94:
        members.append(members[at])
    else:
        del members[at]
    stream = io.BytesIO()
    kind = dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    try:
        with zipfile.ZipFile(stream, "w", kind) as archive:
            for member, found in members:
                archive.writestr(zipfile.ZipInfo(member), found, kind)
    except (ValueError, UnicodeError, struct.error):
        return mutate(content, most)
    return _within(stream.getvalue(), content, most)


MUTATIONS: Mapping[str, Callable[[bytes, int, random.Random, Mutate], bytes]] = {
    "model": mutated_model,
    "arrays": mutated_archive,
    "state": mutated_archive,
}


def _within(found: bytes, before: bytes, most: int) -> bytes:
    return found if len(found) <= most else before[:most]


def _messages(message: Message, depth: int) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE and depth < 40:
            for inner in value if field.is_repeated else (value,):
                yield from _messages(inner, depth + 1)


def _change(message: Message, others: list[Message], dice: random.Random) -> None:
    same = [other for other in others if other.DESCRIPTOR is message.DESCRIPTOR and other is not message]
    if same and dice.random() < 0.15:
        copy = type(message)()
        copy.CopyFrom(dice.choice(same))
        message.CopyFrom(copy)
        return
    there = [field for field, _ in message.ListFields()]
    field = dice.choice(there if there and dice.random() < 0.8 else list(message.DESCRIPTOR.fields))
    if dice.random() < 0.15:
        message.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        _change_message(message, field, others, dice)
    elif field.is_repeated:
        values = getattr(message, field.name)
        if len(values) and dice.random() < 0.3:
            del values[dice.randrange(len(values))]
        elif len(values) and dice.random() < 0.5:
            values[dice.randrange(len(values))] = _value(field, others, dice)
        else:
            values.append(_value(field, others, dice))
    else:
        setattr(message, field.name, _value(field, others, dice))


def _change_message(message: Message, field: FieldDescriptor, others: list[Message], dice: random.Random) -> None:
    found = [other for other in others if other.DESCRIPTOR is field.message_type]
    copy = type(found[0])() if found else None
    if copy is not None:
        copy.CopyFrom(dice.choice(found))
    if not field.is_repeated:
        if copy is not None:
            getattr(message, field.name).CopyFrom(copy)
        return
    values = getattr(message, field.name)
    what = dice.random()
    if len(values) and what < 0.3:
        del values[dice.randrange(len(values))]
    elif len(values) > 1 and what < 0.5:
        first, second = dice.sample(range(len(values)), 2)
        swap = type(values[first])()
        swap.CopyFrom(values[first])
        values[first].CopyFrom(values[second])
        values[second].CopyFrom(swap)
    elif copy is not None:
        values.append(copy)
    else:
        values.add()


def _value(field: FieldDescriptor, others: list[Message], dice: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        known = [v for m in others for f, v in m.ListFields() if f.type == field.type and not f.is_repeated]
        return dice.choice(known if known and dice.random() < 0.8 else list(_TEXTS))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.randbytes(dice.choice([0, 1, 4, 8, 16, 64]))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return dice.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return dice.choice([value.number for value in field.enum_type.values])
    found = dice.choice(_INTEGERS) if dice.random() < 0.5 else dice.randint(0, 25)
    if field.type == FieldDescriptor.TYPE_INT32:
        return max(-(2**31), min(found, 2**31 - 1))
    if field.type == FieldDescriptor.TYPE_UINT64:
        return abs(found)
    return found


def _png(content: bytes, dice: random.Random, mutate: Mutate) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return mutate(content, len(content) + 64)
    place = dice.randrange(len(chunks))
    kind, data = chunks[place]
    if dice.random() < 0.2:
        chunks.insert(dice.randrange(len(chunks)), (kind, data))
    elif kind == b"IDAT" and dice.random() < 0.5:
        try:
            data = zlib.compress(mutate(zlib.decompressobj().decompress(data, _LARGEST_MEMBER), _LARGEST_MEMBER))
        except zlib.error:
            data = mutate(data, len(data) + 64)
        chunks[place] = kind, data
    else:
        chunks[place] = kind, mutate(data, len(data) + 16)
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return content[:8] + b"".join(body)
