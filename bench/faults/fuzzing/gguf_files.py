"""GGUF files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.drawing import Draw, broken, broken_bytes, pick
from fuzzing.models import TEMPLATES
from fuzzing.targets import PICKLE, Case, Target


class GGUFTarget(Target):
    """`t3d convert --from-ar` of a GGUF file, up to the model in memory."""

    name = "gguf"
    mentions = ("model.gguf", "prompt: the tokenizer's chat template")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        letters = [*"abcdefghij", "<s>", "</s>"]
        self._fields: dict[str, Any] = {
            "general.architecture": "llama",
            "llama.context_length": 32,
            "llama.embedding_length": 8,
            "llama.feed_forward_length": 8,
            "llama.block_count": 1,
            "llama.attention.head_count": 2,
            "llama.attention.head_count_kv": 1,
            "llama.rope.dimension_count": 4,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 10000.0,
            "llama.expert_count": 0,
            "llama.attention.key_length": 4,
            "llama.rope.scaling.type": "none",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": letters,
            "tokenizer.ggml.token_type": [1] * 10 + [3, 3],
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 10,
            "tokenizer.ggml.eos_token_id": 11,
            "tokenizer.ggml.eot_token_id": 11,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.chat_template": TEMPLATES["a chat"],
        }
        self._tensors = {
            "token_embd.weight": [12, 8],
            "output_norm.weight": [8],
            "blk.0.attn_norm.weight": [8],
            "blk.0.attn_q.weight": [8, 8],
            "blk.0.attn_k.weight": [4, 8],
            "blk.0.attn_v.weight": [4, 8],
            "blk.0.attn_output.weight": [8, 8],
            "blk.0.ffn_norm.weight": [8],
            "blk.0.ffn_gate.weight": [8, 8],
            "blk.0.ffn_up.weight": [8, 8],
            "blk.0.ffn_down.weight": [8, 8],
        }

    def make(self, draw: Draw) -> Case:
        """Other metadata, other tensors, other bytes of the header."""
        fields, tensors = self._fields, self._tensors
        match draw.below(4):
            case 0:
                fields = broken(draw, fields)
            case 1:
                tensors = broken(draw, tensors)
            case 2:
                return {"model.gguf": self._with_other_numbers(draw, _gguf(fields, tensors))}
            case 3:
                return {"model.gguf": broken_bytes(draw, _gguf(fields, tensors))}
        return {"model.gguf": _gguf(fields, tensors)}

    def shaped(self, value: Any) -> Case:
        """Another value of some fields."""
        fields = {**self._fields, "tokenizer.ggml.tokens": value, "llama.attention.head_count": value}
        return {"model.gguf": _gguf(fields, self._tensors)}

    def run(self, case: Case) -> None:
        """Read config, tokenizer and weights."""
        import torch

        from t3d.models.conversion.reading import read_gguf
        from t3d.tasks.prompts import render_chat

        self.write(case)
        read = read_gguf(str(self.folder / "model.gguf"), None, torch.float32)
        if read.tokenizer.chat_template is not None:
            render_chat([{"role": "user", "content": "Hi"}], read.tokenizer)

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Lengths that the file has no bytes for, and claims of sizes."""
        valid = _gguf(self._fields, self._tensors)
        for place in (8, 16, 24):
            for number in (2**32, 2**60, 2**64 - 1, 2**63):
                yield (
                    f"{number} at byte {place}",
                    {"model.gguf": valid[:place] + struct.pack("<Q", number) + valid[place + 8 :]},
                )
        start = valid.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
        for number in (2**32, 2**60, 2**64 - 1, 10**7):
            yield f"a list of {number}", {"model.gguf": valid[:start] + struct.pack("<Q", number) + valid[start + 8 :]}
        for field in (
            "llama.block_count",
            "llama.embedding_length",
            "llama.context_length",
            "llama.attention.head_count",
            "llama.feed_forward_length",
        ):
            for value in (10**12, 10**6, 0, -1, "8", [8], 1.5, True):
                yield f"{field} {value}", {"model.gguf": _gguf({**self._fields, field: value}, self._tensors)}
        for shape in ([2**32, 2**32], [0], [], [2**60], [1] * 100):
            yield (
                f"a tensor of {shape}",
                {"model.gguf": _gguf(self._fields, {**self._tensors, "token_embd.weight": shape})},
            )
        for what, template in TEMPLATES.items():
            yield (
                f"template: {what}",
                {"model.gguf": _gguf({**self._fields, "tokenizer.chat_template": template}, self._tensors)},
            )
        yield "a pickle", {"model.gguf": PICKLE}
        yield "nothing", {"model.gguf": b""}

    def _with_other_numbers(self, draw: Draw, data: bytes) -> bytes:
        for _ in range(1 + draw.below(2)):
            place = draw.below(len(data) - 400)
            number = pick(draw, (0, 1, 9, 2**31, 2**32 - 1, 2**60, 2**64 - 1))
            size = pick(draw, (4, 8))
            data = data[:place] + (number % 2 ** (8 * size)).to_bytes(size, "little") + data[place + size :]
        return data


def _gguf(fields: Any, tensors: Any) -> bytes:
    """A GGUF file, version 3 (ggml's docs/gguf.md), of whatever values: those of no kind of its own are left out."""
    values = [(key, packed) for key, value in fields.items() if (packed := _packed(value)) is not None]
    infos, offset, data = b"", 0, b""
    for name, shape in tensors.items():
        dims = (
            [each for each in shape if isinstance(each, int) and 0 <= each < 2**64] if isinstance(shape, list) else []
        )
        size = min(4 * int(np.prod(dims or [1], dtype=object)), 2**16)
        infos += (
            _text(name)
            + struct.pack("<I", len(dims))
            + b"".join(struct.pack("<Q", each) for each in reversed(dims))
            + struct.pack("<IQ", 0, offset)
        )
        padded = -(-size // 32) * 32
        data, offset = data + np.linspace(-1, 1, padded // 4, dtype=np.float32).tobytes(), offset + padded
    head = (
        b"GGUF"
        + struct.pack("<IQQ", 3, len(tensors), len(values))
        + b"".join(_text(key) + packed for key, packed in values)
        + infos
    )
    return head + b"\0" * (-len(head) % 32) + data


def _packed(value: Any) -> bytes | None:
    """Kind and value."""
    kind, content = _kind_and_content(value)
    return None if content is None else struct.pack("<I", kind) + content


def _kind_and_content(value: Any) -> tuple[int, bytes | None]:
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int() if 0 <= value < 2**32:
            return 4, struct.pack("<I", value)
        case int():
            return 11, struct.pack("<q", max(-(2**63), min(2**63 - 1, value)))
        case float():
            return 12, struct.pack("<d", value)
        case str():
            return 8, _text(value)
        case list():
            each = [_kind_and_content(entry) for entry in value]
            kind = each[0][0] if each else 8
            whole = [content for own, content in each if own == kind and content is not None]
            return 9, struct.pack("<IQ", kind, len(whole)) + b"".join(whole)
    return 0, None


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data
