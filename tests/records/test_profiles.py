"""Profile files: what is refused and with which path, hashes, fingerprints."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from autotune.errors import FormatError
from autotune.records import profiles
from autotune.records.figure_units import unit_of
from autotune.records.hardware import Cpu, Gpu, Leaf, Profile

LEAF = Leaf(value=9e10, unit="FLOP/s", source="measured", low=8e10, high=1e11, samples=7)
GEMM = "figures.gemm_fp32_1t_flop_per_s"


def made(**changes: Any) -> Profile:
    facts: dict[str, Any] = {
        "name": "made-up",
        "created_utc": "2026-11-25T00:00:00Z",
        "fingerprint": "f",
        "cpu": Cpu(
            vendor=None,
            model="Made Up",
            architecture="x86_64",
            logical_cores=2,
            physical_cores=2,
            usable_cores=1.5,
        ),
        "memory_bytes": 8 << 30,
        "usable_memory_bytes": 2 << 30,
        "gpus": (
            Gpu(
                index=0,
                name="G",
                memory_bytes=1 << 30,
                figures={"power_limit_w": Leaf(value=70.0, unit="W", source="probed")},
            ),
        ),
        "figures": {"gemm_fp32_1t_flop_per_s": LEAF},
        "software": {"torch": "2.13.0", "python": "3.11.7"},
    }
    return Profile(**facts | changes)


def raw() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(profiles.write(made()))
    return found


def test_round_trip() -> None:
    assert profiles.read(profiles.write(made())) == made()


def _leaf(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda it: it["figures"]["gemm_fp32_1t_flop_per_s"].update(changes)


def _watts(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda it: it["gpus"][0]["figures"]["power_limit_w"].update(changes)


def _top(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda it: it.update(changes)


BAD: list[tuple[Callable[[dict[str, Any]], None], str, str]] = [
    (_leaf(unit="GFLOP/s"), f"{GEMM}.unit", "'FLOP/s'"),
    (_leaf(unit="flop/s"), f"{GEMM}.unit", "convert value"),
    (_leaf(value=float("nan")), f"{GEMM}.value", "no finite number"),
    (_leaf(high=float("inf")), f"{GEMM}.high", "no finite number"),
    (_leaf(value=2e11), f"{GEMM}.value", "outside its interval"),
    (_leaf(low=2e11), f"{GEMM}.low", "above high"),
    (_leaf(value=-1.0, low=None), f"{GEMM}.value", "greater than 0"),
    (_leaf(value=0.0, low=None), f"{GEMM}.value", "write null"),
    (_leaf(value="fast"), f"{GEMM}.value", "got `str`"),
    (_leaf(colour="red"), f"{GEMM}.colour", "no field of this format"),
    (_leaf(source="guessed"), f"{GEMM}.source", "guessed"),
    (_leaf(samples=0), f"{GEMM}.samples", ">= 1"),
    (_leaf(source="datasheet"), f"{GEMM}.reference", "names its source"),
    (lambda it: it["figures"]["gemm_fp32_1t_flop_per_s"].pop("unit"), f"{GEMM}.unit", "missing"),
    (lambda it: it["figures"].update(x=5), "figures.x", "expected `object`"),
    (lambda it: it["figures"].update({"X Y": {**vars_of(LEAF)}}), "figures.X Y", "rename it"),
    (_watts(value=-70.0), "gpus[0].figures.power_limit_w.value", "greater than 0"),
    (_watts(unit="mW"), "gpus[0].figures.power_limit_w.unit", "'W'"),
    (lambda it: it["gpus"][0].update(power_limit_w=-5.0), "gpus[0].power_limit_w", "> 0"),
    (lambda it: it["gpus"][0].update(serial="1"), "gpus[0].serial", "no field"),
    (lambda it: it["cpu"].update(usable_cores=3.0), "cpu.usable_cores", "logical_cores (2)"),
    (lambda it: it["cpu"].update(host="me"), "cpu.host", "no field of this format"),
    (lambda it: it["cpu"].update(logical_cores=0), "cpu.logical_cores", ">= 1"),
    (_top(hostname="me"), "hostname", "no field of this format"),
    (_top(usable_memory_bytes=9 << 30), "usable_memory_bytes", "more than memory_bytes"),
    (_top(probe_s=-1.0), "probe_s", "negative"),
    (_top(schema="autotune.profile/2"), "schema", "upgrade autotune"),
    (_top(schema="autotune.plan/1"), "schema", "autotune.profile/1"),
]


def vars_of(leaf: Leaf) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(leaf)
    return found


@pytest.mark.parametrize(("spoil", "path", "rule"), BAD, ids=[f"{p} {r}" for _, p, r in BAD])
def test_what_is_wrong_is_refused_with_its_path(
    spoil: Callable[[dict[str, Any]], None], path: str, rule: str
) -> None:
    wrong = raw()
    spoil(wrong)
    with pytest.raises(FormatError) as error:
        profiles.read(json.dumps(wrong).encode(), what="p.json")
    text = str(error.value)
    assert text.startswith("p.json: ")
    assert f" {path} " in text.replace("newer autotune (", "newer autotune ")
    assert rule in text


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "a JSON object"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100000, "not valid JSON"),
        (b'{"name": "a", "name": "b"}', "name is given twice"),
    ],
)
def test_no_profile_at_all(data: bytes, rule: str) -> None:
    with pytest.raises(FormatError, match=rule):
        profiles.read(data)


def test_a_key_given_twice_inside_a_leaf() -> None:
    text = profiles.write(made()).replace(b'"unit": "W"', b'"unit": "W", "unit": "W"')
    with pytest.raises(FormatError, match="unit is given twice"):
        profiles.read(text)


def test_hash_is_stable_under_order_and_formatting() -> None:
    backwards = json.dumps(dict(reversed(raw().items())), separators=(",", ":")).encode()
    assert profiles.content_hash(profiles.read(backwards)) == profiles.content_hash(made())
    other = made(software={"torch": "2.12.0"})
    assert profiles.content_hash(other) != profiles.content_hash(made())


def test_fingerprints_stand_apart() -> None:
    base = profiles.software_fingerprint({"torch": "2.13.0", "optuna": "5"})
    assert base == profiles.software_fingerprint({"optuna": "6", "torch": "2.13.0"})
    assert base != profiles.software_fingerprint({"torch": "2.14.0"})
    eight = Gpu(index=0, count=2, name="G", memory_bytes=1)
    two = tuple(Gpu(index=i, name="G", memory_bytes=1) for i in (0, 1))
    cpu = made().cpu
    assert profiles.hardware_fingerprint(cpu, None, (eight,)) == profiles.hardware_fingerprint(
        cpu, None, two
    )


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("gemm_fp32_2t_flop_per_s", "FLOP/s"),
        ("peak_int8_op_per_s", "op/s"),
        ("copy_1t_bytes_per_s", "B/s"),
        ("memory_bytes", "B"),
        ("power_limit_w", "W"),
        ("op_overhead_s", "s"),
        ("max_clock_hz", "Hz"),
        ("idle_j", "J"),
        ("multiprocessors", "1"),
    ],
)
def test_units_of_names(name: str, unit: str) -> None:
    assert unit_of(name) == unit
