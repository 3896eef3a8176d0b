"""Tiny studies that test files share: a study's fields, workers without processes, rows without clocks."""

from contextlib import contextmanager

from t3d.config.recipe import checked
from t3d.config.study import StudyConfig
from t3d.study.jobs import do
from t3d.study.run import run_study

HOPELESS = "no answer agrees"
"""A method that fails: nothing that this rolls out agrees with the full-step answer."""


def study_fields(model, out):
    """Two methods that can be had, one that fails, an ablation, equal time; on the CPU, in seconds."""
    rollout = {"task": "story", "count": 6, "max_new_tokens": 12}
    return {
        "teacher": str(model),
        "out": str(out),
        "seeds": [0, 100],
        "learning_rates": [1e-3, 3e-3],
        "rollout": {**rollout, "temperature": 1.0},
        "recipe": {
            "optim": {"steps": 3, "examples_per_step": 4, "warmup_steps": 1},
            "corruption": {"ratio_power": 2.0},
            "batch": {"tokens_per_batch": 200},
            "checkpoint": {"every_steps": 1},
            "log_every": 1,
            "device": "cpu",
        },
        "tune": {"limit": 3, "tokens_per_step": [1, 4]},
        "test": {"limit": 5, "tokens_per_step": [1, 4], "thresholds": [0.5], "max_new_tokens": 12},
        "equal_time": {"to": "rounds", "methods": ["plain"]},
        "methods": {
            "plain": {"objective": {"name": "trajectory_ce"}, "about": "one training"},
            "rounds": {
                "objective": {"name": "t3d"},
                "optim": {"steps": 2},
                "rounds": [{"rollout": rollout, "keep_unfinished": True}],
            },
            HOPELESS: {
                "objective": {"name": "trajectory_ce"},
                "rounds": [{"rollout": {**rollout, "count": 1, "max_new_tokens": 2, "steps_per_block": 1}}],
            },
        },
        "ablations": {"no random tokens": {"of": "plain", "corruption": {"random_token_share": 0.0}}},
        "claims": [{"text": "Rounds are better", "better": "rounds", "than": "plain", "at": [4]}],
    }


def study_of(fields):
    return checked(StudyConfig, fields, "study")


class Inline:
    """Workers that do a job when they are waited for, in this process; the newest first, to mix the order up.

    Args:
        at_once: jobs.
        kill_after: raises `Killed` in place of so many and first job.
    """

    def __init__(self, at_once=1, kill_after=None):
        self._at_once, self._kill_after = at_once, kill_after
        self._waiting = []
        self.done = []

    @property
    def has_idle(self):
        return len(self._waiting) < self._at_once

    @property
    def is_busy(self):
        return bool(self._waiting)

    def start(self, key, job):
        self._waiting.append((key, job))

    def wait(self):
        if self._kill_after is not None and len(self.done) == self._kill_after:
            raise Killed
        key, job = self._waiting.pop()
        self.done.append(key)
        try:
            do(job)
        except Exception as error:
            return [(key, " ".join(str(error).split()))]
        return [(key, None)]


class Killed(BaseException):
    pass


def run_inline(fields, workers=None, resume=False):
    """A study without processes."""

    @contextmanager
    def make():
        yield workers or Inline()

    return run_study(study_of(fields), jobs=1, resume=resume, workers=make)


def without_times(row):
    """A row's fields, less what a clock or a folder's name had a say in."""
    fields = row.model_dump()
    recipe = fields.pop("recipe") or {}
    recipe.pop("batch", None)
    recipe = {**recipe, "data": {**(recipe.get("data") or {}), "trajectories": None}}
    training = fields.pop("training") or {}
    kept = {"steps": training.get("steps"), "curve": [point["step"] for point in training.get("curve", ())]}
    return {**fields, "recipe": recipe, **kept}


def comparable(rows):
    """What two runs of a study have in common; cells at equal time hang on clocks."""
    return [without_times(row) for row in rows.rows if row.kind != "equal time"]
