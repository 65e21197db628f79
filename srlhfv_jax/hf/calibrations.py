"""calibration.json beside score heads: P(unsafe | cost) and normalisers, numbers alone. It is of these heads and no others."""

from pathlib import Path
from typing import Any

from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.files import read_json, take
from srlhfv_jax.hf import weights
from srlhfv_jax.losses.calibration import Calibration

ADVICE = "write it anew with srlhfv calibrate"
KNOTS = ("costs", "probabilities")
FLOOR = "probability_floor"  # among the numbers


def described(calibration: Calibration) -> dict[str, Any]:
    """The map as calibration.json has it under "unsafe"."""
    if calibration.costs:
        return {"fit": "isotonic", "costs": list(calibration.costs), "probabilities": list(calibration.probabilities)}
    return {"fit": "platt", "slope": calibration.slope, "intercept": calibration.intercept}


def read(folder: Path) -> Calibration | None:
    """The map beside the heads of a checkpoint; None where they were not calibrated.

    Raises:
        UserError: a file that is damaged, or whose map falls.
    """
    path = folder / weights.CALIBRATION
    if not path.is_file():
        return None
    unsafe = take(read_json(path, advice=ADVICE), "unsafe", dict, str(path), advice=ADVICE)
    kind = take(unsafe, "fit", str, str(path), advice=ADVICE)
    if kind == "platt":
        slope, intercept = (float(take(unsafe, name, float, str(path), advice=ADVICE)) for name in ("slope", "intercept"))
        if slope <= 0:
            raise UserError(f"{path}: slope must be above 0, got {slope}: {ADVICE}")
        return Calibration(slope, intercept)
    if kind != "isotonic":
        raise UserError(f"{path}: fit must be 'platt' or 'isotonic', got {shown(kind)}: {ADVICE}")
    costs, probabilities = (tuple(map(float, take(unsafe, name, list[float], str(path), advice=ADVICE))) for name in KNOTS)
    falls = any(low > high for values in (costs, probabilities) for low, high in zip(values, values[1:]))
    if len(costs) != len(probabilities) or not costs or falls or not (0 <= probabilities[0] and probabilities[-1] <= 1):
        raise UserError(f"{path}: costs and probabilities must rise together, from 0 to 1 at most, got {shown(unsafe)}: {ADVICE}")
    return Calibration(0.0, 0.0, costs, probabilities)


def floor(folder: Path) -> float:
    """The mean calibrated probability of the tenth of held-out answers that costs least; 0 where it was not written."""
    numbers = read_json(folder / weights.CALIBRATION, advice=ADVICE).get("numbers")
    return float(numbers.get(FLOOR, 0.0)) if isinstance(numbers, dict) else 0.0


def required(folder: Path, name: str) -> Calibration:
    """The same where it must be there; `name` is the setting that asks for it, for the message.

    Raises:
        UserError: as `read`, or there is none.
    """
    calibration = read(folder)
    if calibration is None:
        raise UserError(
            f"{name} needs {weights.CALIBRATION} beside the cost head, {folder} has none: run srlhfv calibrate on it first"
        )
    return calibration
