"""Who does which shard: every one once, whatever becomes of the workers; and what they run on."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.errors import WorkError
from t3d.trajectories.workers import dealing
from t3d.trajectories.workers.dealing import Dealer, Done, Lost, Ready


class FakeCrew:
    """Workers that are ready, finish and are lost as a list of numbers says; a shard's result is its number."""

    def __init__(self, choices, kills=lambda shard: False):
        self.choices, self.kills = iter(choices), kills
        self.starting, self.hands = [], {}
        self.hired = self.lost = 0
        self.given = Counter()

    def hire(self):
        self.hired += 1
        self.starting.append(self.hired)
        return self.hired

    def give(self, worker, shard):
        assert worker not in self.hands
        self.hands[worker] = shard
        self.given[shard] += 1

    def wait(self, seconds):
        choice = next(self.choices, 1)
        candidates = [*self.starting, *self.hands]
        if not candidates:
            return None
        worker = candidates[choice // 2 % len(candidates)]
        if worker in self.starting:
            self.starting.remove(worker)
            return Ready(worker, "hello")
        shard = self.hands.pop(worker)
        if self.kills(shard) or choice % 2 == 0:
            self.lost += 1
            return Lost(worker, "killed")
        return Done(worker, shard)


@settings(max_examples=200, deadline=None)
@given(choices=st.lists(st.integers(0, 40), max_size=60), workers=st.integers(1, 5), num_shards=st.integers(0, 12))
def test_every_shard_is_done_once_or_given_up_after_three_losses(choices, workers, num_shards):
    crew, done, refusal = FakeCrew(choices), [], ""
    dealer = Dealer(crew, workers)
    assert dealer.first_greeting() == "hello"
    try:
        done.extend(dealer.deal(range(num_shards)))
    except WorkError as error:
        refusal = str(error)
    given_up = {shard for shard, times in crew.given.items() if times == 3 and (shard, shard) not in done}
    assert all(f"shard {shard} (killed)" in refusal for shard in given_up)
    assert refusal.count("shard ") == len(given_up)
    assert sorted(shard for shard, _ in done) == [shard for shard in range(num_shards) if shard not in given_up]
    assert all(shard == result for shard, result in done)
    assert sum(crew.given.values()) == len(done) + crew.lost
    assert max(crew.given.values(), default=0) <= 3
    assert crew.hired <= workers + crew.lost


def test_a_shard_that_kills_its_workers_costs_nothing_else(caplog):
    crew = FakeCrew([], kills=lambda shard: shard == 2)
    dealer = Dealer(crew, 1)
    dealer.first_greeting()
    done = []
    with pytest.raises(WorkError, match=r"3 workers each were lost with shard 2 \(killed\): given up"):
        done.extend(shard for shard, _ in dealer.deal(range(5)))
    assert done == [0, 1, 3, 4]
    fates = [record.getMessage().split("; ")[1] for record in caplog.records]
    assert fates == ["shard 2 will be redone"] * 2 + ["shard 2 is given up: 3 workers were lost with it"]


class StillbornCrew(FakeCrew):
    """Workers that die while they start."""

    def wait(self, seconds):
        return Lost(self.starting.pop(), "no memory")


def test_workers_that_cannot_start_are_not_started_for_ever(caplog):
    crew = StillbornCrew([])
    with pytest.raises(WorkError, match="no worker is left: no memory"):
        Dealer(crew, 2).first_greeting()
    assert crew.hired == 2 + 2 * dealing.RESTARTS_PER_WORKER
    assert caplog.records[-1].getMessage().endswith("no other is started: too many were lost in a row")


class SilentCrew(FakeCrew):
    """A cluster without room."""

    waited = 0.0

    def wait(self, seconds):
        self.waited += seconds


def test_a_cluster_without_room_is_not_waited_for_for_ever_nor_in_silence(caplog):
    crew = SilentCrew([])
    with pytest.raises(WorkError, match="no worker was ready within 1800 s"):
        Dealer(crew, 2).first_greeting()
    assert crew.waited == dealing.PATIENCE_SECONDS
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 30
    assert said[1].startswith("no worker is ready after 120 s: has the cluster room")


class LostAtTheEndCrew(FakeCrew):
    """Four workers of one node, which dies when they have done all but the last shard: that is seen only of the one who
    has it in hand, of the others when they are given it."""

    def wait(self, seconds):
        if self.starting:
            return Ready(self.starting.pop(0), "hello")
        worker = next(each for each, shard in self.hands.items() if shard != 3 or len(self.hands) == 1)
        shard = self.hands.pop(worker)
        if shard == 3 and worker <= 4:
            self.lost += 1
            return Lost(worker, "its node is gone", had_begun=self.given[3] == 1)
        return Done(worker, shard)


def test_workers_that_died_idle_do_not_count_against_the_shard_that_they_are_given():
    crew = LostAtTheEndCrew([])
    dealer = Dealer(crew, 4)
    dealer.first_greeting()
    assert sorted(shard for shard, _ in dealer.deal(range(4))) == [0, 1, 2, 3]
    assert crew.lost == 4
