"""What a user may choose, in one frozen value: the same words in Python, on the command line and in recipes."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ConfigError, MissingFileError, closest
from requant.targets import TARGETS
from requant.types import PerTensor, QuantScheme, QuantType

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Calibration methods, as the compiled core lists them (kept equal by a test).
METHODS = ("minmax", "percentile", "entropy", "mse", "sqnr")
VERSION = 1
_RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """How a model is quantized.

    Attributes:
        method: calibration method that chooses the activation ranges: minmax, percentile, entropy, mse or sqnr.
        symmetric: whether activation ranges are [-a, a] ([0, a] where nothing is negative) instead of [a, b].
        percentile: share of the values, in percent, that method ``percentile`` keeps inside the range.
        per_channel: one weight scale for each output channel instead of one for the tensor.
        weights: integer type of the weights, int8 or uint8; always symmetric, with the lowest integer unused.
        activations: integer type of the activations, uint8 or int8.
        saturation: ``safe`` scales int8 weights so that no CPU saturates (x86 before VNNI adds pairs of uint8 x int8
            products in 16 bits); ``full`` always uses all 8 bits.
        target: where the model will run; decides which ops are quantized.
        optimize: ``latency`` measures on this machine which nodes are faster in integers, and leaves the others float;
            ``none`` quantizes all that the target can run.
        samples: use at most this many calibration samples.
        batch_size: samples to a batch, where the model's batch is free.
        threads: CPU threads; 0 uses all cores.
        seed: draw the ``samples`` at random with this seed instead of taking the first ones.
        version: version of this set of options.
    """

    method: str = "mse"
    symmetric: bool = False
    percentile: float = 99.99
    per_channel: bool = True
    weights: str = "int8"
    activations: str = "uint8"
    saturation: str = "safe"
    target: str = "ort-cpu"
    optimize: str = "none"
    samples: int | None = None
    batch_size: int | None = None
    threads: int = 0
    seed: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
            _check_type(field.name, getattr(self, field.name), str(field.type))
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(
                    f"{name} is {value!r}{closest(value, choices)}", hint=f"choose one of {', '.join(choices)}"
                )
        for name, low in (("samples", 1), ("batch_size", 1), ("threads", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}, expected at least {low}")
        if not 0 < self.percentile <= 100:
            raise ConfigError(f"percentile is {self.percentile}, expected a number above 0 and at most 100")
        if self.version != VERSION:
            raise ConfigError(f"version is {self.version}, this requant reads version {VERSION}")

    @property
    def cores(self) -> int:
        """Threads that really run: ``threads``, at most one for each core that this process may use."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(self.threads or available, available)

    @property
    def activation_scheme(self) -> QuantScheme:
        """Scheme of the activations: one scale for a tensor."""
        return QuantScheme(QuantType(self.activations), self.symmetric, PerTensor())

    def with_options(self, **options: Any) -> QuantConfig:
        """A copy with the named options changed.

        Raises:
            ConfigError: an option does not exist or its value does not fit.
        """
        _refuse_unknown(options)
        return replace(self, **options)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> QuantConfig:
        """A config from option names and values, the rest at their defaults."""
        return cls().with_options(**options)

    def to_dict(self) -> dict[str, Any]:
        """Every option by name; those that are unset are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_recipe(cls, recipe: str | Path) -> QuantConfig:
        """A config from a shipped recipe's name or the path of a TOML file.

        Raises:
            MissingFileError: neither a recipe nor a file has that name.
            ConfigError: the file is not TOML or names an unknown option.
        """
        import tomllib

        names = recipe_names()
        if str(recipe) in names:
            text = (_RECIPES / f"{recipe}.toml").read_text("utf-8")
        else:
            try:
                text = Path(recipe).read_text("utf-8")
            except PermissionError as problem:
                raise ConfigError(f"recipe {recipe} cannot be read: {problem.strerror}") from None
            except UnicodeDecodeError:
                raise ConfigError(f"recipe {recipe} is not a text file") from None
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise MissingFileError(
                    f"recipe {str(recipe)!r} is neither a shipped recipe nor a file{closest(str(recipe), names)}",
                    hint=f"shipped recipes: {', '.join(names)}",
                ) from None
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as problem:
            raise ConfigError(f"recipe {recipe} is not TOML: {problem}") from None

    def to_toml(self) -> str:
        """The options as a recipe that ``from_recipe`` reads back."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in self.to_dict().items())


_CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "weights": ("int8", "uint8"),
    "activations": ("uint8", "int8"),
    "saturation": ("safe", "full"),
    "target": tuple(TARGETS),
    "optimize": ("none", "latency"),
}


def choices(option: str) -> tuple[str, ...]:
    """The values that a named-choice option takes."""
    return _CHOICES[option]


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(QuantConfig)]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}{closest(name, known)}", hint=f"options: {', '.join(known)}")


def _check_type(name: str, value: object, annotation: str) -> None:
    kinds: Any = {"str": str, "bool": bool, "int": int, "float": (int, float), "int | None": (int, type(None))}[
        annotation
    ]
    if not isinstance(value, kinds) or (isinstance(value, bool) and annotation != "bool"):
        raise ConfigError(f"{name} is {value!r}, expected {annotation.replace('| None', 'or unset')}")


def _plain(value: object) -> object:
    """NumPy's scalars as Python's."""
    return value.item() if hasattr(value, "item") and hasattr(value, "dtype") else value


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)
