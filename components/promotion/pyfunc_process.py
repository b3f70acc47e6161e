"""Script: an MLflow model in an interpreter in which only what its own requirements name can be imported.

``python -I pyfunc_process.py RULES MODEL FILE...`` loads the model as a server does and scores the image files one by
one, as a camera sends them. The last line of its standard output is JSON. It imports nothing of this project, so that
the code that travels with the model is what runs; ``RULES`` is the path of ``stlm/serving/clean_process.py``.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType


def _by_path(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("rules", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(rules: str, model_dir: str, *files: str) -> int:
    """Score the files; the exit status."""
    lines = (Path(model_dir) / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [match[0] for line in lines if (match := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line))]
    clean_process = _by_path(rules)
    clean_process.forbid_pickle()
    clean_process.allow_only(names, packages=("stlm",))
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(model_dir)
    answers = [model.predict([{"image": Path(file).read_bytes()}]) for file in files]
    said = {
        "scores": [float(answer["score"].iloc[0]) for answer in answers],
        "columns": sorted({column for answer in answers for column in answer.columns}),
        "library": str(getattr(sys.modules.get("stlm"), "__file__", "")),
    }
    sys.stdout.write("\n" + json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
