"""Energy and carbon: Table 3 from Eq. 10, and a meter that says what it measured and what it assumed."""

import sys
import time
from dataclasses import asdict
from types import SimpleNamespace

import pandas as pd
import pytest

from xmlib import carbon, reported, reporting, tables


def test_the_product_gives_table_3_and_the_printed_sum_does_not():
    kwh = carbon.energy_kwh(310, 7.5)
    assert kwh == 2.325 and carbon.emission_kg(kwh, 0.432) == pytest.approx(1.0044)
    assert carbon.emission_as_printed(kwh, 0.432) == pytest.approx(2.757)
    assert carbon.energy_kwh(300, 24, devices=32) == 230.4
    assert carbon.emission_kg(2.0, 0.5, pue=1.5) == 1.5


def test_an_emission_in_coal_is_near_what_the_paper_says():
    assert carbon.equivalents(99.52)["kg of coal burned"] == pytest.approx(49.6, abs=0.3)
    assert carbon.equivalents(1.01)["kg of coal burned"] == pytest.approx(0.5, abs=0.01)


@pytest.fixture
def no_counters(monkeypatch, tmp_path):
    monkeypatch.setattr(carbon, "_nvml_counters", list)
    monkeypatch.setattr(carbon, "RAPL", tmp_path / "none")


def test_without_a_counter_energy_is_assumed_and_never_called_measured(no_counters):
    with carbon.Meter(threads=2, core_w=5.0) as meter:
        time.sleep(0.02)
    (reading,) = meter.readings
    assert reading.basis == "assumed" and "2 cores × 5 W" in reading.how
    assert reading.power_w == pytest.approx(10)
    assert meter.energy_kwh() is None
    assert meter.energy_kwh("assumed") == pytest.approx(10 * meter.seconds / 3.6e6)


def rapl(folder, energy, span=1000):
    for name, text in (("energy_uj", energy), ("max_energy_range_uj", span), ("name", "package-0")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")


def test_counters_are_measured_and_one_that_starts_again_is_followed(monkeypatch, tmp_path):
    gpu = iter([5_000_000, 5_000_000 + 3_600_000])  # millijoules: 3.6 kJ are 0.001 kWh
    monkeypatch.setattr(carbon, "_nvml_counters", lambda: [("a GPU", lambda: next(gpu))])
    monkeypatch.setattr(carbon, "RAPL", tmp_path)
    rapl(tmp_path / "intel-rapl:0", 900)
    rapl(tmp_path / "intel-rapl:0:0", 5)  # a part of the package, which is in it already
    with carbon.Meter() as meter:
        rapl(tmp_path / "intel-rapl:0", 100)
    assert [reading.basis for reading in meter.readings] == ["measured", "measured"]
    assert meter.readings[0].energy_kwh == pytest.approx(0.001)
    assert meter.readings[1].energy_kwh == pytest.approx(201e-6 / 3.6e6)  # 900 → 1000 is 0 → 100
    assert meter.energy_kwh("assumed") is None


def test_work_side_by_side_shares_a_reading(monkeypatch, tmp_path):
    joules = iter([0, 3_600_000_000])  # in millijoules: 1 kWh
    monkeypatch.setattr(carbon, "_nvml_counters", lambda: [("a GPU", lambda: next(joules))])
    monkeypatch.setattr(carbon, "RAPL", tmp_path / "none")
    monkeypatch.setattr(carbon.processes, "sharing", 4)
    with carbon.Meter() as meter:
        pass
    assert meter.energy_kwh() == pytest.approx(0.25) and "shared by 4" in meter.readings[0].how
    assert meter.readings[1].basis == "assumed"
    meter.save(tmp_path)
    assert carbon.measured(tmp_path) == pytest.approx(0.25)


class Tracker:
    """codecarbon's, with energies of its own."""

    final_emissions_data = SimpleNamespace(
        codecarbon_version="3", cpu_model="a CPU", cpu_energy=0.004, ram_energy=0.002, gpu_energy=9.0
    )

    def __init__(self, **choices):
        assert choices["country_iso_code"] and not choices["save_to_file"]

    def start(self):
        self.started = True

    def stop(self):
        assert self.started


@pytest.mark.parametrize("with_rapl", [False, True])
def test_codecarbon_assumes_what_has_no_counter(monkeypatch, tmp_path, with_rapl):
    monkeypatch.setenv("XMLIB_METER", "codecarbon")
    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Tracker))
    gpu = iter([0, 3_600_000])
    monkeypatch.setattr(carbon, "_nvml_counters", lambda: [("a GPU", lambda: next(gpu))])
    monkeypatch.setattr(carbon, "RAPL", tmp_path)
    monkeypatch.setattr(carbon.processes, "sharing", 2)
    if with_rapl:
        rapl(tmp_path / "intel-rapl:0", 900)
    with carbon.Meter() as meter:
        pass
    assumed = {reading.hardware: reading for reading in meter.readings if reading.basis == "assumed"}
    assert set(assumed) == ({"memory"} if with_rapl else {"CPU", "memory"})
    assert assumed["memory"].energy_kwh == pytest.approx(0.001) and "codecarbon 3 for a CPU" in assumed["memory"].how
    assert meter.energy_kwh() == pytest.approx(0.0005), "the GPU by its own counter, the memory in no sum with it"


def test_codecarbon_itself_has_these_numbers(monkeypatch, no_counters):
    pytest.importorskip("codecarbon")
    monkeypatch.setenv("XMLIB_METER", "codecarbon")
    with carbon.Meter() as meter:
        time.sleep(0.5)
    assert [(reading.hardware, reading.basis) for reading in meter.readings] == [
        ("CPU", "assumed"),
        ("memory", "assumed"),
    ]
    assert all(0.1 < reading.power_w < 2000 for reading in meter.readings)


def test_a_meter_that_is_not_there_stops_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    for name, error in (("codecarbon", "pip install 'codecarbon>=3'"), ("wattmeter", "have: codecarbon, or nothing")):
        monkeypatch.setenv("XMLIB_METER", name)
        with pytest.raises((ImportError, ValueError), match=error), carbon.Meter():
            raise AssertionError("not reached")


def test_a_machine_without_a_gpu_has_no_gpu_counters():
    assert isinstance(carbon._nvml_counters(), list)


def test_what_the_meter_missed_of_a_training_is_assumed_in_a_row_of_its_own(tmp_path):
    log = pd.DataFrame({"step": range(100), "seconds": 36.0})  # an hour
    (assumed,) = carbon.training(tmp_path, log, power_w=100, how="guess")
    assert (assumed.energy_kwh, assumed.basis, assumed.how) == (0.1, "assumed", "guess")
    half = carbon.Reading("a GPU", 0.25, 0.5, 500.0, "measured", "NVML")
    pd.DataFrame([asdict(half)]).to_csv(tmp_path / carbon.FILE, index=False)
    measured, assumed = carbon.training(tmp_path, log, power_w=100, how="guess")
    assert measured == half and (assumed.hardware, assumed.hours, assumed.energy_kwh) == ("a GPU", 0.5, 0.25)
    assert assumed.basis == "assumed" and assumed.how.endswith("NVML")


def test_a_meter_leaves_its_readings_for_the_ledger(no_counters, tmp_path):
    with carbon.Meter(threads=1) as meter:
        time.sleep(0.05)
    meter.save(tmp_path)
    assert carbon.measured(tmp_path) is None
    log = pd.DataFrame({"seconds": [meter.seconds]})
    assert carbon.training(tmp_path, log, 1.0, "") == meter.readings


def ledger(**changes):
    row = dict.fromkeys(carbon.LEDGER_COLUMNS) | dict(
        system="ColBERT-XM", what="fine-tuning", hardware="CPU", power_w=4.0
    )
    row |= dict(
        hours=0.5, energy_kwh=0.002, basis="assumed", how="x", profile="demo", model="m", device="d", commit="c"
    )
    return pd.DataFrame([row | changes])


def test_table_3_shows_every_printed_row_again_and_ours_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(reporting, "FIGURES", tmp_path)
    paths = reporting.energy_table(ledger(), "demo", intensity=0.5)
    cells = reporting.read_csv(paths[0])
    printed = cells[cells["source"] == "paper"]
    assert list(printed["system"]) == list(dict.fromkeys(row["system"] for row in reported.rows(3)))
    apart = (printed["emission_kg"] - printed["again_kg"]).abs().round(4)
    assert list(printed.loc[apart > 0.005, "system"]) == ["mE5-base", "ColBERT-XM"]
    (own,) = cells[cells["source"] == "ours"].to_dict("records")
    assert own["emission_kg"] == pytest.approx(0.001) and own["again_kwh"] != own["again_kwh"]
    text = paths[1].read_text()
    assert "| ColBERT-XM, fine-tuning" in text and "30 min" in text and text.splitlines()[-1].startswith("DEMO. ")
    assert "not run" in reporting.energy_table(ledger(profile="small"), "demo", 0.5)[1].read_text()


def test_measured_and_assumed_energy_are_never_one_number(monkeypatch, tmp_path):
    monkeypatch.setattr(reporting, "FIGURES", tmp_path)
    both = pd.concat([ledger(), ledger(basis="measured", energy_kwh=0.005)])
    results = pd.DataFrame(
        [dict(system="ColBERT-XM", profile="demo", metric="mrr@10", value=0.25, collection="sample")]
    )
    paths = reporting.quality_by_energy(tables.energy(both, "demo", 0.5), results, "demo")
    frame = reporting.read_csv(paths[0])
    ours = frame[frame["source"] == "ours"]
    assert dict(zip(ours["basis"], ours["energy_kwh"], strict=True)) == {"assumed": 0.002, "measured": 0.005}
    assert set(ours["value"]) == {0.25} and 0.007 not in set(frame["energy_kwh"]) and len(paths) == 3
