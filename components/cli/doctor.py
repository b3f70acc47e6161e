"""``stlm doctor``: one line a check, and what to do about what is missing."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import sqlalchemy
import sqlalchemy.exc

from components.cli.problem import CheckError
from components.cli.status import champion_of
from components.config import ModelSettings, NotifySettings
from components.core.errors import InputError, TransientError
from components.core.run_records import nights, read_night
from components.local_stack.airflow_env import airflow_environment, repository_root
from components.local_stack.workspace import Workspace

__all__ = ["doctor"]

_PACKAGES = ("airflow", "boto3", "dvc", "great_expectations", "mlflow", "onnxruntime", "timm", "torch", "torchvision")
_MIN_FREE_GB = 5.0
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def doctor(workspace: Workspace) -> int:
    """Print a line per check.

    Args:
        workspace: Configuration and state; that it could be read is the first check.

    Returns:
        0 if everything is fine, otherwise 1.
    """
    print(f"OK       configuration: {workspace.config_path}")
    num_problems = 0
    for name, check in _checks(workspace):
        try:
            print(f"OK       {name}: {check()}")
        except CheckError as problem:
            num_problems += 1
            print(f"PROBLEM  {name}: {problem.what}\n         -> {problem.remedy}")
        except TransientError as error:
            num_problems += 1
            print(f"PROBLEM  {name}: {error}\n         -> see that the server runs and can be reached from here")
        except (InputError, OSError) as error:
            num_problems += 1
            print(f"PROBLEM  {name}: {error}")
    print(f"\n{num_problems or 'No'} problem{'' if num_problems == 1 else 's'} found.")
    return 1 if num_problems else 0


def _checks(workspace: Workspace) -> Iterator[tuple[str, Callable[[], str]]]:
    paths = workspace.config.paths
    yield "packages", _packages
    yield "disk space", lambda: _disk_space(Path(paths.work_dir))
    yield "pickle", lambda: _pickle(workspace)
    yield "pools", lambda: _pools(workspace.airflow_home)
    if workspace.config.notify.is_on:
        yield "messages", lambda: _secrets(workspace.config.notify)
    models, promotion = workspace.config.models, workspace.config.promote
    has_run = any(nights(paths.work_dir, model.key) for model in models)
    has_data = (Path(paths.data_repo) / ".git").exists()
    yield "landing zone", lambda: _store(paths.landing, paths.s3_endpoint_url, needed=has_run)
    yield "DVC remote", lambda: _store(paths.dvc_remote, paths.s3_endpoint_url, needed=has_data)
    if promotion.ledger:  # a folder below work_dir otherwise
        # That it is not there although it was is found entry by entry, below.
        yield "ledgers", lambda: _store(promotion.ledger, promotion.ledger_endpoint_url, needed=False)
    for model in models:
        yield f"golden set of {model.key.slug}", partial(_golden, model)
        yield f"champion of {model.key.slug}", partial(_champion, workspace, model)
        if workspace.has_registry:
            from components.cli.doctor_promotion import promotion_checks

            yield from promotion_checks(workspace, model)


def _secrets(settings: NotifySettings) -> str:
    if missing := [name for name in settings.variables if not os.environ.get(name)]:
        raise CheckError(
            what=f"not in this environment: {', '.join(missing)}",
            remedy="set them where Airflow runs its tasks; then `stlm notify` tries every channel",
        )
    return "every secret is there; `stlm notify` tries every channel"


def _packages() -> str:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CheckError(what=f"missing: {', '.join(missing)}", remedy="run `make setup`")
    return f"{len(_PACKAGES)} of {len(_PACKAGES)} there"


def _disk_space(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < _MIN_FREE_GB:
        raise CheckError(what=f"{free_gb:.1f} GB free at {folder}", remedy=f"free some: at least {_MIN_FREE_GB:.0f} GB")
    return f"{free_gb:.0f} GB free at {folder}"


def _pickle(workspace: Workspace) -> str:
    name = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
    here = os.environ.get(name, "")
    if here.lower() not in {"", "false", "0"}:
        raise CheckError(
            what=f"{name}={here}", remedy="unset it: models are safetensors and JSON, a pickle can run code"
        )
    return f"refused in tasks ({name}={airflow_environment(workspace.airflow_home, workspace.config_path)[name]})"


def _pools(home: Path) -> str:
    wanted = json.loads((repository_root() / "infra" / "airflow" / "pools.json").read_text(encoding="utf-8"))
    address = os.environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "")
    if not address.startswith("postgresql"):  # as for whoever has not read the environment of `stlm up-services`
        database = home / "airflow.db"
        if not database.exists():
            return "Airflow was not started here yet; the first start makes them"
        address = f"sqlite:///file:{database}?mode=ro&uri=true"
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect() as connection:
            there = {row.pool: row.slots for row in connection.execute(sqlalchemy.text("SELECT * FROM slot_pool"))}
    except sqlalchemy.exc.OperationalError as error:
        raise TransientError(
            f"Airflow's database at {engine.url!r} does not answer: {str(error.orig).splitlines()[0]}"
        ) from None
    wrong = [f"{name} has {there.get(name, 'no')} slots" for name in wanted if there.get(name) != wanted[name]["slots"]]
    if wrong:
        raise CheckError(what=", ".join(wrong), remedy="run `airflow pools import infra/airflow/pools.json`")
    return ", ".join(f"{name} {pool['slots']}" for name, pool in wanted.items())


def _store(uri: str, endpoint_url: str, *, needed: bool) -> str:
    if "://" not in uri:
        folder = Path(uri)
        if not folder.exists():
            if needed:
                raise CheckError(what=f"{folder} does not exist", remedy="mount it, or bring it back from a backup")
            return f"{folder} is not there yet; it is made when it is needed"
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise CheckError(what=f"{folder} cannot be read and written", remedy="give this user the right to")
        return str(folder)
    from components.adapters.storage import open_storage

    try:
        open_storage(uri, endpoint_url=endpoint_url).folders()
    except (InputError, TransientError) as error:
        raise CheckError(
            what=str(error),
            remedy="see that the server runs, that the bucket exists, and that the AWS credentials are this user's",
        ) from error
    return uri


def _golden(model: ModelSettings) -> str:
    test = Path(model.golden) / "test"
    if not test.is_dir():
        raise CheckError(
            what=f"{test} does not exist",
            remedy="run `stlm data` for the quick start, or put a golden set in MVTec layout there",
        )
    counts = {
        folder.name: sum(path.suffix.lower() in _SUFFIXES for path in folder.iterdir())
        for folder in sorted(test.iterdir())
        if folder.is_dir()
    }
    num_good, num_defective = counts.pop("good", 0), sum(counts.values())
    if not num_good or not num_defective:
        raise CheckError(
            what=f"{test} has {num_good} good and {num_defective} defective images",
            remedy="metrics need both: add images to test/good and test/<defect>",
        )
    return f"{num_good} good and {num_defective} defective images"


def _champion(workspace: Workspace, model: ModelSettings) -> str:
    try:
        champion = champion_of(workspace, model)
    except InputError as error:
        raise CheckError(
            what=str(error),
            remedy="`stlm ledger reconcile` puts an alias back; `stlm rollback --to VERSION` replaces a lost version",
        ) from error
    if champion is not None:
        return f"version {champion.version} of {champion.name}, its files as registered"
    finished = [
        run.partition for run in nights(workspace.config.paths.work_dir, model.key) if "report" in read_night(run)
    ]
    if finished:
        raise CheckError(
            what=f"none, after {len(finished)} nights", remedy=f"see why in the page of {finished[-1]}: `stlm report`"
        )
    return "none yet; the first promoted night makes one"
