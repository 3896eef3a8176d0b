"""The students that ship with the package: what they were distilled for, they do."""

import pytest

from t3d import Decoding, Engine
from t3d.evaluation import evaluate, get_benchmark
from t3d.models import load_config, model_fingerprint

TEACHER_OF = {"story-mini-student": "story-mini", "story-small-student": "story-small"}
NUM_PROBLEMS = 24


def num_right(engine, name):
    """At four tokens per step, greedy: of a few test problems, always the same ones."""
    fastest = Decoding(steps_per_block=1, max_new_tokens=160).resolve(engine.model.config.block_size)
    result = evaluate(engine, get_benchmark("story"), [fastest], name=name, model=name, limit=NUM_PROBLEMS)
    return result.settings[0].num_right


@pytest.mark.parametrize("student", TEACHER_OF)
def test_a_built_in_student_answers_in_a_quarter_of_the_steps_what_its_teacher_cannot(student):
    engines = {name: Engine.from_pretrained(name, device="cpu") for name in (student, TEACHER_OF[student])}
    right = {name: num_right(engine, name) for name, engine in engines.items()}
    assert right[student] >= 0.8 * NUM_PROBLEMS
    assert right[TEACHER_OF[student]] <= 0.5 * NUM_PROBLEMS


@pytest.mark.parametrize("student", TEACHER_OF)
def test_a_built_in_student_has_the_shapes_of_its_teacher_and_weights_of_its_own(student):
    teacher = TEACHER_OF[student]
    assert load_config(student).to_diff_dict() == load_config(teacher).to_diff_dict()
    models = [Engine.from_pretrained(name, device="cpu").model for name in (student, teacher)]
    assert model_fingerprint(models[0]) != model_fingerprint(models[1])
