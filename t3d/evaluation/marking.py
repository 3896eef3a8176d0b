"""Decoding and grading at one setting, at the same time: what the engine finishes, the grader gets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from t3d.engine import Engine
from t3d.evaluation.diversity import surprisal
from t3d.evaluation.exam import Item
from t3d.evaluation.journal import Journal, Response
from t3d.evaluation.settings import label_of
from t3d.evaluation.warming import warm_up
from t3d.progress import Reporter
from t3d.tasks import Grader
from t3d.tasks.base import known
from t3d.types import Decoding, Generation, Verdict

NOT_DECODED = "not_decoded"
"""The outcome of a response that ended by an error of the engine."""


class Marking:
    """One setting of an evaluation, as far as the journal does not have it yet.

    Graders answer in threads of their own; their verdicts wait in a queue, and only the caller's thread writes.

    Args:
        setting: its place among the settings.
        decoding: resolved.
        items: what is asked.
        grader: of the benchmark.
        journal: takes what is finished.
        reporter: is told of graded answers.
    """

    def __init__(
        self,
        setting: int,
        decoding: Decoding,
        items: Sequence[Item],
        grader: Grader,
        journal: Journal,
        reporter: Reporter,
    ) -> None:
        self._setting, self._decoding, self._items = setting, decoding, items
        self._grader, self._journal, self._reporter = grader, journal, reporter
        self._graded: SimpleQueue[tuple[int, Future[Verdict]]] = SimpleQueue()
        places = range(len(items))
        known = [verdict for place in places if (verdict := journal.verdicts.get((setting, place)))]
        self._num_graded, self._num_right = len(known), sum(verdict.right for verdict in known)

    def complete(self, engine: Engine) -> None:
        """Decode what is not decoded, grade what is not graded, and wait for the last verdict."""
        journal, setting = self._journal, self._setting
        left = [place for place in range(len(self._items)) if (setting, place) not in journal.responses]
        for place in range(len(self._items)):
            if (setting, place) in journal.responses and (setting, place) not in journal.verdicts:
                self._grade(place)
        if left:
            self._decode(engine, left)
        while self._num_graded < len(self._items):
            self._take_in(*self._graded.get())

    def _decode(self, engine: Engine, places: Sequence[int]) -> None:
        items = [self._items[place] for place in places]
        prompts, seeds = [item.prompt_ids for item in items], [item.seed for item in items]
        warm_up(engine, prompts, self._decoding)
        started = time.perf_counter()

        def keep(index: int, generation: Generation) -> None:
            response = _response(generation, self._journal.part, time.perf_counter() - started)
            self._journal.add_response((self._setting, places[index]), response)
            self._grade(places[index])
            while not self._graded.empty():
                self._take_in(*self._graded.get())

        engine.generate(prompts, self._decoding, seeds=seeds, on_finish=keep)

    def _grade(self, place: int) -> None:
        """Have a response graded; one that ended by an error is wrong, whatever it says."""
        response = self._journal.responses[self._setting, place]
        if response.finish_reason == "error":
            future = known(Verdict(False, NOT_DECODED, detail=response.error or ""))
        else:
            future = self._grader.submit(response.text, self._items[place].problem)
        future.add_done_callback(lambda done: self._graded.put((place, done)))

    def _take_in(self, place: int, graded: Future[Verdict]) -> None:
        verdict = graded.result()
        self._journal.add_verdict((self._setting, place), verdict)
        self._num_graded += 1
        self._num_right += verdict.right
        share = f"{100 * self._num_right / self._num_graded:.1f}%"
        self._reporter.advance(1, **{label_of(self._decoding): share})


def _response(generation: Generation, part: int, elapsed: float) -> Response:
    return Response(
        part=part,
        elapsed=elapsed,
        text=generation.text or "",
        num_tokens=len(generation.token_ids),
        num_forwards=generation.num_forwards,
        steps=max(generation.reveal_steps, default=0),
        seconds=generation.seconds,
        finish_reason=generation.finish_reason,
        error=generation.error,
        surprisal=None if generation.finish_reason == "error" else surprisal(generation.confidences),
    )
