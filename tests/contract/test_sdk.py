"""What SDKs must not do behind our back: raise errors of their own kind, or call out."""

from __future__ import annotations

import builtins
import subprocess
import sys

import pytest

import tiny
from edge import Artifact
from edge.backend import Backend, backends
from edge.errors import IncompatibleArtifactError, InferenceError


def sdk_errors(backend: Backend) -> list[type[Exception]]:
    """Every exception class that the SDK's loaded modules define, and Python's own."""
    package = backend.sdk().__name__.split(".")[0]
    found = {
        value
        for name, module in list(sys.modules.items())
        if module is not None and name.split(".")[0] == package
        for value in list(vars(module).values())
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__.split(".")[0] == package
    }
    own = [
        ValueError,
        RuntimeError,
        TypeError,
        OSError,
        MemoryError,
        KeyError,
        AttributeError,
        builtins.Exception,
    ]
    return [*sorted(found, key=str), *own]


def raising(kind: type[Exception]):
    def fail(*args, **kwargs):
        try:
            error = kind("from the SDK")
        except TypeError:  # a constructor of its own
            error = kind.__new__(kind)
        raise error

    return fail


def test_every_sdk_error_is_translated(case, monkeypatch):
    feed = case.feed(tiny.noise())
    kinds = sdk_errors(case.backend)
    for kind in kinds:
        with case.load() as session:
            monkeypatch.setattr(session, "_run", raising(kind))
            with pytest.raises(InferenceError) as caught:
                session.run(feed)
            assert isinstance(caught.value.__cause__, kind)
    artifact = Artifact.open(case.path)
    for kind in kinds:
        with monkeypatch.context() as patch:
            patch.setattr(type(case.backend), "_load", raising(kind))
            with pytest.raises(IncompatibleArtifactError) as caught:
                case.backend.load(artifact)
            assert isinstance(caught.value.__cause__, kind)
            assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize("name", backends())
def test_importing_the_sdk_calls_nobody(name):
    """No process is forked and no connection opened by loading an SDK."""
    backend = backends()[name]
    if not backend.probe().usable:
        pytest.skip(backend.probe().reason)
    program = (
        "import os, socket, sys\n"
        "def refuse(*arguments, **options): os.write(2, b'CALLED OUT'); os._exit(9)\n"
        "os.fork = socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from edge.backend import find_backend\n"
        f"backend = find_backend({name!r}); backend.sdk(); print(backend.probe().usable)\n"
        "import time; time.sleep(0.5)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "True" in result.stdout
