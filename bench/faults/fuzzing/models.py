"""Model folders, and the templates in them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzzing.drawing import Draw, as_json, broken, broken_bytes, pick
from fuzzing.targets import PICKLE, Case, Target, json_bombs

WEIGHTS = "model.safetensors"
JSON_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")
TEMPLATE = "chat_template.jinja"
TEMPLATES = {
    "a chat": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "a loop of a billion turns": "{% for i in range(10**9) %}x{% endfor %}",
    "a loop of a billion turns, in digits": "{% for i in range(1000000000) %}x{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros that call themselves": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a reach for classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a reach through attr": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "a reach through format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "a reach for globals": "{{ raise_exception.__globals__['os'].system('touch t3d-was-here') }}",
    "a reach for modules": "{{ cycler.__init__.__globals__.os.popen('touch t3d-was-here').read() }}",
    "a list that changes": "{{ messages.append(1) }}{{ messages.clear() }}",
    "a file": "{% include '/etc/passwd' %}",
    "no template": "{% for %}",
    "an unknown filter": "{{ messages|nothing }}",
    "a message of its own": "{{ raise_exception('a\nb' * 1000) }}",
    "a string of terabytes": "{{ 'x' * 10000000000000 }}",
    "a number of a billion digits": "{{ 10**10**9 }}",
    "a thousand brackets": "{{ " + "(" * 1000 + ")" * 1000 + " }}",
}


class ModelTarget(Target):
    """`load_model`, `load_tokenizer` and the chat template of a folder."""

    name = "model"
    mentions = ("model ", "prompt")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from t3d.models import load_tokenizer, random_model, save_model

        shapes = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "block_size": 4,
        }
        tokenizer = load_tokenizer("story-tokenizer")
        save_model(random_model(shapes, tokenizer, seed=0), folder / "seed", tokenizer)
        self._seed: Case = {file.name: file.read_bytes() for file in sorted((folder / "seed").iterdir())}
        self._seed[TEMPLATE] = TEMPLATES["a chat"].encode()
        self._documents = {name: json.loads(self._seed[name]) for name in JSON_FILES}

    def make(self, draw: Draw) -> Case:
        """A fault in one of the files; of JSON in its values or bytes, of the weights in header or bytes."""
        match draw.below(8):
            case 0 | 1 | 2 | 3:
                name = pick(draw, ("config.json", "config.json", "tokenizer_config.json", "generation_config.json"))
                return {**self._seed, name: as_json(draw, broken(draw, self._documents[name]))}
            case 4:
                return {**self._seed, "tokenizer.json": self._tokenizer(draw)}
            case 5:
                return {**self._seed, WEIGHTS: self._weights(draw)}
            case 6:
                return {**self._seed, TEMPLATE: broken_bytes(draw, self._seed[TEMPLATE])}
        name = pick(draw, sorted(self._seed))
        return {**self._seed, name: broken_bytes(draw, self._seed[name])}

    def shaped(self, value: Any) -> Case:
        """Another value of a field of the config, of the rope's among them."""
        config = {**self._documents["config.json"], "rope_parameters": value, "layer_types": value}
        return {**self._seed, "config.json": json.dumps(config).encode("utf-8", "surrogatepass")}

    def run(self, case: Case) -> None:
        """Load all there is, and ask it for what a server asks."""
        from t3d.models import load_model, load_tokenizer, stop_token_ids
        from t3d.tasks.prompts import render_chat

        shutil.rmtree(self.folder / "case", ignore_errors=True)
        (self.folder / "case").mkdir()
        for name, content in case.items():
            (self.folder / "case" / name).write_bytes(content)
        model = load_model(self.folder / "case", device="cpu")
        tokenizer = load_tokenizer(self.folder / "case")
        stop_token_ids(model, tokenizer)
        if tokenizer.chat_template is not None:
            render_chat([{"role": "user", "content": "Hi"}], tokenizer)
        tokenizer.decode(tokenizer.encode("Hi", add_special_tokens=False))

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Of JSON in each file, templates, claims of sizes, code to be run, and weights that are pickles."""
        for name in JSON_FILES:
            for what, content in json_bombs({}):
                yield f"{name}: {what}", {**self._seed, name: content}
        for what, template in TEMPLATES.items():
            yield f"template: {what}", {**self._seed, TEMPLATE: template.encode()}
            inline = {**self._documents["tokenizer_config.json"], "chat_template": template}
            yield (
                f"inline template: {what}",
                {**_without(self._seed, TEMPLATE), "tokenizer_config.json": json.dumps(inline).encode()},
            )
        config = self._documents["config.json"]
        for field in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "head_dim",
            "num_key_value_heads",
            "max_position_embeddings",
            "block_size",
            "mask_token_id",
        ):
            for value in (10**12, 10**6, -1, 0, "9", 1.5, None, [1], True, 2**63, 10**30):
                yield (
                    f"config.json: {field} {value}",
                    {**self._seed, "config.json": json.dumps({**config, field: value}).encode()},
                )
        yield from self._code(config)
        for length in (2**60, 2**63, 0, 1, 99):
            yield (
                f"a header of {length} bytes",
                {**self._seed, WEIGHTS: struct.pack("<Q", length) + self._seed[WEIGHTS][8:]},
            )

    def _code(self, config: dict[str, Any]) -> Iterator[tuple[str, Case]]:
        """Wherever a reader could be led to run what lies in the folder."""
        code = b"import os\nos.system('touch t3d-was-here')\nclass Evil: pass\n"
        mapped = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        }
        for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
            for fields in (
                {"auto_map": mapped},
                {"auto_map": mapped, "model_type": "evil", "tokenizer_class": "Evil"},
                {"custom_pipelines": mapped},
                {"tokenizer_class": "evil.Evil"},
                {"custom_generate": "evil"},
            ):
                other = json.dumps({**self._documents[name], **fields, "trust_remote_code": True}).encode()
                yield (
                    f"{name} names code: {sorted(fields)}",
                    {**self._seed, name: other, "evil.py": code, "custom_generate.py": code},
                )
        for name in (
            "pytorch_model.bin",
            "model.pt",
            "pytorch_model.pt",
            "training_args.bin",
            "tokenizer.pkl",
            "vocab.pkl",
            "config.pkl",
        ):
            yield f"{name} beside", {**self._seed, name: PICKLE}
            yield f"{name} instead", {**_without(self._seed, WEIGHTS), name: PICKLE}
        for name in self._seed:
            yield f"{name} is a pickle", {**self._seed, name: PICKLE}
        for kind in (
            "TransfoXLTokenizer",
            "RagTokenizer",
            "Wav2Vec2CTCTokenizer",
            "EsmTokenizer",
            "T5Tokenizer",
            "LlamaTokenizer",
            "MarianTokenizer",
        ):
            other = json.dumps({**self._documents["tokenizer_config.json"], "tokenizer_class": kind}).encode()
            kept = {
                **self._seed,
                "tokenizer_config.json": other,
                "vocab.pkl": PICKLE,
                "vocab.bin": PICKLE,
                "spiece.model": PICKLE,
                "tokenizer.model": PICKLE,
            }
            yield f"tokenizer of class {kind}", kept
            yield f"tokenizer of class {kind}, no tokenizer.json", _without(kept, "tokenizer.json")
        index = {
            "metadata": {},
            "weight_map": {"model.norm.weight": "../../../etc/passwd", "lm_head.weight": "pytorch_model.bin"},
        }
        yield (
            "shards elsewhere",
            {
                **_without(self._seed, WEIGHTS),
                f"{WEIGHTS}.index.json": json.dumps(index).encode(),
                "pytorch_model.bin": PICKLE,
            },
        )
        peft = json.dumps({"base_model_name_or_path": "evil", "peft_type": "LORA", "auto_mapping": mapped}).encode()
        yield "an adapter beside", {**self._seed, "adapter_config.json": peft, "adapter_model.bin": PICKLE}

    def _tokenizer(self, draw: Draw) -> bytes:
        """Faults outside of the vocabulary, which is most of the file."""
        document = self._documents["tokenizer.json"]
        vocabulary = document["model"].pop("vocab"), document["model"].pop("merges", None)
        try:
            other = broken(draw, document)
        finally:
            document["model"]["vocab"], document["model"]["merges"] = vocabulary
        if isinstance(other, dict) and isinstance(other.get("model"), dict):
            other["model"] |= {"vocab": vocabulary[0], "merges": vocabulary[1]}
        return json.dumps(other).encode("utf-8", "surrogatepass")

    def _weights(self, draw: Draw) -> bytes:
        data = self._seed[WEIGHTS]
        length = struct.unpack("<Q", data[:8])[0]
        header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
        text = as_json(draw, broken(draw, header))
        length = len(text) if draw.below(6) < 5 else pick(draw, (0, 1, 2**60, len(text) + 1, 10**8 + 1))
        return struct.pack("<Q", length) + text + rest


def _without(case: Case, name: str) -> Case:
    return {key: value for key, value in case.items() if key != name}
