"""`RunRecord`: everything a run directory says, read once and checked."""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

_TEXT = ("id", "given", "suggested", "truth")  # never parsed: a class may be called "007" or "NA"
_MISSING = ["", "nan", "NaN", "None", "null"]
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)  # what np.load raises


@dataclass(frozen=True)
class Gallery:
    """The most suspicious samples themselves, at most 60.

    Attributes:
        rank: `(M,)` int64, the rank of each in the list of wrong labels.
        image: `(M, H, W, C)` uint8 pictures, C = 1, 3 or 4; `None` for tabular data.
        rows: `(M, D)` float feature rows; `None` for pictures.
    """

    rank: NDArray[np.int64]
    image: NDArray[np.uint8] | None = None
    rows: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it. Whatever a run does not have yet is simply absent.

    Attributes:
        path: the run folder.
        info: the contents of `run.json`.
        metrics: one row per finished epoch, all columns float; empty if no epoch has finished.
        issues: the list of wrong labels, worst first (`id`, `given`, `suggested` and `truth` as text, `p_wrong`
            float in [0, 1], `rank` int from 1, `flagged` bool, `evidence_*`); `None` if not written yet.
        gallery: the samples at the top of that list; `None` if there are none.
        simplex: `(E, 2, R + 1, R + 1)` counts of training samples by epoch, group (0 = the given label is right,
            1 = it is wrong), round(R · p_true) and round(R · p_second) of their softmax output. The second class is the
            given one in group 1, and the one after the true one in group 0. `None` where the truth is not known.
    """

    path: Path
    info: Mapping[str, Any]
    metrics: pd.DataFrame
    issues: pd.DataFrame | None = None
    gallery: Gallery | None = None
    simplex: NDArray[np.integer] | None = None

    @classmethod
    def load(cls, run_dir: Path | str) -> RunRecord:
        """Read a run folder, finished or not.

        Args:
            run_dir: the folder that `labelproof train` wrote.

        Raises:
            FileNotFoundError: there is no `run.json`.
            ValueError: a file in the folder cannot be read; the message names the file and the remedy.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> with TemporaryDirectory() as folder:
            ...     _ = (Path(folder) / "run.json").write_text('{"method": {"name": "elr"}, "status": "running"}')
            ...     run = RunRecord.load(folder)
            >>> run.label, run.finished, len(run.metrics)
            ('elr', False, 0)
        """
        path = Path(run_dir)
        file = path / "run.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} is not a run folder: it has no run.json. A run folder is made by `labelproof train`; "
                "give the folder named at the end of that command's output"
            )
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not valid JSON ({error}): train again, or restore the file") from error
        if not isinstance(info, dict):
            raise ValueError(f"{file} must hold a JSON object, not a {type(info).__name__}: train again")
        if "what" in info:
            article = "an" if info["what"][0] in "aeiou" else "a"
            raise ValueError(
                f"{path} holds {article} {info['what']}, no trained model to report on: what it found stands in its "
                ".csv file"
            )
        return cls(path, info, _read_metrics(path), _read_issues(path), _read_gallery(path), _read_simplex(path))

    def section(self, name: str) -> Mapping[str, Any]:
        """A part of `run.json` (`"data"`, `"method"`, `"result"` ...), empty if it is not there."""
        part = self.info.get(name)
        return part if isinstance(part, dict) else {}

    @property
    def label(self) -> str:
        """What to call the run: the title of its method."""
        method = self.section("method")
        return str(method.get("title") or method.get("name") or self.path.name)

    @property
    def short_label(self) -> str:
        """The abbreviation in brackets where the title ends in one ("... (ELR)"), else the title."""
        found = re.search(r"\(([^()]{2,20})\)$", self.label)
        return found.group(1) if found else self.label

    @property
    def method(self) -> str:
        """The registry name of the method, e.g. `"elr"`."""
        return str(self.section("method").get("name", ""))

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.info.get("status") == "finished"

    @property
    def regression(self) -> bool:
        """Whether the targets are numbers rather than classes."""
        return self.section("data").get("task") == "regression"

    @property
    def classes(self) -> list[str]:
        """Class names as text, in the order of their codes; empty in regression."""
        classes = self.section("data").get("classes")
        return [str(name) for name in classes] if isinstance(classes, list) and not self.regression else []

    @property
    def noise(self) -> Mapping[str, Any]:
        """What is known of the noise that was injected; empty if none was."""
        noise = self.section("data").get("noise")
        return noise if isinstance(noise, dict) else {}

    @property
    def num_samples(self) -> int | None:
        """Number of labelled training samples."""
        n = self.number("n", "data")
        if n is None and self.issues is not None:
            return len(self.issues)
        return None if n is None else int(n)

    def number(self, key: str, section: str = "result") -> float | None:
        """A finite number of `run.json`, or `None`."""
        return finite(self.section(section).get(key))

    def curve(self, column: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Epochs and values of one metric where it is finite, two `(E,)` arrays; empty if it was not recorded."""
        if column not in self.metrics:
            return np.empty(0), np.empty(0)
        x, y = self.metrics["epoch"].to_numpy(), self.metrics[column].to_numpy()
        keep = np.isfinite(y)
        return x[keep], y[keep]

    def last(self, key: str) -> float | None:
        """A result of the last epoch; of the last epoch so far if the run is not finished."""
        value = self.number(key)
        if value is not None:
            return value
        values = self.curve(key)[1]
        return float(values[-1]) if values.size else None

    def matrix(self, key: str) -> NDArray[np.float64] | None:
        """A square matrix of the results, e.g. `"noise_transition"` `(K, K)`, rows = true class; or `None`."""
        try:
            matrix = np.array(self.section("result").get(key), dtype=np.float64)
        except (TypeError, ValueError):
            return None
        return matrix if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0 else None

    def listed(self, column: str) -> NDArray[np.float64]:
        """A column of the list as `(N,)` numbers, NaN where there is none; `"modelled"` is the model's value.

        Raises:
            ValueError: the run has no list.
        """
        import pandas as pd

        if self.issues is None:
            raise ValueError(
                f"{self.path} has no issues.csv: ask for a column of the list only where `issues` is there"
            )
        if column == "modelled":  # lists of older versions have it as what they suggest
            column = "suggested_value" if "suggested_value" in self.issues else "suggested"
        if column not in self.issues:
            return np.full(len(self.issues), np.nan)
        return np.asarray(pd.to_numeric(self.issues[column], errors="coerce"), dtype=np.float64)

    @property
    def true_rate(self) -> float | None:
        """Share of the given labels or targets that are really wrong; `None` if that is not known."""
        if (told := self.number("true_rate")) is not None:
            return told
        wrong = self.really_wrong()
        return float(wrong.mean()) if wrong is not None and self.regression else None

    @property
    def held_out(self) -> bool:
        """Whether rows with given labels or targets were held out of training."""
        return any(self.curve(column)[0].size for column in ("val_accuracy", "val_rmse")) or bool(
            self.number("best_val_epoch")
        )

    def really_wrong(self) -> NDArray[np.bool_] | None:
        """For each row of `issues`, whether its given label differs from the truth; `None` if that is not known."""
        if self.issues is None or "truth" not in self.issues or not (self.issues["truth"] != "").any():
            return None
        given, truth = self.issues["given"], self.issues["truth"]
        if not self.regression:
            return np.asarray(given != truth, dtype=bool)
        differs: NDArray[np.bool_] = ~np.isclose(self.listed("given"), self.listed("truth"), rtol=1e-6, atol=0.0)
        return differs


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number, else `None` (true and false are not numbers here)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _read_metrics(path: Path) -> pd.DataFrame:
    import pandas as pd

    file = path / "metrics.csv"
    try:
        # A run that is still going may have written half a line.
        table = pd.read_csv(file, on_bad_lines="skip")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame({"epoch": np.empty(0)})
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as CSV ({error}): train again, or delete it") from error
    table = pd.DataFrame({str(name): pd.to_numeric(table[name], errors="coerce") for name in table}, dtype=np.float64)
    if "epoch" not in table:
        table["epoch"] = np.arange(1.0, len(table) + 1)
    return table.dropna(subset="epoch").reset_index(drop=True)


def _read_issues(path: Path) -> pd.DataFrame | None:
    import pandas as pd

    file = path / "issues.csv"
    try:
        columns = list(pd.read_csv(file, nrows=0).columns)
        if absent := [name for name in ("given", "suggested", "p_wrong") if name not in columns]:
            raise ValueError(f"column {absent[0]!r} is missing; there are {', '.join(map(repr, columns))}")
        numeric: Mapping[Any, Any] = {name: _MISSING for name in columns if name not in _TEXT}
        text: dict[Any, Any] = {name: str for name in columns if name in _TEXT}
        table = pd.read_csv(file, dtype=text, na_values=numeric, keep_default_na=False)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is not a list of wrong labels ({error}): delete it, and the report does without"
        ) from error
    order = np.arange(1, len(table) + 1)
    if "id" not in table:
        table["id"] = (order - 1).astype(str)
    table["p_wrong"] = pd.to_numeric(table["p_wrong"], errors="coerce")
    table["rank"] = pd.to_numeric(table["rank"], errors="coerce").fillna(0).astype(int) if "rank" in table else order
    flagged = table["flagged"].astype(str).str.lower() if "flagged" in table else None
    table["flagged"] = False if flagged is None else flagged.isin(["true", "1", "1.0", "yes"])
    return table.sort_values("rank", kind="stable").reset_index(drop=True)


def _read_gallery(path: Path) -> Gallery | None:
    file = path / "gallery.npz"
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _gallery(arrays)
    except _DAMAGED as error:
        raise ValueError(f"{file} is not a gallery ({error}): delete it, and the report does without") from error


def _read_simplex(path: Path) -> NDArray[np.integer] | None:
    file = path / "simplex.npz"
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as archive:
            density: NDArray[np.integer] = archive["density"]
        _check_density(density)
    except _DAMAGED as error:
        raise ValueError(
            f"{file} is not a record of training outputs ({error}): delete it, and the report does without"
        ) from error
    return density


def _check_density(density: NDArray[Any]) -> None:
    shape = density.shape
    if density.dtype.kind not in "iu" or len(shape) != 4 or shape[1] != 2 or shape[2] != shape[3] or shape[2] < 2:
        raise ValueError(f"`density` must be (E, 2, R + 1, R + 1) integers, not {shape} {density.dtype}")
    if density.min(initial=0) < 0:
        raise ValueError(f"`density` must count samples, and has {density.min()}")


def _gallery(arrays: Mapping[str, NDArray[Any]]) -> Gallery | None:
    rank, image, rows = (arrays.get(name) for name in ("rank", "image", "rows"))
    if image is None and rows is None:
        raise ValueError(f"it needs `image` or `rows`, and has {', '.join(sorted(arrays)) or 'nothing'}")
    size = len(rows) if image is None and rows is not None else len(image) if image is not None else 0
    rank = np.arange(1, size + 1) if rank is None else rank.astype(np.int64).ravel()
    if image is not None:
        image = image[..., None] if image.ndim == 3 else image
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
            raise ValueError(f"`image` must be (M, H, W, C) uint8 with C = 1, 3 or 4, not {image.shape} {image.dtype}")
    elif rows is not None and rows.ndim != 2:
        raise ValueError(f"`rows` must be (M, D), not {rows.shape}")
    if len(rank) != size:
        raise ValueError(f"`rank` has {len(rank)} entries for {size} samples")
    if size == 0:
        return None
    return Gallery(rank, image, None if image is not None or rows is None else rows.astype(np.float64))
