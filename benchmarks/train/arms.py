"""One arm of the training benchmark, in a process of its own, within a time budget.

    python -m benchmarks.train.arms ORDER.json     its started_s is when the clock started

    plain     Adam 1e-3, batch 32, fp32, trained until the time is up
    optuna    TPE over the same space, each trial trained in full, no initial configurations
    halving   random search over the same space with successive halving (a promoted trial is kept in
              memory, so that resuming costs nothing)
    autotune  the train search as `autotune run` does it, and the final training
    target    the same with `--target-quality`: the least time to a given quality on *validation*
    reach     seconds of training until a recipe reaches a given quality

All but autotune train in this process with autotune's own loop, so that a step costs the same in
every arm, on all usable cores, as is PyTorch's default.  Time counts from before the interpreter
started: imports, loading of data and autotune's processes are included.  The model that an arm
would ship is evaluated on *test* afterwards.
"""

import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from autotune.records import codec
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Recipe, Value
from autotune.records.task import Dim, Option, Survey, TaskSpec

MODELS = Path(__file__).parent / "models"
_LAST_S = 0.6  # seconds of the budget kept for the last evaluation
_FULL = 5  # full trainings of the plain recipe that fit into a search
_MOST = 0.7  # share of a search for the last training, where a full one is only a few epochs
_LOOKS = 20  # evaluations of *reach*
_FINAL = 1.1  # the final training may take this multiple of its planned length


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: ``target`` is for *target* (on *validation*) and *reach* (on *test*), which
    trains ``recipe``.
    """

    arm: str
    set: str
    seed: int
    budget_s: float
    started_s: float
    profile: str
    out: str
    target: float | None = None
    recipe: Recipe | None = None
    epochs: int | float | None = None


def main(path: Path) -> None:
    """Run one arm and write its row."""
    order = msgspec.json.decode(path.read_bytes(), type=Order)
    ours = {"autotune": _autotune, "target": _autotune, "reach": _reach}
    row = ours.get(order.arm, _alone)(order)
    Path(order.out).write_text(json.dumps(row))


def _spec(order: Order) -> TaskSpec:
    return TaskSpec(kind="file", path=str(MODELS / f"{order.set}.py"))


def _profile(order: Order) -> Profile:
    return codec.decode(Path(order.profile).read_bytes(), Profile, what=order.profile)


def _left(order: Order) -> float:
    return order.started_s + order.budget_s - time.monotonic()


# -- autotune ------------------------------------------------------------------------------


def _autotune(order: Order) -> dict[str, Any]:
    from autotune.bridge.process import ProcessBridge
    from autotune.context import Silent
    from autotune.pipeline import survey as pipeline_survey
    from autotune.training import final, lengths, search, step_options, throughput_stage
    from autotune.training import trial as training_trial

    spent = order.budget_s - _left(order)
    effort = Effort(time_s=order.budget_s, seed=order.seed)
    with tempfile.TemporaryDirectory() as folder:
        bridge = ProcessBridge(Path(folder), started_s=spent)
        try:
            budget = Budget(target_quality=order.target)
            run = pipeline_survey.survey(
                bridge, _spec(order), budget, effort, _profile(order), Silent()
            )
            search_s = order.budget_s - _LAST_S - bridge.now()
            run = throughput_stage.measure(run, 0.15 * search_s)
            search_s = order.budget_s - _LAST_S - bridge.now()
            shares = (search_s / _FULL, _MOST * search_s)
            (epochs, reach), last_s = lengths.planned(run, *shares, search_s), 0.0
            if reach < epochs:  # the last training takes time of its own
                last_s = _FINAL * epochs * (lengths.one_epoch_s(run) or 0.0)
                reach = lengths.trial_epochs(run, epochs, search_s - last_s)
            run = run.with_survey(options=step_options.judged(run, reach))
            outcome = training_trial.TrainState(run, epochs, reach, timed=True)
            until_s = order.budget_s - _LAST_S - last_s
            search.search(outcome, until_s)
            winner = outcome.winner
            assert winner is not None
            _, length = final.last(outcome, winner, until_s - bridge.now())
        finally:
            wall_s = order.budget_s - _left(order)
            bridge.close()
        quality = _test(order, Path(folder) / final.WEIGHTS)
    return {
        "quality": quality,
        "wall_s": wall_s,
        "trials": len(outcome.trials),
        "ended": sum(t.state == "complete" for t in outcome.trials),
        "seeds": 1 + len(winner.repeats),
        "epochs": length,
        "validation": winner.quality_mean,
        "reached": any(cost is not None for cost in winner.costs),
        "recipe": json.loads(codec.encode(winner.recipe)),
    }


def _test(order: Order, weights: Path) -> float:
    from safetensors.torch import load_model

    from autotune.worker.contract import task
    from autotune.worker.evaluation import evaluate

    loaded = task.load(_spec(order))
    model = loaded.make_model()
    load_model(model, str(weights))
    return evaluate.evaluate(model, loaded, "test").quality


# -- the others ----------------------------------------------------------------------------


class _Arm:
    """What the arms that train in this process share."""

    def __init__(self, order: Order) -> None:
        from autotune.parallel.single import Solo
        from autotune.worker.contract import task

        self.order = order
        self.loaded = task.load(_spec(order))
        self.group = Solo("cpu", time.monotonic())
        self.best: tuple[float, float, dict[str, Any], Recipe] | None = None
        self.trials = 0

    def loop(self, recipe: Recipe, epochs: int, seed: int) -> Any:
        from autotune.worker.training.loop import Loop

        self.trials += 1
        limit = max(0.01, _left(self.order) - _LAST_S)
        return Loop(recipe, self.loaded, self.group, seed=seed, epochs=epochs, limit_s=limit)

    def judge(self, loop: Any, recipe: Recipe) -> float:
        """Minus the loss on *validation*; the model of the best quality so far is kept."""
        from autotune.worker.evaluation import evaluate

        with loop.averaged():
            scores = evaluate.evaluate(loop.model, self.loaded, "validation")
            loss = scores.loss if scores.loss is not None else -scores.quality
            key = (scores.quality, -loss)
            if self.best is None or key > self.best[:2]:
                state = {k: v.clone() for k, v in loop.model.state_dict().items()}
                self.best = (*key, state, recipe)
        return -loss

    def row(self) -> dict[str, Any]:
        from autotune.worker.evaluation import evaluate

        wall_s = self.order.budget_s - _left(self.order)
        assert self.best is not None
        validation, _, state, recipe = self.best
        model = self.loaded.make_model()
        model.load_state_dict(state)
        return {
            "quality": evaluate.evaluate(model, self.loaded, "test").quality,
            "wall_s": wall_s,
            "trials": self.trials,
            "validation": validation,
            "recipe": json.loads(codec.encode(recipe)),
        }


def _alone(order: Order) -> dict[str, Any]:
    """The arms that train in this process."""
    arm = _Arm(order)
    {"plain": _plain, "optuna": _optuna, "halving": _halving}[order.arm](arm)
    return arm.row()


def _plain(arm: _Arm) -> None:
    """Ships the weights that it has when the time is up."""
    recipe = Recipe()
    loop = arm.loop(recipe, 10**6, arm.order.seed)
    loop.to(math.inf)
    arm.judge(loop, recipe)


def _horizon(arm: _Arm) -> int:
    """Epochs of a trial: what the plain recipe trains in a fifth of the time that is left."""
    loop = arm.loop(Recipe(), 10**6, 0)
    arm.trials = 0
    began, number = time.monotonic(), 0.0
    while time.monotonic() - began < 0.4:
        number += 0.05
        loop.to(number)
    epoch_s = (time.monotonic() - began) / loop.done
    return max(1, min(60, int(_left(arm.order) / _FULL / epoch_s)))


def _space(arm: _Arm) -> Any:
    """The space that autotune searches, without what its throughput stage would rule out."""
    from autotune.training import search_space
    from autotune.worker.survey import options as survey_options
    from autotune.worker.training import optimizers

    matrices = len(optimizers.hidden_matrices(arm.loaded.make_model()))
    from autotune.records.task import Traits

    traits = Traits(
        parameters=0, parameter_bytes=0, buffer_bytes=0, flops_per_sample=0.0,
        activation_bytes_per_sample=0.0, largest_op_bytes=0, hidden_matrices=matrices,
    )  # fmt: skip
    options: tuple[Option, ...] = (
        *survey_options.precisions(_profile(arm.order)), *survey_options.optimizers(traits),
    )  # fmt: skip
    survey = Survey(task=arm.loaded.info, traits=traits, options=options)
    return search_space.train_space(survey, Effort())


def _made(values: dict[str, Value]) -> Recipe:
    from autotune.training import search_space

    return search_space.recipe(values, ("single", 1, 1))


def _optuna(arm: _Arm) -> None:
    import optuna

    from autotune.search.study import _suggest

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, epochs = _space(arm), _horizon(arm)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=arm.order.seed))
    while _left(arm.order) > _LAST_S:
        trial = study.ask()
        recipe = _made(space.sample(lambda dim, t=trial: _suggest(t, dim)))
        value = _whole(arm, recipe, epochs)
        study.tell(trial, value if value is not None else 1e9)


def _whole(arm: _Arm, recipe: Recipe, epochs: int) -> float | None:
    """One full training; its loss, or None where it failed."""
    from autotune.errors import JobError

    try:
        loop = arm.loop(recipe, epochs, arm.order.seed)
        loop.to(epochs)
        return -arm.judge(loop, recipe)
    except JobError:
        return None


def _halving(arm: _Arm) -> None:
    """Brackets of nine: a ninth of the epochs, a third for the best three, all for the best."""
    rng = random.Random(arm.order.seed)
    space, epochs = _space(arm), _horizon(arm)
    while _left(arm.order) > _LAST_S:
        live: list[tuple[float, int, Any, Recipe]] = []
        for number in range(9):
            live.append((0.0, number, None, _made(space.sample(lambda d: _drawn(d, rng)))))
        for share, kept in ((1 / 9, 3), (1 / 3, 1), (1.0, 0)):
            live = _climb(arm, live, share * epochs, epochs)[:kept]


def _climb(
    arm: _Arm, live: list[tuple[float, int, Any, Recipe]], until: float, epochs: int
) -> list[tuple[float, int, Any, Recipe]]:
    """Train each until a rung; the best first."""
    from autotune.errors import JobError

    found = []
    for _, number, loop, recipe in live:
        if _left(arm.order) <= _LAST_S:
            break
        try:
            loop = loop or arm.loop(recipe, epochs, arm.order.seed)
            loop._limit_s = loop.train_s + max(0.01, _left(arm.order) - _LAST_S)
            loop.to(until)
            found.append((arm.judge(loop, recipe), number, loop, recipe))
        except JobError:
            continue
    return sorted(found, key=lambda entry: (-entry[0], entry[1]))


def _drawn(dim: Dim, rng: random.Random) -> Value:
    if dim.kind == "choice":
        return rng.choice(dim.choices)
    low, high = float(dim.low or 0.0), float(dim.high or 0.0)
    if dim.log:
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    return rng.uniform(low, high)


# -- time to a quality ---------------------------------------------------------------------


def _reach(order: Order) -> dict[str, Any]:
    """Seconds of training, evaluation apart, until the quality on test is ``target``; None
    where it is not reached within the budget.
    """
    from autotune.worker.evaluation import evaluate

    arm = _Arm(order)
    recipe, epochs = order.recipe or Recipe(), order.epochs or 10**6
    from autotune.worker.training.loop import Loop

    loop = Loop(
        recipe, arm.loaded, arm.group, seed=order.seed, epochs=epochs, limit_s=order.budget_s
    )
    assert order.target is not None
    steps = loop._batches.steps
    at = 0.0
    while not loop.late and at < epochs:
        share = max(loop.train_s, order.budget_s / 500) / _LOOKS  # finer at first
        rate = loop.done / loop.train_s if loop.train_s else 0.0
        at = min(float(epochs), max(loop.done + 1 / steps, loop.done + share * rate))
        loop.to(at)
        with loop.averaged():
            quality = evaluate.evaluate(loop.model, arm.loaded, "test").quality
        if quality >= order.target:
            return {"reached_s": loop.train_s, "epochs": loop.done}
    return {"reached_s": None, "epochs": loop.done}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
