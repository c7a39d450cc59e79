"""Everything that legacy systems do, alone and together: after one sweep the front office equals the back office."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from poller.loop import SourceLoop
from tests.fakes.liar import Fault
from tests.fakes.liar_world import MODES, LiarWorld, Mode, drift

OF_CONTENT = frozenset({Fault.SCHEMA, Fault.EMPTIED, Fault.RESTORED, Fault.SET_BACK, Fault.RECREATED})
"""After these, what polls have not shown is not exactly what a sweep counts as drift: it may find it earlier."""


async def lived(world: LiarWorld, life_s: float = 100) -> None:
    """Loaded and swept, some life with faults, then quiet: nothing is written, requests succeed, late commits are in."""
    for _ in range(23):
        world.liar.create()
    world.liar.is_honest = True
    world.liar.pass_time(200)
    loop = await world.take()
    await world.spend(loop, 20)
    assert world.differences() == {}
    world.liar.is_honest, world.liar.is_lively = False, True
    await world.spend(loop, life_s)
    world.liar.is_honest, world.liar.is_lively = True, False
    # Longer than the latest commit, the overlap and the longest back-off.
    await world.spend(loop, 300)
    assert not world.liar.pending


async def swept(world: LiarWorld, loop: SourceLoop) -> None:
    """One sweep; a second pass where nobody can be asked by key."""
    while loop.swept is None or (loop.swept.missing and loop.sweeps < 2):
        await world.spend(loop, 5)


async def check(world: LiarWorld, mode: Mode) -> None:
    await lived(world)
    before, unseen = world.differences(), world.liar.unseen
    if mode != "walk":
        assert before.keys() <= unseen, "only what no poll can show may be open before a sweep"
    counted = drift()
    loop = await world.take(allowed=True)
    await swept(world, loop)
    assert world.differences() == {}, "0 missing, 0 stale, 0 ghosts"
    if mode != "walk" and not world.liar.faults & OF_CONTENT:
        found = {kind: after - counted[kind] for kind, after in drift().items()}
        assert found == {kind: sum(each == kind for each in before.values()) for kind in found}


@pytest.mark.parametrize("fault", Fault, ids=[fault.name for fault in Fault])
@pytest.mark.parametrize("mode", MODES)
async def test_each_fault_alone(fault: Fault, mode: Mode) -> None:
    await check(LiarWorld(7, {fault}, mode), mode)


# A failure names its seed; finding a smaller one would take minutes.
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
)
@given(
    seed=st.integers(0, 2**32),
    faults=st.sets(st.sampled_from(list(Fault)), min_size=2),
    mode=st.sampled_from(MODES),
    reread=st.booleans(),
)
async def test_faults_together(seed: int, faults: set[Fault], mode: Mode, reread: bool) -> None:
    note(f"seed={seed} faults={sorted(faults)} mode={mode} reread={reread}")
    await check(LiarWorld(seed, faults, mode, reread=reread), mode)


@pytest.mark.parametrize("mode", MODES)
async def test_all_faults_at_once(mode: Mode) -> None:
    everything = set(Fault) - {Fault.BEHIND, Fault.SPRING}
    await check(LiarWorld(11, everything, mode), mode)


async def test_the_check_can_fail() -> None:
    """Without sweeps ghosts stay, and the check says so."""
    world = LiarWorld(7, {Fault.DELETE}, "time")
    await lived(world)
    assert "deleted" in world.differences().values()
