"""The scikit-learn face: `NoisyLabelClassifier` and `NoisyLabelRegressor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from loky import cpu_count
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from labelproof.core.method import Method, NoiseRate
from labelproof.data.dataset import Data, MapStyle
from labelproof.engine.launchers import Launcher, launcher_for
from labelproof.engine.settings import Settings
from labelproof.methods import get_method
from labelproof.networks.factory import NetworkLike
from labelproof.runs import Run, train


class _NoisyLabelEstimator(BaseEstimator):
    """What both estimators share."""

    _default_method: ClassVar[str]
    run_: Run

    def __init__(
        self,
        *,
        method: str | Method = "auto",
        network: NetworkLike = "mlp",
        epochs: int = 30,
        batch_size: int = 128,
        lr: float | None = None,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        weight_decay: float | None = None,
        schedule: str = "cosine",
        momentum_schedule: str = "constant",
        clip: float | None = None,
        precision: str = "32-true",
        compile: bool = False,
        validation_fraction: float | None = None,
        early_stopping: bool = False,
        patience: int = 10,
        augment: str = "auto",
        workers: int = 0,
        memory: str = "dense",
        noise_rate: NoiseRate | None = None,
        random_state: Any = 0,
        device: str = "auto",
        n_jobs: int | None = None,
        launcher: str | Launcher | None = None,
        verbose: int = 0,
    ) -> None:
        self.method = method
        self.network = network
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.momentum_schedule = momentum_schedule
        self.clip = clip
        self.precision = precision
        self.compile = compile
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.patience = patience
        self.augment = augment
        self.workers = workers
        self.memory = memory
        self.noise_rate = noise_rate
        self.random_state = random_state
        self.device = device
        self.n_jobs = n_jobs
        self.launcher = launcher
        self.verbose = verbose

    def set_params(self, **params: Any) -> Any:
        """Set parameters; `method__lam=3` reaches the method also where it was given by name."""
        if any(name.startswith("method__") for name in params):
            params["method"] = self._resolve(params.get("method", self.method))
        return super().set_params(**params)

    def find_issues(self) -> pd.DataFrame:
        """The list of wrong labels among the training data, worst first: one row per sample.

        Returns:
            Columns `id` (row number, or the data frame's index), `given`, `suggested` (in the values of `y`),
            `p_wrong` in [0, 1], `rank` from 1, `flagged`, and evidence.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` has not been called.
        """
        check_is_fitted(self, "run_")
        return self.run_.issues.copy()

    @property
    def history_(self) -> list[dict[str, Any]]:
        """One dict per epoch: loss, agreement with the given labels, validation score, seconds ..."""
        check_is_fitted(self, "run_")
        return self.run_.fitted.history

    def _resolve(self, method: Any) -> Method:
        if isinstance(method, str):
            return get_method(self._default_method if method == "auto" else method)()
        if not isinstance(method, Method):
            raise ValueError(f"method={method!r} must be a name of lp.available_methods() or a Method instance")
        return method

    def _method(self) -> Method:
        method = self._resolve(self.method)
        if self.noise_rate is None:
            return method
        if "noise_rate" not in method.param_names():
            raise ValueError(f"method={self.method!r} has no use for noise_rate={self.noise_rate!r}: leave it out")
        return type(method)(**{**method.get_params(), "noise_rate": self.noise_rate})

    def _fit(self, data: Data, streams: Mapping[str, Data] | None = None) -> None:
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31)
        shared = {name: getattr(self, name) for name in Settings.__dataclass_fields__ if hasattr(self, name)}
        settings = Settings(**shared, seed=int(seed))
        self.run_ = train(
            data,
            self._method(),
            self.network,
            settings,
            streams=streams,
            verbose=self.verbose,
            launcher=self._launcher(),
        )

    def _launcher(self) -> Launcher | None:
        """Where trainings that need nothing of each other run; in this process if `None`."""
        jobs, asked = self.n_jobs, self.launcher
        if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int | np.integer) or jobs == 0):
            raise ValueError(f"n_jobs={jobs!r} must be a whole number other than 0, or None; -1 takes all cores")
        if asked is not None and not isinstance(asked, str):
            if not hasattr(asked, "run"):
                raise ValueError(f"launcher={asked!r} must be 'processes', 'ray', a launcher or None")
            if jobs is not None:
                raise ValueError(f"n_jobs={jobs} beside launcher={type(asked).__name__}(...), which has its own number")
            return asked
        if asked == "ray" and jobs is not None and jobs < 0:
            jobs = None  # what the cluster has room for
        if jobs is not None and jobs < 0:
            jobs = max(1, cpu_count() + 1 + int(jobs))
        return launcher_for(asked or "processes", jobs)

    def _inputs(self, X: Any, *, reset: bool) -> NDArray[Any] | MapStyle:
        """Rows and images as arrays, checked; map-style data sets as they are."""
        if _is_dataset(X):
            return X
        if getattr(X, "ndim", 2) == 2:
            return validate_data(self, X, dtype=np.float32, reset=reset)
        x = check_array(X, dtype=None, allow_nd=True, input_name="X")
        if x.ndim == 4 and x.shape[3] in {1, 3, 4} and x.shape[1] not in {1, 3, 4}:
            raise ValueError(f"images of shape {x.shape} look like (N, H, W, C): give X.transpose(0, 3, 1, 2)")
        if reset:
            self.n_features_in_ = int(np.prod(x.shape[1:]))
        return x if x.dtype == np.uint8 else x.astype(np.float32)

    def _ids(self, X: Any, n: int) -> NDArray[Any]:
        index = getattr(X, "index", None)
        return np.asarray(index) if isinstance(index, pd.Index) and index.is_unique else np.arange(n)

    def _labels(self, X: Any, y: Any) -> Any:
        if y is not None:
            return y
        if not _is_dataset(X):
            raise ValueError(
                f"requires y to be passed, but the target y is None: {type(self).__name__}.fit(X, y) needs the labels"
            )
        for name in ("targets", "labels"):
            if getattr(X, name, None) is not None:
                return getattr(X, name)
        items = (X[i] for i in range(len(X)))
        labels = [item[1] if isinstance(item, tuple | list) and len(item) > 1 else None for item in items]
        if any(label is None for label in labels):
            raise ValueError("the data set gives inputs without labels: pass them, as in fit(X, y)")
        return labels


class NoisyLabelClassifier(ClassifierMixin, _NoisyLabelEstimator):
    """Train a classifier on labels some of which are wrong, and list which.

    Args:
        method: a name of `lp.available_methods()` or an instance such as `lp.methods.ELR(lam=3, beta=0.7)`;
            `"auto"` is `"elr"`. Hyper-parameters work in `GridSearchCV` as `method__lam` etc.
        network: a name of `lp.networks.available()`, an `nn.Module`, a callable that returns one, or an encoder
            to start from (`lp.load_encoder`).
        epochs: passes over the data.
        batch_size: samples per step.
        lr: learning rate; the optimiser's default if `None`.
        optimizer: `"sgd"`, `"adam"`, `"adamw"` or `"lars"`.
        momentum: of sgd; of adam and adamw the first beta.
        weight_decay: the optimiser's default if `None`.
        schedule: of the learning rate, e.g. `"cosine"`, `"constant"`, `"linear:80"`, `"multistep:40,80:0.01"`.
        momentum_schedule: of the momentum, in the same words.
        clip: largest gradient norm per network, none if `None`.
        precision: `"32-true"`, `"bf16-mixed"` or `"16-mixed"`.
        compile: compile the networks with `torch.compile`; on a GPU it pays after the first minute.
        validation_fraction: share held out, with its noisy labels; 0.1 with early stopping, else 0.
        early_stopping: stop when the held-out score stalls for `patience` epochs, and keep the best epoch.
        patience: see there.
        augment: `"auto"` (crop and flip for colour images), `"none"`, `"crop"` or `"crop-flip"`.
        workers: loading processes for map-style data sets.
        memory: how state per sample is kept: `"dense"`, `"fp16"`, `"bf16"`, `"cpu"`, `"mmap"`, `"topk:50"` ...
        noise_rate: share of wrong labels, for methods that ask for it; `"auto"` estimates it first.
        random_state: seed, `RandomState` or `None`.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        n_jobs: trainings at a time, where a method takes several that need nothing of each other (the folds of
            `noise_rate="auto"`, the halves of `"incv"`): one after another in this process if `None`, as many as there
            are cores if -1. The result is the same for the same number of threads.
        launcher: `"processes"` on this machine, which is what `None` means, `"ray"`, or one of
            `labelproof.engine.launchers`.
        verbose: 0 is silent, 1 shows progress.

    Attributes:
        classes_: `(K,)` the labels, sorted.
        history_: one dict per epoch.
        run_: everything else the run left.

    Raises:
        ValueError: on `fit`, where a parameter or the data is unusable; the message says why and what to do.

    >>> from sklearn.datasets import load_digits
    >>> import labelproof as lp
    >>> X, y = load_digits(return_X_y=True)
    >>> noisy = lp.noise.inject(y, "symmetric", 0.3, seed=0)
    >>> clf = lp.NoisyLabelClassifier(method="elr", epochs=15).fit(X, noisy.labels)
    >>> clf.score(X, y) > 0.9
    True
    >>> bool(noisy.changed[clf.find_issues().head(300)["id"]].mean() > 0.95)
    True
    """

    _default_method = "elr"

    def fit(
        self, X: Any, y: ArrayLike | None = None, *, clean: tuple[Any, ArrayLike] | None = None
    ) -> NoisyLabelClassifier:
        """Train.

        Args:
            X: `(N, D)` rows, `(N, C, H, W)` images (uint8 or float), a data frame of numbers, or a map-style data
                set of inputs or of `(input, label)` pairs.
            y: `(N,)` labels of any kind; may be left out where the data set carries them.
            clean: `(X, y)` of samples whose labels were verified, for methods that learn from some (`mentornet-dd`);
                best if these samples are in `X` as well.
        """
        x = self._inputs(X, reset=True)
        labels = column_or_1d(np.asarray(self._labels(X, y)), warn=True)
        check_classification_targets(labels)
        _same_length(x, labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        names = [str(n) for n in getattr(self, "feature_names_in_", [])]
        data = Data(x, codes.astype(np.int64), classes=self.classes_, ids=self._ids(X, len(codes)), columns=names)
        if clean is not None and not (isinstance(clean, tuple | list) and len(clean) == 2):
            raise ValueError(
                f"clean={clean!s:.80} must be a pair (X, y) of verified samples and their labels; files are for the "
                "command line"
            )
        self._fit(data, None if clean is None else {"clean": self._clean(*clean)})
        return self

    def _clean(self, X: Any, y: ArrayLike) -> Data:
        try:
            x, labels = self._inputs(X, reset=False), column_or_1d(np.asarray(y))
            _same_length(x, labels)
        except ValueError as error:
            raise ValueError(f"clean: {error}") from error
        unknown = sorted(set(labels.tolist()) - set(self.classes_.tolist()), key=str)
        if unknown:
            raise ValueError(
                f"clean has the label {unknown[0]!r}, which no training sample has: those have "
                f"{', '.join(map(repr, self.classes_[:10].tolist()))}{' ...' * (len(self.classes_) > 10)}"
            )
        return Data(x, np.searchsorted(self.classes_, labels).astype(np.int64), classes=self.classes_, name="clean")

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """`(n, K)` class probabilities, columns in the order of `classes_`."""
        check_is_fitted(self, "run_")
        return self.run_.fitted.predict(self._inputs(X, reset=False))

    def predict(self, X: Any) -> NDArray[Any]:
        """`(n,)` labels, in the values of `y`."""
        prob = self.predict_proba(X)
        return self.classes_[prob.argmax(1)]


class NoisyLabelRegressor(RegressorMixin, _NoisyLabelEstimator):
    """Train a regressor on targets some of which are corrupted, and list which.

    Parameters and attributes are those of `NoisyLabelClassifier`, with a method for regression (`"auto"` is `"prl-l"`).
    Targets are scaled by median and median absolute deviation, so that units do not matter and gross errors do not
    stretch the scale.

    >>> import numpy as np
    >>> import labelproof as lp
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 5)); y = X.sum(1)
    >>> bad = rng.permutation(500)[:50]; noisy = y.copy(); noisy[bad] += 100
    >>> reg = lp.NoisyLabelRegressor(noise_rate=0.1, lr=0.01).fit(X, noisy)
    >>> set(reg.find_issues().head(50)["id"]) == set(bad)
    True
    """

    _default_method = "prl-l"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: ArrayLike | None = None) -> NoisyLabelRegressor:
        """Train on `(N, D)` rows or other inputs and `(N,)` or `(N, T)` targets, whole numbers or fractions.

        Raises:
            ValueError: as for `NoisyLabelClassifier`; or targets are missing, not finite, no numbers, of different
                lengths, constant, beyond ±1e300, or fewer than 3.
        """
        x = self._inputs(X, reset=True)
        given = _numbers(self._labels(X, y))
        _same_length(x, given)
        self._columns = given.ndim
        targets = given.reshape(len(given), -1).astype(np.float64)
        self._fit(Data(x, targets, ids=self._ids(X, len(targets)), target_name="target", given=given))
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """`(n,)` or `(n, T)` predictions, as `y` was given, in its units."""
        check_is_fitted(self, "run_")
        out = self.run_.fitted.predict(self._inputs(X, reset=False)).astype(np.float64)
        return out[:, 0] if self._columns == 1 else out


def _is_dataset(X: Any) -> bool:
    """A map-style data set, rather than an array, a table or nested lists of numbers."""
    return isinstance(X, MapStyle) and not (hasattr(X, "__array__") or issparse(X) or isinstance(X, list | tuple | str))


def _numbers(y: Any) -> NDArray[Any]:
    """Regression targets as an array of finite numbers, `(N,)` or `(N, T)`."""
    try:
        values = np.asarray(y)
    except ValueError as error:  # what NumPy says of ragged lists
        raise ValueError("y has rows of different lengths: give each sample the same number of targets") from error
    if values.ndim not in {1, 2}:
        raise ValueError(f"y has shape {values.shape}: targets must be (N,) or (N, T)")
    if values.dtype.kind in "bcmM":
        raise ValueError(
            f"y holds {values.dtype} values, and regression needs plain numbers: give days since a date, or 1 and 0; "
            "classes are for NoisyLabelClassifier"
        )
    values = values if values.dtype.kind in "iuf" else _parsed(values)
    try:
        return check_array(values, dtype="numeric", ensure_2d=False, input_name="y")
    except ValueError as error:
        bad = ~np.isfinite(values)
        if not bad.any():
            raise
        raise ValueError(
            f"{str(error).splitlines()[0]} Of {bad.size} targets {bad.sum()} are missing or infinite, the first in row "
            f"{np.argwhere(bad)[0][0]}: drop those rows or fill them in"
        ) from error


def _parsed(values: NDArray[Any]) -> NDArray[np.float64]:
    """Objects as numbers, what is missing as NaN."""
    flat = pd.Series(values.reshape(-1), dtype=object).map(_or_infinite)
    flat = flat.where(flat.notna(), np.nan)
    try:
        return flat.to_numpy(dtype=np.float64).reshape(values.shape)
    except (TypeError, ValueError) as error:
        wrong = flat.notna() & pd.to_numeric(flat.map(str), errors="coerce").isna()
        at = int(wrong.to_numpy().argmax())
        raise ValueError(
            f"y holds {flat[at]!r:.40} in row {at // (values.size // len(values))}, the first of {wrong.sum()} that "
            "are no numbers: regression needs plain numbers, with a decimal point and without a unit; classes are for "
            "NoisyLabelClassifier"
        ) from error


def _or_infinite(value: Any) -> Any:
    """The value, or what a number beyond float64 is nearest to: 10**400, or a fraction of such numbers."""
    try:
        float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    except (TypeError, ValueError):
        pass  # whose row will be named
    return value


def _same_length(x: Any, y: NDArray[Any]) -> None:
    if len(x) != len(y):
        raise ValueError(f"Found input variables with inconsistent numbers of samples: [{len(x)}, {len(y)}]")
