"""The names that people script against, used as the README shows them."""

from pathlib import Path

import pytest

from t3d import Decoding, Engine
from t3d.cli import run
from t3d.engine.rules import RULES
from t3d.errors import RequestError
from t3d.evaluation.benchmarks import BENCHMARKS
from t3d.models import load_model, load_tokenizer, save_model
from t3d.objectives import OBJECTIVES
from t3d.tasks.prompts import render_question
from t3d.trajectories import read, read_meta, write


def test_generate_from_token_ids(model_folder):
    engine = Engine.from_pretrained(str(model_folder), dtype="float32", device="cpu", attention="sdpa")
    decoding = Decoding(
        block_size=4,
        steps_per_block=1,
        rule="low_confidence_static",
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        threshold=0.9,
        max_new_tokens=16,
        stop_token_ids=None,
        seed=0,
    )
    prompts = [[17, 4, 30, 31, 32], [9, 8, 7]]
    outs = engine.generate(prompts, decoding)
    for prompt, o in zip(prompts, outs, strict=True):
        assert o.prompt_ids == prompt
        assert 1 <= len(o.token_ids) <= 16
        assert len(o.token_ids) == len(o.reveal_steps) == len(o.confidences)
        assert o.num_forwards >= max(o.reveal_steps)
        assert o.finish_reason in ("stop", "length")
        assert o.text == load_tokenizer(model_folder).decode(o.token_ids, skip_special_tokens=True)


def test_generate_from_text(model_folder):
    engine = Engine.from_pretrained(model_folder, device="cpu")
    (o,) = engine.generate_text(["How many?"], Decoding(max_new_tokens=8))
    (same,) = engine.generate(engine.encode(["How many?"]), Decoding(max_new_tokens=8))
    assert o == same
    assert o.text


def test_decoding_is_checked_when_it_is_made():
    with pytest.raises(RequestError, match="threshold"):
        Decoding(threshold=2)
    with pytest.raises(TypeError, match="tresh"):
        Decoding(tresh=0.5)


def test_trajectories_are_read_and_written(trajectory_folder, tmp_path):
    rows = list(read(trajectory_folder))
    write(tmp_path / "copy", rows, read_meta(trajectory_folder))
    assert list(read(str(tmp_path / "copy"))) == rows


def test_registries_have_what_the_design_names():
    assert {"t3d", "trajectory_ce", "sft"} <= set(OBJECTIVES)
    assert {"sequential", "low_confidence_static", "low_confidence_dynamic", "entropy_bounded"} <= set(RULES)
    assert "story" in BENCHMARKS


def test_a_saved_model_is_the_same_model(model_folder, tmp_path):
    model = load_model(model_folder, device="cpu")
    save_model(model, tmp_path / "saved", load_tokenizer(model_folder))
    again = load_model(tmp_path / "saved", device="cpu")
    assert all((again.state_dict()[name] == value).all() for name, value in model.state_dict().items())
    generate = [Engine.from_pretrained(folder, device="cpu").generate for folder in (model_folder, tmp_path / "saved")]
    first, second = (one([[5, 6, 7]], Decoding(max_new_tokens=8)) for one in generate)
    assert first == second


def test_generate_on_the_command_line(model_folder, capsys):
    words = ["generate", "How many?", "And now?", "--model", str(model_folder), "--max-new-tokens", "8"]
    assert run([*words, "--device", "cpu", "--steps-per-block", "1"]) == 0
    out, err = capsys.readouterr()
    engine = Engine.from_pretrained(model_folder, device="cpu")
    prompts = [render_question(text) for text in ("How many?", "And now?")]
    expected = engine.generate_text(prompts, Decoding(steps_per_block=1, max_new_tokens=8))
    assert out == "".join(f"{(o.text or '').strip()}\n" for o in expected)
    for o, line in zip(expected, err.splitlines(), strict=True):
        assert line.startswith(f"[{len(o.token_ids)} tokens, {o.num_forwards} forwards, TPF ")
        assert line.endswith(f"{o.finish_reason}]")


def test_generate_puts_questions_as_chats_where_the_tokenizer_has_a_template(model_folder, tmp_path, capsys):
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}A:"
    save_model(load_model(model_folder, device="cpu"), tmp_path / "chat", tokenizer)
    words = ["generate", "How many?", "--model", str(tmp_path / "chat"), "--max-new-tokens", "8", "--device", "cpu"]
    assert run(words) == 0
    engine = Engine.from_pretrained(tmp_path / "chat", device="cpu")
    (chat,) = engine.generate_text(["user: How many?\nA:"], Decoding(max_new_tokens=8))
    (plain,) = engine.generate_text([render_question("How many?")], Decoding(max_new_tokens=8))
    assert capsys.readouterr().out == f"{(chat.text or '').strip()}\n" != f"{(plain.text or '').strip()}\n"


def test_the_built_in_teacher_is_the_default_and_answers(capsys):
    question = "Tom has 5 apples. Then Tom gets 3 more apples. Then Tom loses 2 apples. How many apples does Tom have?"
    assert run(["generate", question, "--device", "cpu", "--max-new-tokens", "160"]) == 0
    out, err = capsys.readouterr()
    assert "####" in out
    assert err.endswith("stop]\n")


def test_a_folder_without_a_tokenizer_takes_token_ids():
    """The golden model, unchanged."""
    engine = Engine.from_pretrained(Path(__file__).parent / "golden" / "A_model", device="cpu")
    (out,) = engine.generate([[5, 6, 7, 8, 9]], Decoding(max_new_tokens=8))
    assert len(out.token_ids) == len(out.reveal_steps) > 0
    assert out.text is None
    with pytest.raises(RequestError, match="holds no tokenizer"):
        engine.generate_text(["a"])
