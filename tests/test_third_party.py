"""A backend in a package of someone else, tests/third_party, is found, used and checked like our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import python

import polyloss.conformance
from polyloss.conformance.routes import from_numpy, installed
from polyloss.dispatch import library_of

PACKAGE = Path(__file__).parent / "third_party"
PATIENCE = 300  # seconds; conformance runs in some of these processes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH with the package, installed from a copy, since a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("third_party")
    source = shutil.copytree(PACKAGE, folder / "source")
    options = "--quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --target".split()
    pip = [sys.executable, "-m", "pip", "install", *options, str(folder / "site"), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))


def command(site: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "polyloss", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": site} | environment,
    )


def test_it_is_found_with_its_version_devices_and_path(site: str) -> None:
    done = command(site, "backends")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("spam")]
    assert [row[:5] for row in rows] == [["spam", "1.0", "tin", tin, "host"] for tin in "01"]
    assert all("polyloss.backends.cpu.lse" in row for row in rows)
    assert (
        "spam"
        not in subprocess.run([sys.executable, "-m", "polyloss", "backends"], capture_output=True).stdout.decode()
    )


USE = """
    import contextlib
    import spam
    from polyloss.conformance.losses import LOSSES
    from polyloss.dispatch import generic, library_of

    def results(row, arguments, options, path):
        wrt = row.floating(arguments)
        with path():
            value, gradients = polyloss.value_and_grad(row.loss, wrt)(**arguments, **options, **row.options)
            return value, row.loss(**arguments, **options, **row.options, reduction="none"), *gradients

    def in_tin(arrays):
        return {key: spam.asarray(x, device="tin 1") for key, x in arrays.items()}

    def close(spams, numpys, dtype):
        for a, b in zip(spams, numpys):
            assert type(a) is spam.Array and a.device == "tin 1" and a.dtype == b.dtype and a.shape == b.shape
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(np.from_dlpack(a), b, rtol=64 * eps, atol=8 * eps)
"""


def test_every_loss_and_gradient_is_numpys(site: str) -> None:
    python(
        USE,
        """
        for path in (contextlib.nullcontext, generic):
            for name, row in LOSSES.items():
                for dtype in ("float32", "float64"):
                    arguments = row.arguments(0, 6, dtype)
                    keep, weights = np.array([True, True, False, True, True, True]), np.arange(6).astype(dtype)
                    options = {"where": keep, "weights": weights}
                    expected = results(row, arguments, options, path)
                    close(results(row, in_tin(arguments), in_tin(options), path), expected, dtype)
        """,
        PYTHONPATH=site,
        patience=PATIENCE,
    )


def test_every_transform_is_numpys(site: str) -> None:
    python(
        USE,
        """
        x = np.random.default_rng(0).standard_normal((5, 7)).astype("float32")
        for name in ("sigmoid", "log_sigmoid", "softplus", "softmax", "log_softmax", "logsumexp"):
            for path in (contextlib.nullcontext, generic):
                with path():
                    transform = getattr(polyloss, name)
                    close([transform(spam.asarray(x, device="tin 1"))], [transform(x)], "float32")
        """,
        PYTHONPATH=site,
    )


def test_errors_speak_of_its_arrays_and_devices(site: str) -> None:
    python(
        """
        import re
        import spam

        def refused(error, words, *arguments):
            try:
                polyloss.softmax_cross_entropy(*arguments)
            except error as found:
                assert re.search(words, str(found)), found
            else:
                raise AssertionError(words)

        x, y = np.zeros((3, 2)), np.array([0, 1, 1])
        logits, labels = spam.asarray(x), spam.asarray(y)
        refused(ValueError, "tin 0.*tin 1", logits, spam.asarray(y, device="tin 1"))
        refused(TypeError, r"spam.*numpy.*spam\\.asarray\\(targets\\)", logits, y)
        refused(ValueError, "targets.*5", logits, spam.asarray([0, 5, 1]))
        """,
        PYTHONPATH=site,
    )


def test_no_hook_of_the_example_is_idle(site: str) -> None:
    """Each is there because something goes wrong without it."""
    python(
        """
        import spam
        from polyloss_spam import Spam

        def hooks_are_right():
            distances, weights = spam.asarray([1e8, 1e8, 1.0]), spam.asarray([1.0, -1.0, 1.0])
            total = polyloss.contrastive_from_distance(distances, spam.ones(3), weights=weights, reduction="sum")
            assert float(total) == 1.0  # not 0, as in pairs
            far = spam.asarray(0.5, device="tin 1")
            q = np.random.default_rng(0).standard_normal((4, 3))
            loss = polyloss.info_nce(spam.asarray(q), spam.asarray(q[::-1]), temperature=far)
            assert loss.device == "tin 0"
            assert abs(float(loss) / polyloss.info_nce(q, q[::-1], temperature=0.5) - 1) < 1e-14
            x = np.random.default_rng(0).standard_normal((4, 3, 5))
            expected = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)(x.T, x.T > 0)
            expected += (polyloss.log_softmax(x.T),)
            used.clear()
            strided = spam.Array(x.T, "tin 0")
            value, gradient = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)(strided, strided > 0)
            assert type(value) is spam.Array and value.dtype == x.dtype and abs(float(value) - expected[0]) < 1e-15
            np.testing.assert_allclose(gradient.content, expected[1], rtol=1e-14)
            np.testing.assert_allclose(polyloss.log_softmax(strided).content, expected[2], rtol=1e-14)
            assert len(used) == 2  # kernels

        from polyloss.backends.cpu import compiled
        kernel, used = compiled.kernel, []
        compiled.kernel = lambda *key: used.append(key) or kernel(*key)
        hooks_are_right()
        hooks = [name for name in vars(Spam) if not name.startswith("_")]
        assert len(hooks) == 10, hooks
        for hook in hooks:
            method = getattr(Spam, hook)
            delattr(Spam, hook)
            try:
                hooks_are_right()
            except Exception:
                pass
            else:
                raise SystemExit(f"{hook} is not needed")
            finally:
                setattr(Spam, hook, method)
        """,
        PYTHONPATH=site,
    )


ENGINE = pytest.mark.skipif(
    not hasattr(polyloss.conformance, "check"), reason="the engine of conformance is not here yet"
)


@ENGINE
@pytest.mark.parametrize("fault", ["", "sum"])
def test_conformance_passes_it_and_fails_it_once_its_sum_is_wrong(fault: str, site: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    asked = f"conformance --library spam --dtype float32 --quick --json {file}"
    done = command(site, *asked.split(), SPAM_FAULT=fault)
    assert done.returncode == (1 if fault else 0), done.stdout + done.stderr
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    statuses = [cell["status"] for cell in cells if cell["library"] == "spam"]
    assert statuses.count("passed") > 0
    assert (statuses.count("failed") > 0) == bool(fault)


@pytest.mark.parametrize("library", installed())
@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint8", "float32", "float64"])
def test_numbers_go_in_and_come_out_as_they_are(dtype: str, library: str) -> None:
    """By the methods of the contract, of which the defaults suffice where a library follows the standard."""
    known = library_of(from_numpy(library, np.zeros(1, np.float32)))
    if library == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 by default")
    special = [-0.0, np.inf, -np.inf, np.nan, 1 / 3, 5e-324] if dtype.startswith("float") else [0, 1, 1, 0, 127, 3]
    for shape in ((6,), (2, 3), (0, 3), ()):
        x = np.array(special, dtype)[: int(np.prod(shape))].reshape(shape)
        found = known.from_numpy(x)
        assert library_of(found) is known
        back = known.to_numpy(found)
        assert back.dtype == x.dtype and back.shape == x.shape
        assert back.tobytes() == x.tobytes()


def test_what_numpy_cannot_read_is_said() -> None:
    from polyloss.backends import Library

    with pytest.raises(TypeError, match="cannot read an array of numpy"):
        Library(np).to_numpy(object())
