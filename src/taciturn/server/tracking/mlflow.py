"""MLflow's REST API, as far as a run of a job needs it. Nothing of an answer but ids is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from taciturn._version import __version__
from taciturn.server.settings import Settings

JOB_TAG = "taciturn.job"
_TIMEOUT_S, _PATIENCE_S = 10.0, 15.0
_AT_ONCE = {"metrics": 500, "params": 100, "tags": 100}  # of what the API takes in one request
_LONGEST = {"params": 500, "tags": 4000}
_MAY_PASS = (408, 425, 429)


class TrackerError(Exception):
    """The tracker has not taken something. The text is ours, and holds nothing of its answer."""


class TrackerAwayError(TrackerError):
    """The tracker does not answer, or cannot work just now."""


class TrackerMissesError(TrackerError):
    """The tracker does not know what was named: somebody has removed it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A value of a step, with the public time at which it could be seen."""

    key: str
    value: float
    at_ms: int
    step: int = 0


@dataclass(slots=True)
class Mlflow:
    """An MLflow server.

    Attributes:
        http: with its address and token.
        patience_s: how long a request is repeated that did not come through.
    """

    http: httpx.Client
    experiment: str
    patience_s: float = _PATIENCE_S

    @classmethod
    def of(cls, settings: Settings) -> Mlflow:
        """Return the server of the settings; raises TrackerError where the token cannot be read."""
        headers = {"User-Agent": f"taciturn/{__version__}"}
        token = token_of(settings)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        base = (settings.mlflow_url or "").rstrip("/") + "/api/2.0/mlflow/"
        http = httpx.Client(base_url=base, headers=headers, timeout=_TIMEOUT_S)
        return cls(http, settings.mlflow_experiment)

    def close(self) -> None:
        """Give the connections back."""
        self.http.close()

    def find_experiment(self) -> str | None:
        """Return the id of the experiment; None if it is not there."""
        path, name = "experiments/get-by-name", self.experiment
        try:
            return str(self._ask("GET", path, experiment_name=name)["experiment"]["experiment_id"])
        except TrackerMissesError:
            return None
        except (KeyError, TypeError):
            raise _no_mlflow() from None

    def _experiment(self) -> str:
        """Return the id of the experiment, which is made if it is not there."""
        experiment = self.find_experiment()
        if experiment is not None:
            return experiment
        creation = self._ask("POST", "experiments/create", name=self.experiment)
        try:
            return str(creation["experiment_id"])
        except KeyError:
            raise _no_mlflow() from None

    def run_of(self, job_id: str, name: str, start_ms: int) -> str:
        """Return the run of a job: the one that bears its id, or a new one."""
        experiment = self._experiment()
        search = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{JOB_TAG}` = '{job_id}'",
            "max_results": 1,
        }
        runs = self._ask("POST", "runs/search", **search).get("runs") or []
        if not runs:
            tags = [{"key": JOB_TAG, "value": job_id}]
            begin = {"experiment_id": experiment, "run_name": name, "start_time": start_ms}
            runs = [self._ask("POST", "runs/create", **begin, tags=tags).get("run") or {}]
        try:
            return str(runs[0]["info"]["run_id"])
        except (KeyError, TypeError, IndexError):
            raise _no_mlflow() from None

    def log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log values, facts and tags. The same ones again change nothing."""
        items: dict[str, list[dict[str, Any]]] = {
            "metrics": [
                {"key": m.key, "value": m.value, "timestamp": m.at_ms, "step": m.step}
                for m in metrics
            ],
            "params": _pairs("params", params or {}),
            "tags": _pairs("tags", tags or {}),
        }
        for kind, values in items.items():
            for start in range(0, len(values), _AT_ONCE[kind]):
                part = values[start : start + _AT_ONCE[kind]]
                self._ask("POST", "runs/log-batch", run_id=run_id, **{kind: part})

    def update(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Say how a run stands."""
        end = {} if end_ms is None else {"end_time": end_ms}
        self._ask("POST", "runs/update", run_id=run_id, status=status, **end)

    def _ask(self, method: str, path: str, **fields: Any) -> dict[str, Any]:
        retrying = Retrying(
            retry=retry_if_exception_type(TrackerAwayError),
            wait=wait_exponential(multiplier=0.5, max=5),
            stop=stop_after_delay(self.patience_s),
            reraise=True,
        )
        answer: dict[str, Any] = retrying(self._once, method, path, fields)
        return answer

    def _once(self, method: str, path: str, fields: dict[str, Any]) -> dict[str, Any]:
        content = {"params": fields} if method == "GET" else {"json": fields}
        try:
            response = self.http.request(method, path, **content)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            raise TrackerAwayError(f"it does not answer ({type(error).__name__})") from None
        status = response.status_code
        if status >= 500 or status in _MAY_PASS:
            raise TrackerAwayError(f"it answered {status}")
        if status == 404:
            raise TrackerMissesError(f"it does not know what {path} names")
        if status >= 300:
            raise TrackerError(f"it answered {status} to {path}")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise _no_mlflow()
        return answer


def token_of(settings: Settings) -> str | None:
    """Return the token that MLflow is shown, None for none; raises TrackerError where its file
    cannot be read."""
    if settings.mlflow_token is not None:
        return settings.mlflow_token.get_secret_value()
    if settings.mlflow_token_file is None:
        return None
    try:
        token = Path(settings.mlflow_token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TrackerError(
            f"TACITURN_MLFLOW_TOKEN_FILE={settings.mlflow_token_file} cannot be read "
            f"({type(error).__name__})"
        ) from None
    if not token.isprintable() or not token:
        raise TrackerError(
            f"TACITURN_MLFLOW_TOKEN_FILE={settings.mlflow_token_file} holds no token; write one "
            "line"
        )
    return token


def _no_mlflow() -> TrackerError:
    return TrackerError("its answer is not that of an MLflow server")


def _pairs(kind: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
    longest = _LONGEST[kind]
    return [{"key": key, "value": str(value)[:longest]} for key, value in values.items()]
