"""Our deliveries against Bochs' on machines around good ones; `make differential N=100000` is the same for volume."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings

from differential import bochs as differential
from differential import machines
from x86tables.delivery.state import CpuState
from x86tables.prove import workers
from x86tables.prove.bochs import load
from x86tables.prove.event_log import predict
from x86tables.strategies import cases

RARE = {"LDT entry", "LDT limit", "push RFLAGS", "dword3_type", "nmi_fetch_rip", "smap_ac_cpl3", "ss_err_old_ss"}


@pytest.mark.needs("bochscpu")
def test_two_hundred_machines() -> None:
    tally = differential.Tally()
    for number, result in workers.run(lambda: differential.prepare(1), range(200), os.cpu_count() or 1, 50):
        tally.add(number, result)
    assert (tally.differ, tally.total) == ([], 200)
    assert {what.split(": ")[1] for what in tally.unmet()} == RARE, "the others are met, and a lack is noticed"
    assert tally.counts["outcome"]["runs"] > 100 and tally.counts["outcome"]["shutdown"] > 30
    assert sum(tally.counts["deviation"].values()) < 10


@pytest.mark.needs("bochscpu")
@pytest.mark.needs("distributed")
def test_ranges_of_cases_over_a_cluster() -> None:
    """They cover what one process covers, and say so in the same words."""
    run = [sys.executable, "-m"]
    many = subprocess.run([*run, "differential.campaign", "100", "--size", "30"], stdout=subprocess.PIPE, text=True)
    one = subprocess.run([*run, "differential.bochs", "100"], stdout=subprocess.PIPE, text=True)
    assert many.returncode == one.returncode == 0
    assert many.stdout.splitlines()[-1] == "100 cases, 0 unexplained disagreements"
    assert [sorted(re.findall(r"[^,]+ \d+", part)) for part in many.stdout.split(":")] == [
        sorted(re.findall(r"[^,]+ \d+", part)) for part in one.stdout.split(":")
    ]


def test_a_case_is_the_same_every_time() -> None:
    def drawn(seed: int) -> list[object]:
        cases = [machines.case(seed, number) for number in range(20)]
        return [(case.stimulus, case.mutations, case.handler_stack, case.machine.registers) for case in cases]

    assert drawn(1) == drawn(1)
    assert not [pair for pair in zip(drawn(1), drawn(2), strict=True) if pair[0] == pair[1]]


@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
@given(cases())
def test_a_prediction_changes_nothing(case: machines.Case) -> None:
    before = [case.machine.memory.read(known.start, len(known)) for known in case.machine.memory.ranges]
    event_log = predict(CpuState(case.machine), case.stimulus, case.handler_stack)
    assert event_log == predict(CpuState(case.machine), case.stimulus, case.handler_stack)
    assert before == [case.machine.memory.read(known.start, len(known)) for known in case.machine.memory.ranges]


@pytest.mark.needs("bochscpu")
@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(cases())
def test_what_hypothesis_draws(case: machines.Case) -> None:
    ((_, result),) = workers.run(lambda: lambda made: differential.compare(0, made, load()), [case])
    assert not isinstance(result, workers.Crashed) and result.differs == "", case.mutations
