"""NVFlare's encrypted sums, to compare with: its setting by TenSEAL alone, and the package itself.

`Setting` repeats what NVFlare 2.9 does (`lighter/impl/he.py`, `app_opt/he/model_encryptor.py`,
`decomposers.py`, `intime_accumulate_model_aggregator.py`, `model_decryptor.py`) in one thread.
`Package` calls those classes. Run as a script by a Python that has `nvflare` and `tenseal`, this
file answers `Remote`, one line of JSON for each line: the package stays out of our environment.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tenseal as ts

Tensors = Mapping[str, npt.NDArray[np.float32]]
# Of HEBuilder, the defaults.
_DEGREE, _COEFFICIENT_BITS, _SCALE = 8192, [60, 40, 40], 2.0**40
_STEPS = 1  # local steps, by which the client weighs
_ERROR = 1e-6  # of a mean; a peer that is wrong is not timed


class Peer(Protocol):
    """One way to sum: a client seals, the server adds and closes, each client opens the mean."""

    def seal(self, tensors: Tensors) -> Any: ...  # noqa: D102
    def add(self, total: Any, body: Any) -> Any: ...  # noqa: D102
    def close(self, total: Any, count: int) -> Any: ...  # noqa: D102
    def open(self, body: Any) -> dict[str, list[float]]: ...  # noqa: D102
    def size_bytes(self, body: Any) -> int: ...  # noqa: D102


class Setting:
    """What NVFlare does, without NVFlare; a body is (vector, context) by name, as its fobs has."""

    def __init__(self) -> None:
        made = ts.context(
            ts.SCHEME_TYPE.CKKS,
            poly_modulus_degree=_DEGREE,
            coeff_mod_bit_sizes=_COEFFICIENT_BITS,
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
            n_threads=1,
        )
        made.generate_relin_keys()
        made.global_scale = _SCALE
        kept = made.serialize(save_public_key=True, save_secret_key=True, save_galois_keys=False)
        self._client = ts.context_from(kept, n_threads=1)

    def seal(self, tensors: Tensors) -> dict[str, tuple[bytes, bytes]]:
        """Weighed, encrypted, serialised; every vector carries the public context."""
        with contextlib.redirect_stdout(io.StringIO()):  # TenSEAL warns of long vectors
            vectors = {
                name: ts.ckks_vector(self._client, values.ravel() * np.float64(_STEPS))
                for name, values in tensors.items()
            }
        return _written(vectors)

    @staticmethod
    def add(total: Any, body: dict[str, tuple[bytes, bytes]]) -> dict[str, Any]:
        """Each vector read with its own context, then added into a new one."""
        read = _read(body)
        return read if total is None else {name: total[name] + read[name] for name in read}

    def close(self, total: Any, count: int) -> dict[str, tuple[bytes, bytes]]:
        """The mean, still encrypted, for every client."""
        return _written({name: vector * (1.0 / count) for name, vector in total.items()})

    def open(self, body: dict[str, tuple[bytes, bytes]]) -> dict[str, list[float]]:
        """What each client does with the mean."""
        key = self._client.secret_key()
        return {name: vector.decrypt(secret_key=key) for name, vector in _read(body).items()}

    def size_bytes(self, body: dict[str, tuple[bytes, bytes]]) -> int:
        """Of the vectors and their contexts."""
        return sum(len(part) for parts in body.values() for part in parts)


def _written(vectors: Mapping[str, Any]) -> dict[str, tuple[bytes, bytes]]:
    return {name: (v.serialize(), v.context().serialize()) for name, v in vectors.items()}


def _read(body: Mapping[str, tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        name: ts.ckks_vector_from(ts.context_from(context, n_threads=1), vector)
        for name, (vector, context) in body.items()
    }


class Package:
    """NVFlare's own filters and aggregator, as a job runs them, each on the wire's bytes.

    Contexts come from its HEBuilder; they are not signed, so it runs outside its secure mode.
    """

    def __init__(self) -> None:
        import logging

        from nvflare.apis.event_type import EventType
        from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
        from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
        from nvflare.fuel.sec.security_content_service import SecurityContentService
        from nvflare.lighter.impl.he import HEBuilder

        logging.disable(logging.CRITICAL)  # there is no engine to report its figures to
        builder = HEBuilder()
        builder.initialize(None, None)
        self._site = _fl_context("site")
        self._site.set_peer_context(_fl_context("server"))
        self._encryptor, self._decryptor = HEModelEncryptor(), HEModelDecryptor()
        with tempfile.TemporaryDirectory() as folder:
            context = builder.get_serialized_context(is_client=True)
            (Path(folder) / "client_context.tenseal").write_bytes(context)
            SecurityContentService.initialize(folder)
            for part in (self._encryptor, self._decryptor):
                part.handle_event(EventType.START_RUN, self._site)

    def seal(self, tensors: Tensors) -> bytes:
        """A DXO through `HEModelEncryptor`, then the Shareable's bytes."""
        from nvflare.apis.dxo import DXO, DataKind, MetaKey

        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: _STEPS}
        shareable = DXO(DataKind.WEIGHT_DIFF, dict(tensors), meta).to_shareable()
        return self._encryptor.process(shareable, self._site).to_bytes()

    @staticmethod
    def add(total: Any, body: bytes) -> Any:
        """The Shareable's bytes into `HEInTimeAccumulateWeightedAggregator`."""
        from nvflare.apis.dxo import DataKind
        from nvflare.apis.event_type import EventType
        from nvflare.apis.fl_constant import ReservedKey
        from nvflare.apis.shareable import Shareable
        from nvflare.app_common.app_constant import AppConstants
        from nvflare.app_opt.he import intime_accumulate_model_aggregator as aggregators

        if total is None:
            aggregator = aggregators.HEInTimeAccumulateWeightedAggregator(
                expected_data_kind=DataKind.WEIGHT_DIFF
            )
            server = _fl_context("server")
            server.set_prop(AppConstants.CURRENT_ROUND, 0)
            aggregator.handle_event(EventType.START_RUN, server)
            total = [aggregator, server, 0]
        shareable = Shareable.from_bytes(body)
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: f"site-{total[2]}"})
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
        if not total[0].accept(shareable, total[1]):
            raise SystemExit("NVFlare's aggregator refused an update; see its log")
        total[2] += 1
        return total

    def close(self, total: Any, count: int) -> bytes:
        """The aggregator's Shareable, as bytes."""
        return total[0].aggregate(total[1]).to_bytes()

    def open(self, body: bytes) -> dict[str, list[float]]:
        """The bytes through `HEModelDecryptor`."""
        from nvflare.apis.dxo import from_shareable
        from nvflare.apis.shareable import Shareable

        shareable = self._decryptor.process(Shareable.from_bytes(body), self._site)
        return from_shareable(shareable).data

    def size_bytes(self, body: bytes) -> int:
        """Of the message."""
        return len(body)


def _fl_context(name: str) -> Any:
    from nvflare.apis.fl_constant import FLContextKey, ReservedKey
    from nvflare.apis.fl_context import FLContext

    context = FLContext()
    context.set_prop(FLContextKey.SECURE_MODE, False)
    context.set_prop(ReservedKey.IDENTITY_NAME, name)
    return context


class Local:
    """A peer in this process; `round` gives CPU seconds and bytes by step."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def round(self, vector: npt.NDArray[np.float32], sizes: list[int]) -> dict[str, float]:
        """One sum of two uploads of `vector`, cut into tensors of `sizes`."""
        ends = np.cumsum([0, *sizes])
        tensors = {f"t{i}": vector[ends[i] : ends[i + 1]] for i in range(len(sizes))}
        found: dict[str, float] = {}
        body = _timed(found, "seal", lambda: self._peer.seal(tensors))
        total = self._peer.add(None, body)
        total = _timed(found, "add", lambda: self._peer.add(total, body))
        down = _timed(found, "close", lambda: self._peer.close(total, 2))
        mean = _timed(found, "open", lambda: self._peer.open(down))
        worst = max(float(np.abs(np.array(mean[name]) - tensors[name]).max()) for name in tensors)
        if worst > _ERROR:
            raise SystemExit(f"the peer's mean must be that of its updates; it is {worst:g} off")
        found["up"], found["down"] = self._peer.size_bytes(body), self._peer.size_bytes(down)
        return found


class Remote:
    """`Local(Package())` in the process of another Python."""

    def __init__(self, python: str) -> None:
        command = [python, __file__]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, **pipes)
        self.version = self._ask(None)["version"]

    def round(self, vector: npt.NDArray[np.float32], sizes: list[int]) -> dict[str, float]:
        """As `Local.round`."""
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file, vector)
            file.flush()
            return self._ask({"vector": file.name, "sizes": sizes})

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def _ask(self, question: dict[str, Any] | None) -> dict[str, Any]:
        if question:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"NVFlare's process ended with {self._process.wait()}; see above")
        return json.loads(line)  # type: ignore[no-any-return]


def _timed(found: dict[str, float], name: str, step: Any) -> Any:
    start = time.process_time()
    result = step()
    found[name] = time.process_time() - start
    return result


def main() -> None:
    """Answer on stdout; whatever else is printed there goes nowhere."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import nvflare

    peer = Local(Package())
    print(json.dumps({"version": nvflare.__version__}), file=answers)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(peer.round(np.load(question["vector"]), question["sizes"])), file=answers)


if __name__ == "__main__":
    main()
