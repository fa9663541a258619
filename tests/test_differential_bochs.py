"""Our deliveries against Bochs' on machines around good ones; `make differential N=100000` is the same for volume."""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from differential import bochs as differential
from differential import machines
from x86tables.delivery.state import CpuState
from x86tables.prove import workers
from x86tables.prove.bochs import load
from x86tables.prove.event_log import predict
from x86tables.prove.stimulus import CODE
from x86tables.strategies import cases

DEVIATIONS = {
    "rip_check_after_push", "dword3_type", "ld_before_p", "ss_err_old_ss", "conf_push_dpl", "smap_ac_cpl3",
    "smap_ac_cpl0", "nmi_fetch_rip",
}  # fmt: skip
CHECKS = {
    "IDT limit", "IDT entry", "gate type", "gate DPL", "gate P", "gate selector", "GDT limit", "GDT entry", "LDT limit",
    "LDT entry", "segment type", "segment DPL", "segment P", "segment L, D", "TSS limit", "TSS RSP0", "TSS IST1",
    "gate offset", "push SS", "push RFLAGS", "push RIP", "accessed bit",
}  # fmt: skip


@pytest.mark.needs("bochscpu")
def test_three_thousand_machines() -> None:
    tally = differential.Tally()
    for number, result in workers.run(lambda: differential.prepare(1), range(3000), os.cpu_count() or 1, 100):
        tally.add(number, result)
    assert tally.differ == []
    assert tally.total == 3000
    counts = tally.counts
    assert min(counts["outcome"][name] for name in ("runs", "shutdown", "goes on")) >= 10
    assert {"#DE", "#DB", "#UD", "#TS", "#NP", "#SS", "#GP", "#PF", "#DF", "#MC"} <= counts["fault"].keys()
    assert counts["refused at"].keys() >= CHECKS
    assert counts["deviation"].keys() == DEVIATIONS
    assert counts["stimulus"].keys() == {*CODE, "int", "interrupt", "nmi", "exception"}
    assert sum(counts["deviation"].values()) < 200


def test_a_case_is_the_same_every_time() -> None:
    one, other = machines.case(1, 5), machines.case(1, 5)
    assert (one.stimulus, one.mutations, one.machine.registers) == (
        other.stimulus,
        other.mutations,
        other.machine.registers,
    )
    assert (
        machines.case(2, 5).mutations != one.mutations or machines.case(2, 6).mutations != machines.case(1, 6).mutations
    )


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
