"""What a computation takes: energy from power and time (Eq. 10), emission from energy, and a meter for our own runs.

    energy_kwh(power_w=310, hours=7.5)                  # 2.325: assumed, from a data sheet
    emission_kg(2.325, INTENSITY["paper"])              # 1.0044 kg CO2eq

    with Meter() as meter:
        work()
    meter.readings                                      # one per part: measured, or assumed with the reason

Eq. 10 is printed as E_c = P_TDP × T_train + C_eff. The sum has no unit (kWh and kg per kWh) and gives none of the
numbers of Table 3; the product P_TDP × T_train × C_eff gives all but two, rounded on the way. So we multiply.

Measured and assumed energy are never added up: every row says which it is in `basis`, and sums are made per basis. A
GPU is measured by the energy counter of its driver (NVML), a processor by the RAPL counters that Linux shows to root. A
part without a counter is assumed: its power from a data sheet, times the share of its cores in use, times the time.

With XMLIB_METER=codecarbon in the environment that package (offline, to be installed besides) assumes what has no
counter: the processor by its table of TDPs and by load, and the memory by its modules. Its own sum adds such energy to
what it measured and is not used. It is not the default because it brings nine packages, a client for its web service
among them, takes seconds to start, and gives a processor that it does not know, as in many virtual machines, 4 W a core
whatever it is.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import pandas as pd

from xmlib import processes

FILE = "energy.csv"  # readings of the meter, in the folder of a trained model

LEDGER_COLUMNS = [
    "system", "what", "hardware", "power_w", "hours", "energy_kwh", "basis", "how", "examples_millions", "languages",
    "parameters_millions", "model", "device", "commit", "profile",
]  # fmt: skip

INTENSITY = {  # kg CO2eq per kWh of electricity
    "paper": 0.432,  # section 4.3.4; what the Machine Learning Impact calculator takes for private infrastructure
    "world": 0.480,  # 2023, Ember, Global Electricity Review 2024
}
PUE = {  # energy of a data centre by that of its computers
    "paper": 1.0,  # the paper counts the devices alone
    "average": 1.58,  # Uptime Institute, Global Data Center Survey 2023
}
# kg CO2eq of one unit. EPA, Greenhouse Gas Equivalencies Calculator, calculations and references (2021): 9.05e-4 t per
# pound of coal, 3.98e-4 t per mile of an average passenger car, 0.060 t taken up by a tree seedling in ten years.
EQUIVALENTS = {
    "kg of coal burned": 0.905 / 0.45359237,
    "km driven in an average car": 0.398 / 1.609344,
    "tree seedlings grown for ten years": 60.0,
}
CORE_W = 280 / 64  # TDP by cores of an AMD EPYC 7763, the paper's processor; AMD's data sheet

RAPL = Path("/sys/class/powercap")


# --- Eq. 10


def energy_kwh(power_w: float, hours: float, devices: float = 1) -> float:
    return devices * power_w * hours / 1000


def emission_kg(energy_kwh: float, intensity: float, pue: float = 1.0) -> float:
    """Eq. 10 with the product in place of the printed sum, and the overhead of the data centre."""
    return energy_kwh * pue * intensity


def emission_as_printed(energy_kwh: float, intensity: float) -> float:
    """Eq. 10 to the letter, kWh plus kg per kWh: for showing that it cannot be meant."""
    return energy_kwh + intensity


def equivalents(kg: float) -> dict[str, float]:
    """An emission in units that can be pictured."""
    return {name: kg / each for name, each in EQUIVALENTS.items()}


# --- the meter


@dataclass
class Reading:
    """The energy of one part of the machine over the time of a `Meter`."""

    hardware: str
    energy_kwh: float
    hours: float
    power_w: float  # on average, where it was measured
    basis: str  # "measured" or "assumed"
    how: str


class Meter:
    """Takes the energy of all that runs inside `with`, on every GPU and processor of this machine.

    Counters, and codecarbon, take whole devices: what other programs do there meanwhile is in the reading. Where
    `processes` has work side by side, each takes an equal share of it. `threads` is the number of cores in use where a
    processor has to be assumed (PyTorch's number of threads if None), each at `core_w`.
    """

    def __init__(self, threads: int | None = None, core_w: float = CORE_W):
        self.threads, self.core_w = threads, core_w
        self.readings: list[Reading] = []
        self.seconds = 0.0

    def __enter__(self) -> "Meter":
        self._gpus, self._packages, self._tracker = _nvml_counters(), _rapl_counters(), _codecarbon()
        self._before = [read() for _, read in self._gpus], [read() for _, read, _ in self._packages]
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error) -> None:
        self.seconds = time.perf_counter() - self._started
        hours = self.seconds / 3600
        for (name, read), before in zip(self._gpus, self._before[0], strict=True):
            joules = (read() - before) / 1000
            self._shared(name, joules / 3.6e6, "measured", "energy counter of the driver (NVML)")
        for (name, read, span), before in zip(self._packages, self._before[1], strict=True):
            joules = (read() - before) % span / 1e6  # it starts again at its span
            self._shared(name, joules / 3.6e6, "measured", "RAPL counter")
        if self._tracker is not None:
            self._tracker.stop()
            found = self._tracker.final_emissions_data
            how = f"no counter; codecarbon {found.codecarbon_version} for {found.cpu_model}"
            if not self._packages:
                self._shared("CPU", found.cpu_energy, "assumed", how)
            self._shared("memory", found.ram_energy, "assumed", how)
        elif not self._packages:
            threads = self.threads or _threads()
            how = f"no counter; {threads} cores × {self.core_w:.3g} W × time"
            self._add("CPU", energy_kwh(threads * self.core_w, hours), "assumed", how)

    def _shared(self, name: str, kwh: float, basis: str, how: str) -> None:
        """What a part of the machine took for all that runs there."""
        if processes.sharing > 1:
            how = f"{how}, shared by {processes.sharing}"
        self._add(name, kwh / processes.sharing, basis, how)

    def _add(self, name: str, kwh: float, basis: str, how: str) -> None:
        hours = self.seconds / 3600
        self.readings.append(Reading(name, kwh, hours, 1000 * kwh / hours, basis, how))

    def energy_kwh(self, basis: str = "measured") -> float | None:
        """The sum of what was measured, or of what was assumed; None where nothing was."""
        found = [reading.energy_kwh for reading in self.readings if reading.basis == basis]
        return sum(found) if found else None

    def save(self, folder: Path) -> None:
        """Leave the readings beside what was made meanwhile, for `training` and `measured`."""
        pd.DataFrame([asdict(reading) for reading in self.readings]).to_csv(Path(folder) / FILE, index=False)


def measured(folder: Path) -> float | None:
    """Kilowatt-hours that a meter measured for what lies in `folder`; None where it had no counter."""
    readings = pd.read_csv(Path(folder) / FILE).query("basis == 'measured'")
    return float(readings["energy_kwh"].sum()) if len(readings) else None


def training(folder: Path, log: pd.DataFrame, power_w: float, how: str) -> list[Reading]:
    """What it took to train the model in `folder`, whose log has a column `seconds`.

    `save` left the readings of the meter there. What they do not cover, because training was cut off and went on, is
    assumed: the remaining time at the power of each reading, or without a reading at `power_w`.
    """
    path = Path(folder) / FILE
    found = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[field.name for field in fields(Reading)])
    readings = [Reading(**row) for row in found.to_dict("records")]
    hours = log["seconds"].sum() / 3600
    missing = hours - max((reading.hours for reading in readings), default=0.0)
    if missing <= 0.02 * hours:
        return readings
    powers = [(of.hardware, of.power_w, f"at the power of the time behind it: {of.how}") for of in readings]
    return readings + [
        Reading(hardware, energy_kwh(power, missing), missing, power, "assumed", why)
        for hardware, power, why in powers or [("CPU", power_w, how)]
    ]


def _nvml_counters() -> list[tuple[str, Callable[[], float]]]:
    """(name, millijoules since the driver was loaded) of every NVIDIA GPU that has a counter: Volta and later."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, so no GPU
        return []
    counters = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        except pynvml.NVMLError_NotSupported:
            continue
        counters.append((pynvml.nvmlDeviceGetName(gpu), partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, gpu)))
    return counters


def _rapl_counters() -> list[tuple[str, Callable[[], int], int]]:
    """(name, microjoules, span of the counter) of every processor package whose counter may be read."""
    counters = []
    for folder in sorted(RAPL.glob("*-rapl:*")):
        energy = folder / "energy_uj"
        if re.fullmatch(r"[a-z]+-rapl:\d+", folder.name) and os.access(energy, os.R_OK):  # a package, not a part of one
            span = _read_int(folder / "max_energy_range_uj") + 1
            name = f"CPU {(folder / 'name').read_text().strip()}"
            counters.append((name, partial(_read_int, energy), span))
    return counters


def _codecarbon():
    """A tracker of codecarbon that has started, where XMLIB_METER asks for one; else None."""
    asked = os.environ.get("XMLIB_METER")
    if not asked:
        return None
    if asked != "codecarbon":
        raise ValueError(f"XMLIB_METER={asked!r}; have: codecarbon, or nothing for xmlib's own assumptions")
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError as error:
        raise ImportError("XMLIB_METER=codecarbon needs the package: pip install 'codecarbon>=3'") from error
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA",  # it asks for one, for an emission that is not used
        tracking_mode="machine",  # as counters do
        allow_multiple_runs=True,
        save_to_file=False,
        log_level="error",
    )
    tracker.start()
    return tracker


def _read_int(path: Path) -> int:
    return int(path.read_text())


def _threads() -> int:
    import torch

    return torch.get_num_threads()
