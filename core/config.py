"""The one typed config of a run: TOML text in, frozen values or every fault at once out."""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError, Fault

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """A table of the config: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Plugin(Table):
    """A table that names a plug-in; its other keys are the plug-in's options."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1)]

    @property
    def options(self) -> dict[str, Any]:
        """The options as they stand in the file."""
        return dict(self.model_extra or {})


class Run(Table):
    """`[run]`: what the run is called, where it is kept, what it draws from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    folder: str = "runs"


class Domains(Table):
    """`[domains]`: the order in which domains arrive, and what a domain is."""

    order: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = {}
    joint: bool = False


class Shards(Table):
    """`[shards]`: how the training records are dealt to the clients."""

    split: Literal["iid", "dirichlet", "label", "column", "local"] = "iid"
    num_clients: Count = 4
    alpha: Annotated[float, Field(gt=0.0)] = 0.5
    labels_per_client: Count = 2


class Train(Table):
    """`[train]`: the local loop of a client in one round.

    Attributes:
        head_lr: learning rate of the head, 0 for that of the adapter. A head that learns ten times
            as fast leaves the adapter little to change, so that less is forgotten.
        balanced: each client's loss allows for how many records of each label it has, those that
            it replays among them, and each label's row of the head is averaged over the clients
            that hold the label: clients with other labels then do not pull apart. Where sums are
            not encrypted, the server sees which labels a client lacks.
        replay_ratio: most records that a round replays for each new one, drawn anew in each round,
            so that a domain costs the same however many came before; where a client has no new
            one, for each of a batch. 0 replays all of the memory.
    """

    epochs: Count = 1
    batch_size: Count = 32
    accumulate: Count = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    head_lr: Annotated[float, Field(ge=0.0)] = 0.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_rate: Rate = 0.1
    decay: Literal["linear", "constant"] = "linear"
    loss_over: Literal["auto", "domain", "seen"] = "auto"
    balanced: bool = False
    replay_ratio: Annotated[float, Field(ge=0.0)] = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 1


class Round(Table):
    """`[round]`: rounds per domain, who is asked, when an answer counts."""

    rounds: Annotated[int, Field(ge=0)] = 3
    cohort: Annotated[int, Field(ge=0)] = 0
    min_replies: Count = 1
    deadline_s: Annotated[float, Field(gt=0.0)] = 600.0
    retries: Annotated[int, Field(ge=0)] = 2
    weight: Literal["records", "uniform"] = "records"
    max_change: Annotated[float, Field(gt=0.0)] = 64.0
    max_weight: Annotated[float, Field(ge=1.0, le=2.0**20)] = 2.0**20


class Evaluate(Table):
    """`[evaluate]`: where the test records are, and how often they are asked."""

    where: Literal["server", "clients"] = "server"
    every: Annotated[int, Field(ge=0)] = 1
    batch_size: Count = 256


class Faults(Table):
    """`[simulation.faults]`: what goes wrong, as a rate per client and exchange.

    An exchange is a round of training, or one of the two at the end of a domain.
    """

    drop_rate: Rate = 0.0
    straggle_rate: Rate = 0.0
    garbage_rate: Rate = 0.0
    nan_rate: Rate = 0.0


class Simulation(Table):
    """`[simulation]`: how clients live on this machine, where they keep what, what befalls them."""

    backend: Literal["inline", "processes", "ray"] = "inline"
    workers: Annotated[int, Field(ge=0)] = 0
    clients: str = ""
    strict_wire: bool = False
    faults: Faults = Faults()


class Update(Table):
    """`[update]`: one more domain for a model in service; read by `perennial update` alone.

    Attributes:
        home: folder of releases, updates and, in simulation, of what clients keep between them.
        server: file of the server whose clients learn; empty for simulated ones.
        domain: to be learnt; empty for the first of the data that the release in service lacks.
        begin: domains that the very first update learns, in order; empty for `domain` alone.
        max_loss: most points that a domain learnt before may lose against the release in service.
        max_client_loss: the same for each client's own score, where clients evaluate.
        min_accuracy: least accuracy of the new domain, 0..1.
        min_gain: least points by which the new domain must be better than before the update.
        mlflow: of an MLflow registry that follows the releases; empty for none.
        mlflow_model: name of the registered model there.
        export: whether the model must also pass the gate of `[export]`, as what it becomes, before
            it is released.
    """

    home: Annotated[str, Field(min_length=1)] = "service"
    server: str = ""
    domain: str = ""
    begin: tuple[str, ...] = ()
    max_loss: Annotated[float, Field(ge=0.0, le=100.0)] = 3.0
    max_client_loss: Annotated[float, Field(ge=0.0, le=100.0)] = 10.0
    min_accuracy: Rate = 0.5
    min_gain: Annotated[float, Field(ge=0.0, le=100.0)] = 5.0
    mlflow: str = ""
    mlflow_model: Annotated[str, Field(pattern=r"^[\w. -]{1,100}$")] = "perennial"
    export: bool = False


class Export(Table):
    """`[export]`: what a release becomes and what that must keep; read where one is exported.

    A bar that is not given is that of the profile.

    Attributes:
        profile: how the graph is made small: a file of `export/`.
        options: of the profile.
        max_size: largest share of the float32 graph's bytes.
        max_loss: most points of accuracy that may be lost against the float32 graph.
        max_domain_loss: the same for the domain that loses most.
        sure: whether the upper end of the loss's 95 % interval must keep `max_loss`, too; a few
            thousand test records are needed for that.
        min_agreement: least share of answers that are those of the float32 graph.
        max_changed: largest share of answers that depend on who else is in a batch.
        max_cpu_1: largest share of the float32 graph's CPU time, one text at a time.
        max_cpu_32: the same in batches of 32.
        licence: of what is exported, for its card; empty where its owner has not said it.
    """

    profile: Annotated[str, Field(min_length=1)] = "balanced"
    options: Mapping[str, Any] = {}
    max_size: Annotated[float, Field(gt=0.0)] | None = None
    max_loss: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    max_domain_loss: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    sure: bool = False
    min_agreement: Rate | None = None
    max_changed: Rate | None = None
    max_cpu_1: Annotated[float, Field(gt=0.0)] | None = None
    max_cpu_32: Annotated[float, Field(gt=0.0)] | None = None
    licence: Annotated[str, Field(pattern=r"^[^\r\n]*$")] = ""


class Config(Table):
    """A whole run. Every table has defaults but `[data]`, which says what is learnt."""

    data: Plugin
    run: Run = Run()
    domains: Domains = Domains()
    shards: Shards = Shards()
    model: Plugin = Plugin(name="encoder_classifier")
    train: Train = Train()
    round: Round = Round()
    strategy: Plugin = Plugin(name="fedavg")
    secure_sum: Plugin = Plugin(name="plain")
    privacy: Plugin = Plugin(name="none")
    user_privacy: Plugin = Plugin(name="off")
    keyholder: Plugin = Plugin(name="in_process")
    continual: Plugin = Plugin(name="chain")
    evaluate: Evaluate = Evaluate()
    simulation: Simulation = Simulation()
    update: Update | None = None
    export: Export = Export()


def parse(text: str) -> Config:
    """The config in `text`, its own shape checked; plug-ins and pairs are for `check.read`.

    Raises:
        ConfigError: every fault found, each with its table and key.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        fault = Fault("", f"the file is not valid TOML: {error}", "mend the line and try again")
        raise ConfigError([fault]) from error
    try:
        # TOML has arrays where the config has tuples, and writes 1 for 1.0.
        return Config.model_validate(_named(_tuples(tree)))
    except ValidationError as error:
        raise ConfigError([_fault(detail) for detail in error.errors()]) from error


def _named(tree: dict[str, Any]) -> dict[str, Any]:
    """A plug-in table without a name means the default plug-in, with other options."""
    named = dict(tree)
    for table, field in Config.model_fields.items():
        given = tree.get(table)
        if isinstance(field.default, Plugin) and isinstance(given, dict):
            named[table] = {"name": field.default.name, **given}
    return named


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _fault(detail: Any) -> Fault:
    place = ".".join(str(part) for part in detail["loc"])
    kind, got = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return Fault(place, "unknown key", _nearest(detail["loc"]))
    if kind == "missing":
        example = 'the embedded sample is [data] with name = "sample"' if place == "data" else ""
        return Fault(place, "must be given", example)
    return Fault(place, f"{wording(detail)}; got {got!r}")


# pydantic speaks of Python's types, the user of TOML's.
_WORDS = {
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "mapping_type": "must be a table",
    "tuple_type": "must be an array",
}


def wording(detail: Any) -> str:
    """What must hold, from one entry of pydantic's `ValidationError.errors()`."""
    message: str = detail["msg"].replace("Input should be", "must be").replace("Input", "value")
    return _WORDS.get(detail["type"], f"{message[0].lower()}{message[1:]}")


def _nearest(path: Sequence[Any]) -> str:
    table: Any = Config
    for part in path[:-1]:
        field = table.model_fields.get(part) if _is_table(table) else None
        if field is None:
            return ""
        table = _inner(field.annotation)
    if not _is_table(table):
        return ""
    return suggest(str(path[-1]), list(table.model_fields))


def _is_table(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _inner(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((arg for arg in get_args(annotation) if _is_table(arg)), annotation)
    return annotation


def suggest(word: str, allowed: Sequence[str]) -> str:
    """What to write instead of `word`: the nearest allowed word, then all of them."""
    near = difflib.get_close_matches(word, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(sorted(allowed)) or 'nothing'}"
