"""The agent by itself: what it leaves when it cannot even start."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest

from cluster.agent import Agent


def test_an_agent_that_cannot_start_leaves_no_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = {"worker-key.pem": "KEY", "nanny.py": "import no_such_module"}
    hello = {"files": files, "environment": {}, "lease_s": 20}
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        Agent(hello, io.StringIO())
    assert list(tmp_path.iterdir()) == []
