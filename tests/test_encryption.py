"""Encrypted files: read with keys, refused in words without, and keys shown nowhere."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

import cluster
from dask_loader import ConfigError, DataLoader, DecryptionError, ParquetDataset

pytest.importorskip("pyarrow.parquet.encryption")

ROWS = 90
KEYS = {"foot": "0123456789012345", "one": "1234567890123450"}
FILES = Path(__file__).parent / "data" / "conformance" / "parquet-testing"


class Kms(pe.KmsClient):
    """Wraps keys by writing the master key before them: for tests only."""

    def __init__(self, keys: dict[str, str]) -> None:
        super().__init__()
        self._keys = keys

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
        master = self._keys[master_key_identifier].encode()
        return base64.b64encode(master + key_bytes).decode()

    def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
        found = base64.b64decode(wrapped_key)
        if found[:16] != self._keys.get(master_key_identifier, "").encode():
            raise ValueError(f"no key {master_key_identifier!r}")
        return found[16:]


def factory(keys: dict[str, str]) -> pe.CryptoFactory:
    return pe.CryptoFactory(lambda _: Kms(keys))


def properties(keys: dict[str, str], path: str) -> Any:
    """What a user would write, as a function that pickles."""
    del path
    made = factory(keys)
    found = made.file_decryption_properties(pe.KmsConnectionConfig())
    _alive.append(made)
    return found


_alive: list[pe.CryptoFactory] = []


def write(path: Path, *, plain_footer: bool, start: int = 0) -> None:
    config = pe.EncryptionConfiguration(
        footer_key="foot",
        column_keys={"one": ["secret", "text"]},
        plaintext_footer=plain_footer,
    )
    made = factory(KEYS)
    table = pa.table(
        {
            "id": np.arange(start, start + ROWS),
            "secret": np.arange(start, start + ROWS) * 0.5,
            "text": [f"row {i}" for i in range(start, start + ROWS)],
        }
    )
    encryption = made.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(
        path, table.schema, encryption_properties=encryption
    ) as writer:
        writer.write_table(table, row_group_size=40)


@pytest.fixture(params=[False, True], ids=["encrypted footer", "plain footer"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for number in range(2):
        path = tmp_path / "data" / f"{number}.parquet"
        write(path, plain_footer=request.param, start=number * ROWS)
    return tmp_path / "data"


def make(path: Path, **options: Any) -> ParquetDataset:
    return ParquetDataset(path, **{"client": "threads", "batch_size": 64, **options})


def ids(batches: Any) -> list[int]:
    return [i for batch in batches for i in batch["id"].tolist()]


def test_files_are_read_with_keys_in_order_and_shuffled(folder: Path) -> None:
    with make(folder, decryption=partial(properties, KEYS)) as dataset:
        batches = list(dataset)
        assert ids(batches) == list(range(2 * ROWS))
        assert [x for b in batches for x in b["secret"].tolist()][9] == 4.5
        assert [t for b in batches for t in b["text"]][100] == "row 100"
        assert dataset.stats()["unchecked_rows"] == 0  # nobody can look
    options = {"shuffle": True, "filters": [("secret", ">=", 20.0)]}
    with make(folder, decryption=partial(properties, KEYS), **options) as dataset:
        assert sorted(ids(dataset)) == list(range(40, 2 * ROWS))


def test_keys_and_what_they_open_are_left_nowhere(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    given = {"decryption": partial(properties, KEYS), "footer_cache": cache}
    with make(folder, **given) as dataset:
        list(dataset)
        shown = [json.dumps(dataset.state_dict()), repr(dataset), dataset.explain()]
        shown += [repr(dataset._catalog), repr(dataset._read_options)]
    assert not [key for key in KEYS.values() if key in "".join(shown)]
    assert not cache.exists() or not list(cache.iterdir())


def test_a_dataset_with_keys_pickles_and_its_workers_read(folder: Path) -> None:
    with make(folder, decryption=partial(properties, KEYS)) as dataset:
        copy = pickle.loads(pickle.dumps(dataset))
        with copy:
            assert ids(copy) == list(range(2 * ROWS))
        assert ids(DataLoader(dataset, num_workers=1)) == list(range(2 * ROWS))


def test_dask_workers_read_with_keys(
    folder: Path, local_cluster: cluster.Cluster
) -> None:
    options = {"client": local_cluster.address, "decryption": with_keys}
    with make(folder, **options) as dataset:
        assert ids(dataset) == list(range(2 * ROWS))


def with_keys(path: str) -> Any:
    return properties(KEYS, path)


# Workers of the cluster cannot import the tests: these travel by value.
with_keys.__module__ = "__main__"


def test_without_keys_it_is_said_what_to_give(folder: Path) -> None:
    path = str(folder / "0.parquet")
    with pytest.raises(DecryptionError, match="is encrypted: give decryption=") as e:
        make(folder)
    assert repr(path) in str(e.value)
    assert e.value.path == path


def test_of_a_plain_footer_the_plain_columns_are_read_without_keys(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.parquet", plain_footer=True)
    with make(tmp_path, columns=["id"]) as dataset:
        assert ids(dataset) == list(range(ROWS))
    with pytest.raises(DecryptionError, match=r"column 'secret' of .*leave the column"):
        make(tmp_path, columns=["id", "secret"])
    with pytest.raises(DecryptionError, match="column 'secret' of"):
        make(tmp_path, columns=["id"], filters=[("secret", ">", 0)])


@pytest.mark.parametrize(
    "keys", [{}, {**KEYS, "foot": "9" * 16}, {"foot": KEYS["foot"]}]
)
def test_wrong_keys_are_told_and_not_shown(folder: Path, keys: dict[str, str]) -> None:
    with pytest.raises(DecryptionError, match="decr") as e:
        make(folder, decryption=partial(properties, keys))
    assert repr(str(folder / "0.parquet")) in str(e.value)
    assert not [key for key in (*KEYS.values(), "9" * 16) if key in str(e.value)]


def test_a_function_that_fails_is_named_without_its_text(folder: Path) -> None:
    def fail(path: str) -> Any:
        raise RuntimeError("the key is 0123456789012345")

    with pytest.raises(DecryptionError, match="raised RuntimeError for") as e:
        make(folder, decryption=fail)
    assert "0123" not in str(e.value)
    assert isinstance(e.value.__cause__, RuntimeError)


def test_what_is_no_function_is_refused_and_not_shown(folder: Path) -> None:
    with pytest.raises(ConfigError, match="must be a function, not str; give") as e:
        make(folder, decryption=KEYS["foot"])
    assert KEYS["foot"] not in str(e.value)


def test_asking_for_an_encrypted_chunk_ends_the_process_without_our_look() -> None:
    # Should Arrow raise here one day, catalog/sanity.py has less to do.
    path = FILES / "encrypt_columns_plaintext_footer.parquet.encrypted"
    code = f"import pyarrow.parquet as p; p.ParquetFile({str(path)!r})"
    code += ".metadata.row_group(0).column(4)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False
    )
    assert done.returncode != 0
    with pytest.raises(DecryptionError, match="column 'float_field' of"):
        make(path)
